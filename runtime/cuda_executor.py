"""A call on a GPU: the caller's arrays and numbers as addresses, and the launch of its kernels.

A call is one launch, or two where X must be made ready first (`cuda_frontend.prepare`). One whose
arrays all lie on the device copies nothing and waits for nothing, so it can be captured into a CUDA
graph. The graph uses the memory of the stream that it was captured on, so it must not run at the
same time as calls on that stream or other graphs of it, nor when the object is gone.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import ArrayError
from ..formats.checks import (
    SCALARS,
    by_row,
    check_offs,
    check_taken,
    missing,
    numbers,
    shape_of,
    takes,
    takes_residual,
)
from ..formats.spec import stored_as
from ..formats.values import numpy_dtype
from ..schedules.plan import MAX_ELEMENTS
from .arrays import refuse_overlap
from .cuda_arrays import (
    DeviceArray,
    check_matrix,
    new_on_device,
    numbers_on_device,
    on_device,
    on_host,
)
from .cuda_info import PREPARE, CudaTiling
from .cuda_memory import ALIGNMENT, Memory, Place
from .units import UnitSize, units_of

if TYPE_CHECKING:
    from .kernel import Kernel

#: Where arrays of the host are computed on.
FIRST = Place(0, 0)


@dataclass
class Call:
    """A call under way.

    Attributes
    ----------
    on_host : whether the caller's arrays are the host's.
    x : on the device, as it was given.
    addresses, numbers : what kernels take, by name.
    """

    place: Place
    on_host: bool
    x: DeviceArray
    addresses: dict[str, int]
    numbers: dict[str, int]

    @property
    def m(self) -> int:
        """Rows of X."""
        return self.x.shape[0]


class CudaExecutor:
    """As `linear.Executor`: a kernel for GPUs, and the weight on each device that was called."""

    def __init__(
        self, kernel: Kernel, arrays: dict[str, np.ndarray], defaults: dict[str, np.ndarray]
    ) -> None:
        self.kernel = kernel
        self._spec = spec = kernel.spec
        self._x_dtype, self._out_dtype = numpy_dtype(spec.x_dtype), numpy_dtype(spec.out)
        self._residual_dtype = numpy_dtype(spec.residual_dtype)
        self._defaults = defaults
        bound = {f"bound {name}": value for name, value in defaults.items()}
        self._memory = Memory(kernel.code.gpu, {**arrays, **bound})
        self._numbers = [name for name in SCALARS if takes(name, spec)]
        self._constants(FIRST)

    def call(
        self, x: Any, out: Any, residual: Any, given: dict[str, Any], num_threads: int | None
    ) -> Any:
        """As `linear.Executor`."""
        with self._memory.lock:
            call = self._begin(x)
            result, y = self._output(call, x, out)
            if takes_residual(self._spec, residual, call.m):
                self._add_residual(call, residual, y)
            ends = [call.m]
            if self._spec.experts is not None or "offs" in given:
                ends = check_offs(self._spec, given.pop("offs", None), call.m)
            for name in given:
                check_taken(name, self._spec)
            for name in self._numbers:
                call.addresses[name] = self._number(name, given.get(name), call)
            for tiling, part in self._parts(call, ends):
                self._add_x(part)
                self._launch(tiling.name, part)
            if call.on_host and call.m:
                self._download(y, result, call.place)
        return result

    def compute(self, m: int, x: Any, y: Any) -> None:
        """As `linear.Executor`."""
        self.call(x, y, None, {}, None)

    def _constants(self, place: Place) -> dict[str, int]:
        """Addresses of the weight, and of what belongs to it, on a device."""
        code = self.kernel.code
        return self._memory.constants(place, lambda: code.function(place.device, PREPARE))

    def _begin(self, x: Any) -> Call:
        """A call with `x` on a device, and the weight beside it."""
        given = on_device("x", x)
        dtype, columns = self._x_dtype, self._spec.x_columns
        if given is not None:
            check_matrix("x", given, dtype, columns)
            place, source = Place(given.device, given.stream), given
        else:
            host = on_host("x", x, dtype, columns)
            self.kernel.check_rows(host.shape[0])
            place, source = FIRST, self._memory.uploaded("x", host, FIRST)
        self.kernel.check_rows(source.shape[0])
        numbers = {"columns": self._spec.n}
        return Call(place, given is None, source, {**self._constants(place)}, numbers)

    def _output(self, call: Call, x: Any, out: Any) -> tuple[Any, DeviceArray]:
        """What the caller gets, and where kernels write it."""
        shape = call.m, self._spec.n
        if out is not None:
            result = out
        elif call.on_host:
            result = np.empty(shape, self._out_dtype)
        else:
            result = new_on_device(x, shape, self._out_dtype)
        y = self._target(result, shape, call)
        if out is not None and not call.on_host:
            refuse_overlap("out", y.span(self._out_dtype), "x", call.x.span(self._x_dtype))
        call.addresses["y"] = y.address
        call.numbers["y_stride"] = y.stride
        call.numbers["aligned"] = int(is_aligned(y, self._out_dtype.itemsize))
        return result, y

    def _target(self, out: Any, shape: tuple[int, int], call: Call) -> DeviceArray:
        """Where results for `out` are written."""
        there = on_device("out", out)
        same_side("out", there, call)
        dtype = self._out_dtype
        if there is not None:
            if there.dtype != dtype.name or there.shape != shape:
                raise ArrayError(f"out is {there.dtype}{there.shape}; expected {dtype.name}{shape}")
            return there
        fits = isinstance(out, np.ndarray) and out.dtype == dtype and out.flags.writeable
        if not fits or out.shape != shape:
            found = getattr(out, "dtype", type(out).__name__)
            raise ArrayError(
                f"out is {found}{tuple(getattr(out, 'shape', ()))}; expected a writable NumPy "
                f"array {dtype.name}{shape} beside an x of the host"
            )
        address = self._memory.of_calls("y", shape[0] * shape[1] * dtype.itemsize, call.place)
        return DeviceArray(address, shape, shape[1], stored_as(dtype.name), *call.place)

    def _add_residual(self, call: Call, residual: Any, y: DeviceArray) -> None:
        """The residual, on the device, among the call's arguments."""
        dtype = self._residual_dtype
        there = on_device("residual", residual)
        same_side("residual", there, call)
        if there is None:
            host = on_host("residual", residual, dtype, self._spec.n)
            there = self._memory.uploaded("residual", host, call.place)
        else:
            check_matrix("residual", there, dtype, self._spec.n)
            written, read = y.span(self._out_dtype), there.span(dtype)
            if written != read:  # else each element is read by the thread that writes it
                refuse_overlap("out", written, "residual", read)
        if there.shape[0] != call.m:
            raise ArrayError(f"residual has {there.shape[0]} rows; expected {call.m}")
        call.addresses["residual"] = there.address
        call.numbers["residual_stride"] = there.stride

    def _number(self, name: str, value: npt.ArrayLike | None, call: Call) -> int:
        """The address of a scale or zero point: of the call's, or of the bound one.

        One that is on the device is not looked at, which would mean to wait for it.
        """
        shape = shape_of(name, self._spec, call.m)
        if value is None:
            if name not in self._defaults:
                raise missing(name, self._spec)
            if by_row(name, self._spec):
                count = math.prod(shape)
                return self._memory.repeated(name, self._defaults[name], count, call.place)
            return call.addresses[f"bound {name}"]
        there = numbers_on_device(name, value, np.dtype(SCALARS[name]), shape, call.place.device)
        if there is not None:
            return there
        return self._memory.copied(name, numbers(name, value, self._spec, call.m), call.place)

    def _row_bytes(self, name: str) -> int:
        """Bytes of a scale's or zero point's numbers for a row of X."""
        return math.prod(shape_of(name, self._spec, 1)) * np.dtype(SCALARS[name]).itemsize

    def _parts(self, call: Call, ends: list[int]) -> Iterator[tuple[CudaTiling, Call]]:
        """The call for as many rows at a time as offsets of int32 reach.

        The rows of each expert, or of the only weight, end at `ends`.
        """
        y_stride, r_stride = (call.numbers.get(f"{n}_stride", 0) for n in ("y", "residual"))
        steps = {
            "y": y_stride * self._out_dtype.itemsize,
            "residual": r_stride * self._residual_dtype.itemsize,
            **{n: self._row_bytes(n) for n in SCALARS if by_row(n, self._spec)},
        }
        widest = max(call.x.stride, y_stride, r_stride)
        most = min(self.kernel.most_rows, MAX_ELEMENTS // widest)
        for rows in self.kernel.parts(call.m, most):
            m = len(rows)
            own = [min(max(end, rows.start), rows.stop) - rows.start for end in ends]
            tiling = self._tiling(own)
            addresses = {
                name: address + rows.start * steps.get(name, 0)
                for name, address in call.addresses.items()
            }
            x = call.x.rows(rows.start, m, self._x_dtype.itemsize)
            numbers = {**call.numbers, "m": m, "mi": -(-m // tiling.rows)}
            if self._spec.experts is not None:
                one = UnitSize(tiling.rows, tiling.rows, panels=1, least=1)
                table = np.array(units_of(own, one, threads=1), np.int32)
                numbers["mi"] = len(table)
                addresses["units"] = self._memory.copied("units", table, call.place)
            yield tiling, Call(call.place, call.on_host, x, addresses, numbers)

    def _tiling(self, ends: list[int]) -> CudaTiling:
        """How the rows of each expert, or of the only weight, are computed; the kernel keeps it."""
        live = sum(map(operator.lt, (0, *ends), ends))
        each = -(-ends[-1] // live)
        tiling: CudaTiling | None = self.kernel.ready.get(each)
        if tiling is None:
            experts = self._spec.experts or 1
            tiling = self.kernel.ready[each] = self.kernel.info.of_experts(each, experts)
        return tiling

    def _add_x(self, call: Call) -> None:
        """X among the call's arguments: where it lies, or as `PREPARE` makes it ready."""
        call.addresses["x"], call.numbers["x_stride"] = call.x.address, call.x.stride
        if self._reads(call.x):
            return
        made = self._prepared(call)
        call.addresses |= made
        self._launch(PREPARE, call)
        call.addresses["x"] = made["xq"]
        call.numbers["x_stride"] = self.kernel.info.layout.x_columns

    def _reads(self, x: DeviceArray) -> bool:
        """Whether the multiplication can read x where it lies."""
        info = self.kernel.info
        return (
            info.prepared == ("xq",)
            and self._spec.input is None
            and not self._spec.packed_activation
            and not self._spec.weight_order
            and info.layout.reads_in_place
            and is_aligned(x, 1)
        )

    def _prepared(self, call: Call) -> dict[str, int]:
        """Memory for what `PREPARE` writes."""
        layout = self.kernel.info.layout
        scales = layout.sum_columns if self._spec.x_groups > 1 else 1
        sizes = {
            "xq": call.m * layout.x_columns,
            "x_scale": 4 * call.m * scales,
            "x_zero_point": 4 * call.m * scales,
            "x_sum": 4 * call.m * layout.sum_columns,
        }
        return {
            name: self._memory.of_calls(name, sizes[name], call.place)
            for name in self.kernel.info.prepared
        }

    def _launch(self, name: str, call: Call) -> None:
        """Launch one kernel."""
        launch, numbers, addresses = self.kernel.info.launches[name], call.numbers, call.addresses
        x, y, z = (numbers[each] if isinstance(each, str) else each for each in launch.grid)
        values = [
            numbers[each] if each in numbers else addresses[each] for each in launch.arguments
        ]
        function = self.kernel.code.function(call.place.device, name)
        function((x, y, z), call.place.stream, *values)

    def _download(self, y: DeviceArray, out: np.ndarray, place: Place) -> None:
        """Copy results back to the host."""
        stored = numpy_dtype(stored_as(self._out_dtype.name))
        contiguous = np.empty(y.shape, stored)
        self._memory.gpu.copy_from(place.device, contiguous, y.address, place.stream)
        out[...] = contiguous.view(self._out_dtype)


def is_aligned(array: DeviceArray, itemsize: int) -> bool:
    """Whether every row starts at a multiple of 16 bytes."""
    return array.address % ALIGNMENT == 0 and array.stride * itemsize % ALIGNMENT == 0


def same_side(name: str, array: DeviceArray | None, call: Call) -> None:
    """Refuse an array that lies elsewhere than the call's x."""
    expected = None if call.on_host else call.place.device
    found = None if array is None else array.device
    if found != expected:
        here, there = ("the host" if d is None else f"CUDA device {d}" for d in (found, expected))
        raise ArrayError(f"{name} is on {here}; expected it on {there}, as x")
