"""A kernel with a packed weight: binding it once, and the call.

Like `kernel`, this needs NumPy, tvm_ffi and libtvm_runtime.so, no compiler.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import ArrayError
from ..formats.checks import SCALARS, check_bias, check_weight, missing, numbers, opened, why_no
from ..formats.integers import INTEGERS
from ..formats.quantize import QTensor
from ..formats.spec import MatmulSpec
from ..formats.values import FLOAT32_MAX, numpy_dtype
from ..schedules.arguments import rows_of_x
from ..targets import WeightLayout
from ..targets.cuda_layout import CudaLayout
from . import threads
from .arrays import (
    apart,
    copy_of,
    export_array,
    import_array,
    new_array,
    new_tensor,
    refuse_overlap,
    rows_of,
    span_of,
)
from .memory import aligned, aligned_empty
from .rows import as_rows, dimensions, numbers_of_rows, rows_to_write, shape_of
from .tvm_runtime import tvm_ffi

if TYPE_CHECKING:
    from .cuda_kernel import CudaKernel
    from .kernel import Kernel

#: Weights that are packed at a time.
PIECE = 2 << 20

#: Numbers without dimensions, as most callers have a scale, and between which of them float32's
#: nearest is positive and finite.
PLAIN = (float, np.float32)
PLAIN_SCALES = float(np.finfo(np.float32).smallest_subnormal), FLOAT32_MAX
#: Rows up to which one number for all of them is kept, repeated, for later calls.
KEPT_ROWS = 4096

B = TypeVar("B", bound="Bound")


class Bound:
    """A weight that was checked and packed for a kernel, on whatever device that runs."""

    def __init__(
        self,
        kernel: Kernel | CudaKernel,
        w: QTensor,
        bias: npt.ArrayLike | None,
        scalars: dict[str, npt.ArrayLike | None],
    ) -> None:
        spec, layout = kernel.spec, kernel.info.layout
        check_weight(spec, w)
        self._spec = spec
        # What every call hands over; x comes before, y and the tile counts after.
        self._names = kernel.info.arguments[1:-1]
        self._arrays = packed_weight(spec, layout, kernel.info.x_offset, w, self._names)
        added = check_bias(spec, bias)
        if added is not None:
            self._arrays["bias"] = aligned(layout.pack_columns(added[:, None]))
        self._defaults = {
            name: self._numbers(name, value, None)
            for name, value in scalars.items()
            if value is not None
        }
        if spec.requantized and "out_zero_point" not in self._defaults:
            self._defaults["out_zero_point"] = self._numbers("out_zero_point", 0, None)
        self._x_dtype = numpy_dtype(
            "uint8" if spec.packed_activation else spec.input or spec.activation
        )
        self._x_columns = -(-spec.k // 2) if spec.packed_activation else spec.k
        self._out_dtype = numpy_dtype(spec.out)

    def __copy__(self: B) -> B:
        """A copy that uses the same memory."""
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight with its sums, scales and bias."""
        return sum(array.nbytes for array in self._arrays.values())

    def _open(self, x: QTensor, x_scale: Any, x_zero_point: Any) -> tuple[np.ndarray, Any, Any]:
        """The integers, scale and zero point of a quantized activation."""
        return opened(self._spec, x, x_scale, x_zero_point)

    def _of_rows(
        self: Any, x: Any, out: Any, residual: Any, numbers: dict[str, Any], **others: Any
    ) -> Any:
        """The call for an x that is no matrix, on the matrix of its rows.

        `numbers` are those that may come for each row.
        """
        spec = self._spec
        lead = shape_of("x", x)[:-1]
        x = as_rows("x", x, self._x_columns)
        rows = None if out is None else rows_to_write("out", out, (*lead, spec.n))
        if residual is not None:
            residual = as_rows("residual", residual, spec.n, lead)
        flat = {name: numbers_of_rows(name, value, lead) for name, value in numbers.items()}
        y = self(x, rows, residual=residual, **flat, **others)
        return y.reshape((*lead, spec.n)) if out is None else out

    def _numbers(self, name: str, value: npt.ArrayLike, m: int | None) -> np.ndarray:
        """A scale or zero point in the shape that the kernel takes: (1,), or (m,) for rows."""
        return aligned(numbers(name, value, self._spec, m))


