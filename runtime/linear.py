"""A kernel with a packed weight: binding it once, and the call.

What is the same on every device is here; an executor takes the arrays of a call, and launches.
Like `kernel`, this needs NumPy, tvm_ffi and libtvm_runtime.so, no compiler.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import ArrayError
from ..formats.checks import check_bias, check_weight, numbers, opened
from ..formats.quantize import QTensor
from .cpu_executor import CpuExecutor
from .cuda_arrays import read_back
from .cuda_executor import CudaExecutor
from .memory import aligned
from .packing import packed_bias, packed_weight
from .rows import as_rows, dimensions, numbers_of_rows, rows_to_write, shape_of

if TYPE_CHECKING:
    from .kernel import Kernel


class Executor(Protocol):
    """A kernel on its device, with a weight in the memory of that.

    Made from a kernel; and by name the arrays of the weight, and the scales and zero points that
    were bound, each of the shape (1,).
    """

    kernel: Kernel

    def call(
        self, x: Any, out: Any, residual: Any, given: dict[str, Any], num_threads: int | None
    ) -> Any:
        """The product with the matrix `x`, which is to be checked, in `out` or a new array.

        Parameters
        ----------
        given : scales and zero points that the call brings, and `offs`.
        """

    def compute(self, m: int, x: Any, y: Any) -> None:
        """See `Linear.compute`."""


#: By the devices that `info.device` names.
EXECUTORS: dict[str, type[CpuExecutor] | type[CudaExecutor]] = {
    "cpu": CpuExecutor,
    "cuda": CudaExecutor,
}


class Linear:
    """A kernel with a packed weight: y = linear(x). Made by `Kernel.bind`.

    Rows of arrays may lie at any distance. A copy uses the same memory, a deep copy memory of its
    own.

    On a CPU arrays may be NumPy, torch or anything with DLPack, at any address; other strides (and
    read-only or big-endian arrays) are copied first. A tensor that requires a gradient is refused
    while torch records, because none would be computed.

    On a GPU arrays on a device are read and written in place, on the stream on which the caller
    works: torch's or CuPy's current one. NumPy arrays, and torch tensors of the host, are copied to
    the first device and back.
    """

    def __init__(
        self,
        kernel: Kernel,
        w: QTensor,
        bias: npt.ArrayLike | None,
        scalars: dict[str, npt.ArrayLike | None],
    ) -> None:
        spec, info = kernel.spec, kernel.info
        check_weight(spec, w)
        arrays = packed_weight(spec, info.layout, info.x_offset, w, info.arguments)
        added = check_bias(spec, bias)
        if added is not None:
            arrays["bias"] = packed_bias(spec, info.layout, added)
        given = {name: value for name, value in scalars.items() if value is not None}
        if spec.requantized:
            given = {"out_zero_point": 0, **given}
        defaults = {
            name: aligned(numbers(name, read_back(value), spec, None))
            for name, value in given.items()
        }
        self._bind(kernel, arrays, defaults)

    def _bind(
        self, kernel: Kernel, arrays: dict[str, np.ndarray], defaults: dict[str, np.ndarray]
    ) -> None:
        """Have the kernel's device ready for calls."""
        self._arrays, self._defaults = arrays, defaults
        self._executor: Executor = EXECUTORS[kernel.info.device](kernel, arrays, defaults)

    @property
    def kernel(self) -> Kernel:
        """The kernel that the weight was packed for."""
        return self._executor.kernel

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight with its sums, scales and bias."""
        return sum(array.nbytes for array in self._arrays.values())

    def __getstate__(self) -> dict[str, Any]:
        """The kernel and the arrays of the host."""
        return {"kernel": self.kernel, "_arrays": self._arrays, "_defaults": self._defaults}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Put the arrays where kernels can read them, which raises what `Kernel.bind` does."""
        arrays, defaults = (
            {name: aligned(array) for name, array in state[of].items()}
            for of in ("_arrays", "_defaults")
        )
        self._bind(state["kernel"], arrays, defaults)

    def __copy__(self) -> Linear:
        """A copy that uses the same memory."""
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> Linear:
        return self.duplicate()

    def duplicate(self) -> Linear:
        """A copy with the packed weight in other memory."""
        linear = object.__new__(type(self))
        linear.__setstate__(self.__getstate__())
        return linear

    def for_kernel(self, kernel: Kernel) -> Linear:
        """The packed weight, bound to another kernel of this spec and layout.

        Raises
        ------
        ArrayError
            The kernel reads another layout.
        """
        mine, other = self.kernel.info, kernel.info
        if (mine.layout, mine.arguments, mine.x_offset) != (
            other.layout,
            other.arguments,
            other.x_offset,
        ):
            raise ArrayError("the weight was packed for a kernel with another layout")
        linear = copy.copy(self)
        linear._executor = copy.copy(self._executor)
        linear._executor.kernel = kernel
        return linear

    def __call__(
        self,
        x: Any,
        out: Any = None,
        *,
        residual: Any = None,
        x_scale: npt.ArrayLike | None = None,
        x_zero_point: npt.ArrayLike | None = None,
        out_scale: npt.ArrayLike | None = None,
        out_zero_point: npt.ArrayLike | None = None,
        num_threads: int | None = None,
        offs: npt.ArrayLike | None = None,
    ) -> Any:
        """Y = X Wᵀ.

        Parameters
        ----------
        x : (..., k) of `spec.input`, or without one of `spec.activation` (int4:
            (..., ceil(k / 2)) uint8, see `pack_int4`), or a `QTensor`, which brings its scale and
            zero point. The product of the dimensions before the last one is M, which may be 0.
        out : (..., n) of `spec.out` to write to, where x lies; a new array like x (NumPy, torch, on
            a GPU also CuPy) when None.
        residual : (..., n) of `spec.residual_dtype`, when the spec has one, where x lies; it may be
            `out`, to which the product is then added.
        x_scale, x_zero_point : one for all rows, or when `spec.activation_scale` is "row" one for
            each, of the shape `x.shape[:-1]`, when it is "group" one for each group of k of each,
            `(*x.shape[:-1], groups)`; instead of the bound ones. A dynamic spec finds its own.
        out_scale, out_zero_point : scalars for int8 and uint8 outputs, instead of the bound ones.
            All four are checked; but float32 and int32 arrays on x's GPU are used as they are.
        num_threads : for this call only; a GPU has none.
        offs : (experts,) integers, when the spec has experts: where the rows of x that each
            multiplies end. They do not fall, and the last one is M; experts may have no rows.

        Returns
        -------
        `out`, or the new array. Where a dynamic spec meets a row of X with NaN or infinity, float
        results of that row are NaN and integer ones arbitrary; other rows are right. So it is with
        zero points where a row's range, from its least to its greatest number with zero among
        them, is wider than float32 holds. A static spec clips what is beyond the integers, and
        makes the least of them from NaN: finding it would take a pass over X.

        Raises
        ------
        ArrayError
            An array of the wrong shape, dtype, rank or device, an `out` that shares memory with x,
            or with a residual that is not `out` itself, or a scale that is missing.
        CudaError
            The driver refuses something; or a graph is being captured, and an array or number is
            on the host, or the weight not yet on the device.
        """
        if isinstance(x, QTensor):
            x, x_scale, x_zero_point = opened(self.kernel.spec, x, x_scale, x_zero_point)
        elif getattr(x, "ndim", None) != 2 and dimensions("x", x) != 2:
            per_row = {"x_scale": x_scale, "x_zero_point": x_zero_point}
            others: dict[str, Any] = {"out_scale": out_scale, "out_zero_point": out_zero_point}
            others |= {"num_threads": num_threads, "offs": offs}
            return self._of_rows(x, out, residual, per_row, **others)
        given: dict[str, Any] = {}
        if x_scale is not None:
            given["x_scale"] = x_scale
        if x_zero_point is not None:
            given["x_zero_point"] = x_zero_point
        if out_scale is not None:
            given["out_scale"] = out_scale
        if out_zero_point is not None:
            given["out_zero_point"] = out_zero_point
        if offs is not None:
            given["offs"] = offs
        return self._executor.call(x, out, residual, given, num_threads)

    def _of_rows(
        self, x: Any, out: Any, residual: Any, per_row: dict[str, Any], **others: Any
    ) -> Any:
        """The call for an x that is no matrix, on the matrix of its rows.

        `per_row` has the numbers that may come for each row.
        """
        n, columns = self.kernel.spec.n, self.kernel.spec.x_columns
        lead = shape_of("x", x)[:-1]
        x = as_rows("x", x, columns)
        rows = None if out is None else rows_to_write("out", out, (*lead, n))
        if residual is not None:
            residual = as_rows("residual", residual, n, lead)
        spec = self.kernel.spec
        within = (spec.groups,) if spec.activation_scale == "group" else ()
        flat = {name: numbers_of_rows(name, value, lead, within) for name, value in per_row.items()}
        y = self(x, rows, residual=residual, **flat, **others)
        return y.reshape((*lead, n)) if out is None else out

    def compute(self, m: int, x: Any, y: Any) -> None:
        """Write the product for `m` rows to `y`, where all that a call brings is x.

        For callers that have checked what `__call__` checks. x (m, k) and y (m, n) have the dtypes
        that the kernel takes (float16 and bfloat16 as uint16) and lie on its device, the elements
        of a row side by side; they are of any library that tvm_ffi reads.
        """
        self._executor.compute(m, x, y)


#: For one version more.
CudaLinear = Linear
