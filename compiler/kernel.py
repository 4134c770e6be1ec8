"""Kernels at run time: a compiled module, the packing of a weight, and the call.

This module and what it imports need NumPy, tvm_ffi and libtvm_runtime.so, no compiler.
"""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArrayError, TargetError
from ..targets import WeightLayout, cpu_features
from . import runtime
from .quantize import QTensor, check_scale, check_zero_point
from .runtime import aligned, tvm_ffi
from .spec import MatmulSpec

#: Kernels compute offsets in int32.
MAX_ELEMENTS = 2**31 - 1


@dataclass(frozen=True)
class KernelInfo:
    """What a kernel is, apart from its code; goes to and from JSON in a kernel file.

    Attributes
    ----------
    variants : (function name, strategy, rows, blocks, cost of a tile of rows) of each function.
    block_rows : rows of X whose packed form stays in the cache while panels of W pass by.
    arguments : names of the array arguments, in order.
    """

    spec: MatmulSpec
    target: str
    instruction: str
    features: tuple[str, ...]
    architecture: str
    layout: WeightLayout
    arguments: tuple[str, ...]
    variants: tuple[tuple[str, str, int, int, float], ...]
    block_rows: int
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        fields = dataclasses.asdict(self)
        fields["spec"] = self.spec.to_json()
        return fields

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> KernelInfo:
        """The inverse of `to_dict`, also after a way through JSON."""
        return cls(
            **{
                **fields,
                "spec": MatmulSpec.from_json(fields["spec"]),
                "layout": WeightLayout(**fields["layout"]),
                "features": tuple(fields["features"]),
                "arguments": tuple(fields["arguments"]),
                "variants": tuple(tuple(v) for v in fields["variants"]),
            }
        )


@dataclass(frozen=True)
class Plan:
    """How one M is computed: `mo` blocks of `mi` tiles of rows, by the function `name`."""

    name: str
    strategy: str
    rows: int
    mo: int
    mi: int