class Linear(Bound):
    """A kernel with a packed weight: y = linear(x). Made by `Kernel.bind`.

    Arrays may be NumPy, torch or anything with DLPack on the CPU. Rows may lie at any distance and
    any address; other strides (and read-only or big-endian arrays) are copied first. A tensor that
    requires a gradient is refused while torch records, because none would be computed.
    """

    def __init__(
        self,
        kernel: Kernel,
        w: QTensor,
        bias: npt.ArrayLike | None,
        scalars: dict[str, npt.ArrayLike | None],
    ) -> None:
        super().__init__(kernel, w, bias, scalars)
        self.kernel = kernel
        self._bind()

    def _bind(self) -> None:
        """Have tensors for what every call hands over."""
        #: The arguments of the last call that brought none but x, and its rows.
        self._last: tuple[int, list[Any]] = 0, []
        bound = {**self._arrays, **{n: v for n, v in self._defaults.items() if v.shape == (1,)}}
        if self._spec.activation_scale == "row":
            # One number per row, and how many rows there are only a call knows.
            for name in rows_of_x(self._spec):
                bound.pop(name, None)
        self._bound = [
            tvm_ffi.from_dlpack(bound[name]) if name in bound else None for name in self._names
        ]
        self._complete = None not in self._bound

    def __getstate__(self) -> dict[str, Any]:
        """All but the tensors, which lie in this process's memory."""
        of_process = ("_bound", "_last")
        return {name: value for name, value in self.__dict__.items() if name not in of_process}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Put the arrays where kernels can read them."""
        self.__dict__.update(state)
        self._arrays = {name: aligned(array) for name, array in self._arrays.items()}
        self._defaults = {name: aligned(array) for name, array in self._defaults.items()}
        self._bind()

    def __deepcopy__(self, memo: dict[int, Any]) -> Linear:
        return self.duplicate()

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
        linear.kernel = kernel
        return linear

    def duplicate(self) -> Linear:
        """A copy with the packed weight in other memory."""
        linear = copy.copy(self)
        linear._last = 0, []
        linear._arrays = {name: aligned(array) for name, array in self._arrays.items()}
        linear._bound = [
            tvm_ffi.from_dlpack(linear._arrays[name]) if name in linear._arrays else bound
            for name, bound in zip(self._names, self._bound, strict=True)
        ]
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
    ) -> Any:
        """Y = X Wᵀ.

        Parameters
        ----------
        x : (..., k) of `spec.input`, or without one of `spec.activation` (int4:
            (..., ceil(k / 2)) uint8, see `pack_int4`), or a `QTensor`, which brings its scale and
            zero point. The product of the dimensions before the last one is M, which may be 0.
        out : (..., n) of `spec.out` to write to; a new array like x (torch or NumPy) when None.
        residual : (..., n) of `spec.residual_dtype`, when the spec has one; it may be `out`, to
            which the product is then added.
        x_scale, x_zero_point : one for all rows, or when `spec.activation_scale` is "row" one for
            each, of the shape `x.shape[:-1]`; instead of the bound ones. A dynamic spec finds its
            own.
        out_scale, out_zero_point : scalars for int8 and uint8 outputs, instead of the bound ones.
        num_threads : for this call only.

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
            An array of the wrong shape, dtype, rank or device, or a scale that is missing.
        """
        kernel = self.kernel
        spec = kernel.spec
        if isinstance(x, QTensor):
            x, x_scale, x_zero_point = self._open(x, x_scale, x_zero_point)
        elif getattr(x, "ndim", None) != 2 and dimensions("x", x) != 2:
            numbers = {"x_scale": x_scale, "x_zero_point": x_zero_point}
            others = {"out_scale": out_scale, "out_zero_point": out_zero_point}
            return self._of_rows(x, out, residual, numbers, num_threads=num_threads, **others)
        source = import_array("x", x, self._x_dtype, self._x_columns)
        m = x.shape[0] if isinstance(x, np.ndarray) else source.shape[0]
        shape = m, spec.n
        if out is None:
            result = new_array(x, shape, self._out_dtype)
            y = new_tensor(result, self._out_dtype)
        else:
            result, y = out, export_array("out", out, self._out_dtype, shape)
            if not apart(x, out):
                written = span_of(y, self._out_dtype.itemsize)
                refuse_overlap("out", written, "x", span_of(source, self._x_dtype.itemsize))
        if (
            x_scale is not None
            or x_zero_point is not None
            or out_scale is not None
            or out_zero_point is not None
            or residual is not None
        ):
            given = {
                "x_scale": x_scale,
                "x_zero_point": x_zero_point,
                "out_scale": out_scale,
                "out_zero_point": out_zero_point,
            }
            bound = self._with_call(m, given, residual, y)
        else:
            bound = self._bound if self._complete else self._completed(m)
        count = kernel._num_threads if num_threads is None else threads.check_threads(num_threads)
        self._launch(m, source, bound, y, count)
        return result

    def compute(self, m: int, x: Any, y: Any) -> None:
        """Write the product for `m` rows to `y`, where all that a call brings is x.

        For callers that have checked what `__call__` checks. x (m, k) and y (m, n) have the dtypes
        that the kernel takes (float16 and bfloat16 as uint16) and lie on the CPU, the elements of a
        row side by side; they are of any library that tvm_ffi reads.
        """
        bound = self._bound if self._complete else self._completed(m)
        self._launch(m, x, bound, y, self.kernel._num_threads)

    def _launch(self, m: int, x: Any, bound: list[Any], y: Any, num_threads: int | None) -> None:
        """Run the kernel's function for `m` rows on these arguments."""
        ready = self.kernel._ready.get(m) or self.kernel._prepare(m)
        if ready is None:
            self._in_parts(m, [x, *bound, y], num_threads)
        else:
            function, mo, mi, work, best = ready
            threads.use(num_threads, work, best)
            function(x, *bound, y, mo, mi)

    def _in_parts(self, m: int, arguments: list[Any], num_threads: int | None) -> None:
        """Compute more rows than a function does at a time, or none."""
        names = ["x", *self._names, "y"]
        of_rows = rows_of_x(self._spec)
        arguments = [tvm_ffi.from_dlpack(argument) for argument in arguments]
        _, size = self.kernel.parts(m)
        for start in range(0, m, max(1, size)):
            function, mo, mi, work, best = self.kernel._function(min(size, m - start))
            part = [
                rows_of(argument, start, min(size, m - start)) if name in of_rows else argument
                for name, argument in zip(names, arguments, strict=True)
            ]
            threads.use(num_threads, work, best)
            function(*part, mo, mi)

    @property
    def _columns_overlap(self) -> bool:
        """Whether some columns are computed twice, the second time from a residual that is gone."""
        lanes = self.kernel.info.layout.lanes
        return self._spec.n > lanes and self._spec.n % lanes != 0

    def _completed(self, m: int) -> list[Any]:
        """The bound arguments with bound numbers repeated for every row."""
        rows, arguments = self._last
        if rows != m:
            arguments = self._with_call(m, {}, None, None)
            self._last = m, arguments
        return arguments

    def _with_call(self, m: int, given: dict[str, Any], residual: Any, y: Any) -> list[Any]:
        """The bound arguments with this call's own in place."""
        spec = self._spec
        arguments = list(self._bound)
        for name, value in given.items():
            if value is None:
                continue
            if name not in self._names:
                raise ArrayError(f"{name} was given; {why_no(name, spec)}")
            arguments[self._names.index(name)] = self._tensor(name, value, m)
        if residual is not None and not spec.residual:
            raise ArrayError("a residual was given; the spec has residual=False")
        if not self._complete:
            for i, name in enumerate(self._names):
                if name == "residual":
                    arguments[i] = self._residual(residual, m, y)
                elif arguments[i] is None:
                    if name not in self._defaults:
                        raise missing(name)
                    arguments[i] = self._tensor(name, self._defaults[name][0], m)
        return arguments

    def _tensor(self, name: str, value: Any, m: int) -> Any:
        """`_numbers` as a tensor, in a fraction of the time for what is one plain number."""
        number = plain_number(name, value, self._spec)
        if number is None:
            return tvm_ffi.from_dlpack(self._numbers(name, value, m))
        rows = self._spec.activation_scale == "row" and name.startswith("x_")
        return repeated(number, SCALARS[name], m if rows else 1)

    def _residual(self, residual: Any, m: int, y: Any) -> Any:
        """The residual as a kernel reads it."""
        spec = self.kernel.spec
        if residual is None:
            raise ArrayError(f"residual is missing; the spec adds one of ({m}, {spec.n})")
        dtype = numpy_dtype(spec.residual_dtype)
        added = import_array("residual", residual, dtype, spec.n)
        if added.shape[0] != m:
            raise ArrayError(f"residual has {added.shape[0]} rows; expected {m}")
        written, read = span_of(y, self._out_dtype.itemsize), span_of(added, dtype.itemsize)
        if written != read:
            refuse_overlap("out", written, "residual", read)
        elif self._columns_overlap:
            return copy_of(added)
        return added


def plain_number(name: str, value: Any, spec: MatmulSpec) -> Any:
    """`value` if it is one number that `numbers` would take as it is, else None."""
    if type(value) is np.ndarray and value.ndim == 0:
        value = value[()]
    if SCALARS[name] is np.float32:
        least, greatest = PLAIN_SCALES
        return value if isinstance(value, PLAIN) and least <= value <= greatest else None
    first, last = INTEGERS[spec.activation if name == "x_zero_point" else spec.out].range
    return value if type(value) in (int, np.int32) and first <= value <= last else None


def repeated(number: float, dtype: Any, count: int) -> Any:
    """A tensor that holds `number` so often, which nothing changes."""
    return kept(number, dtype, count) if count <= KEPT_ROWS else filled(number, dtype, count)


def filled(number: float, dtype: Any, count: int) -> Any:
    """A new tensor of `number`."""
    array = aligned_empty((count,), dtype)
    array[...] = number
    return tvm_ffi.from_dlpack(array)


kept = functools.lru_cache(maxsize=64)(filled)


def packed_weight(
    spec: MatmulSpec,
    layout: WeightLayout | CudaLayout,
    x_offset: int,
    w: QTensor,
    names: Collection[str],
) -> dict[str, np.ndarray]:
    """The arrays of `names` that a kernel reads of a weight, in its private layout and aligned.

    Packed some rows at a time, which leaves beside the result a few of these pieces in memory.
    """
    arrays: dict[str, np.ndarray] = {}
    for rows in row_pieces(spec.n, layout.lanes, spec.k):
        some = dataclasses.replace(layout, n=rows.stop - rows.start)
        packed = packed_rows(spec, some, x_offset, part_of(w, rows))
        if "w_own" in names and isinstance(some, WeightLayout):
            packed["w_own"] = some.pair_sums(packed["w"])
        first = rows.start // layout.lanes
        for name in packed.keys() & set(names):
            array = packed[name]
            if name not in arrays:
                arrays[name] = aligned_empty((layout.n_blocks, *array.shape[1:]), array.dtype)
            arrays[name][first : first + len(array)] = array
    return arrays