class Kernel:
    """A compiled `MatmulSpec`; `bind` a weight and call the result, or call it with both.

    Made by `compile` or `load`. One kernel serves every M; see `report` for how.
    """

    def __init__(self, info: KernelInfo, module: Any, num_threads: int | None = None) -> None:
        self.info = info
        self.spec = info.spec
        self.num_threads = runtime.default_threads() if num_threads is None else num_threads
        self._module = module
        #: The module as the bytes of a shared library, once it was linked or loaded.
        self._library: bytes | None = None
        # For every M that was called: the function and its tile counts.
        self._ready: dict[int, tuple[Any, int, int]] = {}

    def __repr__(self) -> str:
        return f"Kernel({self.spec.to_json()}, target={self.info.target!r})"

    def plan(self, m: int) -> Plan:
        """Which function computes `m` rows, and on which grid of tiles.

        Raises
        ------
        ArrayError
            Not an M of this kernel.
        """
        spec = self.spec
        if spec.m is not None and m != spec.m:
            raise ArrayError(f"x has {m} rows; this kernel was compiled for m={spec.m}")
        # The last block of tiles may be whole blocks longer than m; half of the range is for that.
        most = MAX_ELEMENTS // 2 // max(self.info.layout.k_padded, spec.n)
        if m < 1 or m > most:
            raise ArrayError(f"x has {m} rows; expected 1 to {most}")
        name, strategy, rows, _, _ = min(self.info.variants, key=lambda v: -(-m // v[2]) * v[4])
        tiles = -(-m // rows)
        mo = -(-tiles // max(1, self.info.block_rows // rows))
        return Plan(name, strategy, rows, mo, -(-tiles // mo))

    def _prepare(self, m: int) -> tuple[Any, int, int]:
        """Resolve the function for `m` rows, once this machine is known to execute it."""
        plan = self.plan(m)
        check_machine(f"this kernel ({self.info.target})", self.info)
        runtime.library()
        ready = self._ready[m] = self._module[plan.name], plan.mo, plan.mi
        return ready

    def report(self, m: Sequence[int] = (1, 4, 16, 64, 512)) -> list[dict[str, Any]]:
        """For each M in `m`: the strategy, tile, instruction and tuned record that it uses."""
        rows = []
        for count in [self.spec.m] if self.spec.m else m:
            plan = self.plan(count)
            rows.append(
                {
                    "m": count,
                    "strategy": plan.strategy,
                    "function": plan.name,
                    "tiles": plan.mo * plan.mi,
                    "instruction": self.info.instruction,
                    "target": self.info.target,
                    "record": None,
                }
            )
        return rows

    def bind(
        self,
        w: QTensor,
        bias: npt.ArrayLike | None = None,
        *,
        x_scale: npt.ArrayLike | None = None,
        x_zero_point: npt.ArrayLike | None = None,
    ) -> Linear:
        """Pack a weight once for many calls.

        Parameters
        ----------
        w : (n, k), quantized as the spec says.
        bias : float32 (n,), when the spec has one.
        x_scale, x_zero_point : scalars for calls that do not bring their own.

        Raises
        ------
        ArrayError
            The weight or bias does not fit the spec.
        """
        return Linear(self, w, bias, x_scale, x_zero_point)

    def __call__(self, x: Any, w: QTensor, bias: npt.ArrayLike | None = None, **call: Any) -> Any:
        """`bind(w, bias)(x, **call)`: packs the weight anew in every call."""
        return self.bind(w, bias)(x, **call)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the kernel to one file that `load` reads; see `kernel_file`."""
        from .kernel_file import save

        save(self, path)


class Linear:
    """A kernel with a packed weight: y = linear(x). Made by `Kernel.bind`.

    Arrays may be NumPy, torch or anything with DLPack on the CPU. Rows may lie at any distance and
    any address; other strides (and read-only or big-endian arrays) are copied first.
    """

    def __init__(
        self,
        kernel: Kernel,
        w: QTensor,
        bias: npt.ArrayLike | None,
        x_scale: npt.ArrayLike | None,
        x_zero_point: npt.ArrayLike | None,
    ) -> None:
        spec, layout = kernel.spec, kernel.info.layout
        check_weight(spec, w)
        self.kernel = kernel
        integers = w.unpacked()
        constants = {
            "w": layout.pack(integers),
            "w_sum": pad_columns(integers.sum(axis=1, dtype=np.int32), layout),
            "w_scale": pad_columns(np.broadcast_to(w.scale, (spec.n,)), layout),
        }
        if spec.bias:
            values = np.asarray(bias if bias is not None else ())
            if values.shape != (spec.n,) or values.dtype.kind not in "fiu":
                raise ArrayError(
                    f"bias is {values.dtype.name}{values.shape}; expected float32({spec.n},)"
                )
            constants["bias"] = pad_columns(values.astype(np.float32), layout)
        elif bias is not None:
            raise ArrayError("a bias was given; the spec has bias=False")
        self._arrays = {
            name: aligned(array)
            for name, array in constants.items()
            if name in kernel.info.arguments
        }
        self._defaults: dict[str, np.ndarray] = {}
        if x_scale is not None:
            self._defaults["x_scale"] = self._per_row("x_scale", x_scale, None)
        if x_zero_point is not None:
            self._defaults["x_zero_point"] = self._per_row("x_zero_point", x_zero_point, None)
        # What every call hands over unchanged; x comes before, y and the tile counts after.
        self._names = kernel.info.arguments[1:-1]
        self._bound = [
            tvm_ffi.from_dlpack({**self._defaults, **self._arrays}[name])
            if name in self._arrays or name in self._defaults
            else None
            for name in self._names
        ]
        self._x_dtype = np.dtype(spec.activation)
        self._out_dtype = np.dtype(spec.out)
        self._per_call = {"x_scale", "x_zero_point"} & set(self._names)
        if spec.activation_scale == "row":
            self._bound = [
                None if n in self._per_call else b
                for n, b in zip(self._names, self._bound, strict=True)
            ]

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight with its sums, scales and bias."""
        return sum(array.nbytes for array in self._arrays.values())

    def __call__(
        self,
        x: Any,
        out: Any = None,
        *,
        x_scale: npt.ArrayLike | None = None,
        x_zero_point: npt.ArrayLike | None = None,
        num_threads: int | None = None,
    ) -> Any:
        """Y = X Wᵀ.

        Parameters
        ----------
        x : (M, k) of `spec.activation`, or a `QTensor`, which brings its scale and zero point.
        out : (M, n) of `spec.out` to write to; a new array like x (torch or NumPy) when None.
        x_scale, x_zero_point : scalar, or (M,) when `spec.activation_scale` is "row"; instead of
            the bound ones.
        num_threads : for this call only.

        Returns
        -------
        `out`, or the new array.

        Raises
        ------
        ArrayError
            An array of the wrong shape, dtype, rank or device, or a scale that is missing.
        """
        kernel = self.kernel
        spec = kernel.spec
        if isinstance(x, QTensor):
            x, x_scale, x_zero_point = self._open(x, x_scale, x_zero_point)
        source = import_array("x", x, self._x_dtype, spec.k)
        m = source.shape[0]
        function, mo, mi = kernel._ready.get(m) or kernel._prepare(m)
        if out is None:
            result = new_array(x, (m, spec.n), self._out_dtype)
            y = tvm_ffi.from_dlpack(result)
        else:
            result, y = out, export_array(out, self._out_dtype, (m, spec.n), x)
        bound = self._bound
        if self._per_call and (x_scale is not None or x_zero_point is not None or None in bound):
            bound = self._with_call(bound, m, x_scale, x_zero_point)
        runtime.use_threads(kernel.num_threads if num_threads is None else num_threads)
        function(source, *bound, y, mo, mi)
        return result

    def _open(self, x: QTensor, x_scale: Any, x_zero_point: Any) -> tuple[np.ndarray, Any, Any]:
        """The integers, scale and zero point of a quantized activation."""
        spec = self.kernel.spec
        if x.dtype != spec.activation or x.shape[1] != spec.k:
            raise ArrayError(
                f"x is {x.dtype}{x.shape}; expected {spec.activation} of (M, {spec.k})"
            )
        if x_scale is not None or x_zero_point is not None:
            raise ArrayError("x is a QTensor, which has a scale of its own; x_scale was given too")
        if x.zero_point is not None and not spec.activation_zero_point and x.zero_point.any():
            raise ArrayError("x has zero points; the spec has activation_zero_point=False")
        scale = x.scale if "x_scale" in self._names else None
        zero = x.zero_point
        if zero is None and spec.activation_zero_point:
            zero = np.zeros(x.scale.shape, np.int32)
        return x.data, scale, zero if spec.activation_zero_point else None

    def _with_call(self, bound: list[Any], m: int, x_scale: Any, x_zero_point: Any) -> list[Any]:
        """`bound` with this call's activation scale and zero point in place."""
        given = {"x_scale": x_scale, "x_zero_point": x_zero_point}
        arguments = list(bound)
        for i, name in enumerate(self._names):
            if name not in self._per_call:
                continue
            value = given[name]
            if value is None and arguments[i] is not None:
                continue
            if value is None:
                value = self._defaults.get(name)
            if value is None:
                raise ArrayError(f"{name} is missing; give it to bind or to the call")
            arguments[i] = tvm_ffi.from_dlpack(self._per_row(name, value, m))
        return arguments

    def _per_row(self, name: str, value: npt.ArrayLike, m: int | None) -> np.ndarray:
        """A scale or zero point in the shape that the kernel takes: (1,), or (m,) for rows."""
        spec = self.kernel.spec
        given = np.asarray(value)
        rows = spec.activation_scale == "row" and m is not None
        if given.size != 1 and not (rows and given.shape == (m,)):
            expected = f"a scalar or ({m},)" if rows else "a scalar"
            raise ArrayError(f"{name} has shape {given.shape}; expected {expected}")
        shape = (m,) if rows and m is not None else (1,)
        values = np.empty(shape, np.float32 if name == "x_scale" else np.int32)
        if name == "x_zero_point" and given.dtype.kind not in "iu":
            raise ArrayError(f"x_zero_point is {given.dtype.name}; expected integers")
        if given.dtype.kind not in "fiu":
            raise ArrayError(f"{name} is {given.dtype.name}; expected numbers")
        values[...] = given.reshape(-1)
        if name == "x_scale":
            check_scale(values, values.shape)
        else:
            check_zero_point(values, values.shape, spec.activation)
        return aligned(values)


def check_machine(name: str, info: KernelInfo) -> None:
    """Refuse code that this CPU cannot execute; `name` is what the message calls it."""
    if info.architecture != platform.machine():
        raise TargetError(f"{name} needs {info.architecture}; this machine is {platform.machine()}")
    if missing := sorted(set(info.features) - cpu_features()):
        raise TargetError(f"{name} needs {', '.join(missing)}, which this CPU lacks")


def check_weight(spec: MatmulSpec, w: object) -> None:
    """Refuse a weight that is not quantized as `spec` says."""
    if not isinstance(w, QTensor):
        raise ArrayError(f"w is {type(w).__name__}; expected a QTensor, see quantize")
    given = (w.dtype, w.shape, w.group_size, w.zero_point is not None and bool(w.zero_point.any()))
    expected = (spec.weight, (spec.n, spec.k), spec.group_size, spec.weight_zero_point)
    if given[:3] != expected[:3]:
        raise ArrayError(
            f"w is {given[0]}{given[1]} with group_size={given[2]}; "
            f"expected {expected[0]}{expected[1]} with group_size={expected[2]}"
        )
    if given[3] and not expected[3]:
        raise ArrayError("w has zero points; the spec has weight_zero_point=False")


def pad_columns(values: np.ndarray, layout: WeightLayout) -> np.ndarray:
    """One number per column, with zeros for the columns that pad N."""
    padded = np.zeros(layout.n_blocks * layout.lanes, values.dtype)
    padded[: layout.n] = values
    return padded


def import_array(name: str, x: Any, dtype: np.dtype, columns: int) -> Any:
    """`x` as a tvm_ffi tensor whose rows are contiguous; copies what is not."""
    if not isinstance(x, np.ndarray):
        return import_dlpack(name, x, dtype, columns)
    if x.ndim != 2 or x.shape[1] != columns or x.dtype != dtype:
        raise ArrayError(f"{name} is {x.dtype.name}{x.shape}; expected {dtype.name}(M, {columns})")
    row, column = x.strides
    size = dtype.itemsize
    fits = (
        column == size
        and columns * size <= row <= MAX_ELEMENTS // max(1, x.shape[0])
        and not row % size
        and x.flags.writeable
        and dtype.isnative
    )
    return tvm_ffi.from_dlpack(x if fits else np.array(x, dtype.newbyteorder("="), order="C"))


def import_dlpack(name: str, x: Any, dtype: np.dtype, columns: int) -> Any:
    """As `import_array`, for arrays of other libraries."""
    if not hasattr(x, "__dlpack__"):
        raise ArrayError(
            f"{name} is {type(x).__name__}; expected an array (NumPy, torch, DLPack) or a QTensor"
        )
    try:
        tensor = tvm_ffi.from_dlpack(x)
    except Exception as error:
        raise ArrayError(f"{name} cannot be read through DLPack: {error}") from error
    device = str(tensor.device)
    if not device.startswith("cpu"):
        raise ArrayError(f"{name} is on {device}; this kernel reads arrays of the CPU")
    shape, given = tuple(tensor.shape), str(tensor.dtype)
    if len(shape) != 2 or shape[1] != columns or given != dtype.name:
        raise ArrayError(f"{name} is {given}{shape}; expected {dtype.name}(M, {columns})")
    row, column = tensor.strides
    if column == 1 and columns <= row <= MAX_ELEMENTS // max(1, shape[0]):
        return tensor
    return tvm_ffi.from_dlpack(np.array(np.from_dlpack(x), order="C"))


def export_array(out: Any, dtype: np.dtype, shape: tuple[int, int], x: Any) -> Any:
    """The caller's output as a tensor that a kernel may write; what does not fit is an error."""
    array = out
    if not isinstance(out, np.ndarray):
        try:
            array = np.from_dlpack(out)
        except Exception as error:
            raise ArrayError(f"out cannot be written through DLPack: {error}") from error
    if array.shape != shape or array.dtype != dtype:
        raise ArrayError(f"out is {array.dtype.name}{array.shape}; expected {dtype.name}{shape}")
    row, column = array.strides
    if (
        not dtype.isnative
        or (isinstance(out, np.ndarray) and not out.flags.writeable)
        or column != dtype.itemsize
        or row < shape[1] * dtype.itemsize
        or row % dtype.itemsize
        or row * shape[0] > MAX_ELEMENTS * dtype.itemsize
    ):
        raise ArrayError(
            f"out has strides {array.strides}; expected a writable array with contiguous rows"
        )
    if isinstance(x, np.ndarray) and np.may_share_memory(array, x):
        raise ArrayError("out shares memory with x; expected memory of its own")
    return tvm_ffi.from_dlpack(out)


def new_array(like: Any, shape: tuple[int, int], dtype: np.dtype) -> Any:
    """An empty array of the library that `like` comes from, torch or NumPy."""
    if type(like).__module__.partition(".")[0] == "torch":
        import torch

        return torch.empty(shape, dtype=getattr(torch, dtype.name))
    return np.empty(shape, dtype)