def row_pieces(n: int, lanes: int, k: int) -> Iterator[slice]:
    """Rows of W that are packed at a time: whole blocks, and at the end what a block overlaps."""
    size = max(1, PIECE // (k * lanes)) * lanes
    start = 0
    while start < n:
        stop = start + size
        if n - stop < lanes:
            stop = n
        yield slice(start, stop)
        start = stop


def part_of(w: QTensor, rows: slice) -> QTensor:
    """Some rows of a quantized matrix."""

    def some(values: np.ndarray | None) -> np.ndarray | None:
        return values if values is None or not values.ndim else values[rows]

    shape = rows.stop - rows.start, w.shape[1]
    scale, zero_point = some(w.scale), some(w.zero_point)
    assert scale is not None
    return QTensor(w.data[rows], scale, zero_point, w.dtype, w.group_size, shape)


def packed_rows(
    spec: MatmulSpec, layout: WeightLayout | CudaLayout, x_offset: int, w: QTensor
) -> dict[str, np.ndarray]:
    """What a kernel reads of a weight, or of some rows of one whose layout is that of as many."""
    integers = w.unpacked()
    size = layout.group_size or spec.k
    starts = np.arange(0, spec.k, size)
    groups = len(starts)
    zero = np.zeros((len(integers), groups), np.int32)
    if w.zero_point is not None:
        zero += np.reshape(w.zero_point, (-1, groups) if w.zero_point.ndim else ())
    sums = np.add.reduceat(integers, starts, axis=1, dtype=np.int32)
    sums -= zero * np.diff(np.append(starts, spec.k)).astype(np.int32)
    if not spec.activation_zero_point:
        sums *= np.int32(x_offset)  # the whole correction
    scale = np.reshape(w.scale, (-1, groups) if w.scale.ndim else (1, 1))
    return {
        "w": layout.pack(integers),
        "w_sum": layout.pack_columns(sums),
        "w_zero_point": layout.pack_columns((zero + layout.offset).astype(layout.dtype)),
        "w_scale": layout.pack_columns(np.broadcast_to(scale, zero.shape)),
    }
