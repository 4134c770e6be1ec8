"""A kernel for GPUs with a packed weight: binding it once, and the call.

A call is one launch, or two where X must be made ready first (`cuda_frontend.prepare`). Constants
lie on each device that was called. What a call needs beyond its arguments is kept per stream, and
grows with M. A call whose arrays all lie on the device copies nothing and waits for nothing, so it
can be captured into a CUDA graph. The graph uses the memory of the stream that it was captured on,
so it must not run at the same time as calls on that stream or other graphs of it, nor when the
object is gone.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import ArrayError, CudaError
from ..formats.checks import SCALARS, missing, why_no
from ..formats.quantize import QTensor
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
    read_back,
)
from .linear import Bound
from .rows import dimensions

if TYPE_CHECKING:
    from .cuda_info import CudaTiling
    from .cuda_kernel import CudaKernel

#: What vector loads and stores of rows need.
ALIGNMENT = 16
#: The kernel that makes X ready for the others.
PREPARE = "prepare"
#: Attributes of a linear that are not pickled.
OF_PROCESS = ("_gpu", "_lock", "_constants", "_workspace", "_allocated")


class Place(NamedTuple):
    """Where work is done: a device and one of its streams."""

    device: int
    stream: int


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


class CudaLinear(Bound):
    """A kernel with a packed weight on a GPU: y = linear(x). Made by `CudaKernel.bind`.

    Arrays on a device are read and written in place, on the stream on which the caller works:
    torch's or CuPy's current one. NumPy arrays, and torch tensors of the host, are copied to the
    first device and back. Rows may lie at any distance. A copy uses the same memory on the device,
    a deep copy memory of its own.
    """

    def __init__(
        self,
        kernel: CudaKernel,
        w: QTensor,
        bias: npt.ArrayLike | None,
        scalars: dict[str, npt.ArrayLike | None],
    ) -> None:
        super().__init__(kernel, w, bias, {n: read_back(v) for n, v in scalars.items()})
        self.kernel = kernel
        self._bind()

    def _bind(self) -> None:
        """Have memory on devices, and the weight on the first one."""
        self._gpu = self.kernel.gpu
        self._lock = threading.Lock()
        self._constants: dict[int, dict[str, int]] = {}
        #: Memory by place and name: address and bytes.
        self._workspace: dict[tuple[Place, str], tuple[int, int]] = {}
        self._allocated: list[tuple[int, int]] = []
        # The memory is freed with the last copy that uses it, which is when the lock goes. At the
        # process's exit the driver frees everything itself, and may be gone already.
        weakref.finalize(self._lock, release, self._gpu, self._allocated).atexit = False
        self._on(FIRST)

    def __getstate__(self) -> dict[str, Any]:
        """All but what lies on devices, and what only this process has."""
        return {name: value for name, value in self.__dict__.items() if name not in OF_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Put the weight on the first device, which raises what `CudaKernel.bind` does."""
        self.__dict__.update(state)
        self._bind()

    def __deepcopy__(self, memo: dict[int, Any]) -> CudaLinear:
        """The same in other memory; nothing changes the arrays of the host."""
        linear = copy.copy(self)
        linear._bind()
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
    ) -> Any:
        """Y = X Wᵀ; see `Linear.__call__`.

        Parameters
        ----------
        x, residual : on a CUDA device, both on one; or both in the host's memory.
        out : where x lies; a new array of x's library when None.
        x_scale, x_zero_point, out_scale, out_zero_point : numbers or arrays of the host, which are
            checked; or float32 and int32 arrays on x's device, which are used as they are.

        Raises
        ------
        ArrayError
            An array of the wrong shape, dtype, rank or device, an `out` on a device that shares
            memory with x, or with a residual that is not `out` itself, or a scale that is missing.
        CudaError
            The driver refuses something; or a graph is being captured, and an array or number is
            on the host, or the weight not yet on the device.
        """
        if isinstance(x, QTensor):
            x, x_scale, x_zero_point = self._open(x, x_scale, x_zero_point)
        elif getattr(x, "ndim", None) != 2 and dimensions("x", x) != 2:
            numbers = {"x_scale": x_scale, "x_zero_point": x_zero_point}
            others = {"out_scale": out_scale, "out_zero_point": out_zero_point}
            return self._of_rows(x, out, residual, numbers, **others)
        scalars = {
            "x_scale": x_scale,
            "x_zero_point": x_zero_point,
            "out_scale": out_scale,
            "out_zero_point": out_zero_point,
        }
        with self._lock:
            call = self._begin(x)
            result, y = self._output(call, x, out)
            self._add_residual(call, residual, y)
            self._add_scalars(call, scalars)
            for plan, part in self._parts(call):
                self._add_x(part)
                self._launch(plan.name, part)
            if call.on_host and call.m:
                self._download(y, result, call.place)
        return result

    def _begin(self, x: Any) -> Call:
        """A call with `x` on a device, and the weight beside it."""
        given = on_device("x", x)
        if given is not None:
            check_matrix("x", given, self._x_dtype, self._x_columns)
            place, source = Place(given.device, given.stream), given
        else:
            host = on_host("x", x, self._x_dtype, self._x_columns)
            self.kernel.check_rows(host.shape[0])
            place, source = FIRST, self._upload("x", host, FIRST)
        self.kernel.check_rows(source.shape[0])
        numbers = {"columns": self._spec.n}
        return Call(place, given is None, source, {**self._on(place)}, numbers)

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
        address = self._memory("y", shape[0] * shape[1] * dtype.itemsize, call.place)
        return DeviceArray(address, shape, shape[1], stored_as(dtype.name), *call.place)

    def _add_residual(self, call: Call, residual: Any, y: DeviceArray) -> None:
        """The residual, on the device, among the call's arguments."""
        spec, shape = self._spec, (call.m, self._spec.n)
        if not spec.residual:
            if residual is not None:
                raise ArrayError("a residual was given; the spec has residual=False")
            return
        if residual is None:
            raise ArrayError(f"residual is missing; the spec adds one of {shape}")
        dtype = numpy_dtype(spec.residual_dtype)
        there = on_device("residual", residual)
        same_side("residual", there, call)
        if there is None:
            host = on_host("residual", residual, dtype, shape[1])
            there = self._upload("residual", host, call.place)
        else:
            check_matrix("residual", there, dtype, shape[1])
            written, read = y.span(self._out_dtype), there.span(dtype)
            if written != read:  # else each element is read by the thread that writes it
                refuse_overlap("out", written, "residual", read)
        if there.shape[0] != shape[0]:
            raise ArrayError(f"residual has {there.shape[0]} rows; expected {shape[0]}")
        call.addresses["residual"] = there.address
        call.numbers["residual_stride"] = there.stride

    def _add_scalars(self, call: Call, scalars: dict[str, npt.ArrayLike | None]) -> None:
        """Scales and zero points among the call's arguments."""
        for name, value in scalars.items():
            if name in self._names:
                call.addresses[name] = self._number(name, value, call)
            elif value is not None:
                raise ArrayError(f"{name} was given; {why_no(name, self._spec)}")

    def _number(self, name: str, value: npt.ArrayLike | None, call: Call) -> int:
        """The address of a scale or zero point: of the call's, or of the bound one.

        One that is on the device is not looked at, which would mean to wait for it.
        """
        per_row = self._spec.activation_scale == "row" and name.startswith("x_")
        if value is None and name not in self._defaults:
            raise missing(name)
        if value is None:
            return self._bound_rows(name, call) if per_row else call.addresses[f"bound {name}"]
        count, dtype = call.m if per_row else 1, np.dtype(SCALARS[name])
        there = numbers_on_device(name, value, dtype, count, call.place.device)
        if there is not None:
            return there
        return self._copied(name, self._numbers(name, value, call.m), call.place)

    def _bound_rows(self, name: str, call: Call) -> int:
        """The address of a bound number, repeated for at least as many rows as X has."""
        place, memory = call.place, f"bound {name}"
        address, there = self._workspace.get((place, memory), (0, 0))
        number = self._defaults[name]
        if there < call.m * number.itemsize:
            self._not_captured(place, f"{name} must be repeated for every row")
            address = self._memory(memory, call.m * number.itemsize, place)
            _, size = self._workspace[place, memory]
            rows = np.repeat(number, size // number.itemsize)
            self._gpu.copy_to(place.device, address, rows, place.stream)
        return address

    def _parts(self, call: Call) -> Iterator[tuple[CudaTiling, Call]]:
        """The call for as many rows at a time as offsets of int32 reach."""
        steps = {
            "y": call.numbers["y_stride"] * self._out_dtype.itemsize,
            "residual": call.numbers.get("residual_stride", 0)
            * numpy_dtype(self._spec.residual_dtype).itemsize,
        }
        if self._spec.activation_scale == "row":
            steps |= {
                name: np.dtype(SCALARS[name]).itemsize for name in ("x_scale", "x_zero_point")
            }
        strides = (value for name, value in call.numbers.items() if name.endswith("_stride"))
        most = min(self.kernel.most_rows, MAX_ELEMENTS // max(call.x.stride, *strides))
        for start in range(0, call.m, most):
            rows = min(most, call.m - start)
            plan = self.kernel.plan_of_part(rows)
            addresses = {
                name: address + start * steps.get(name, 0)
                for name, address in call.addresses.items()
            }
            x = call.x.rows(start, rows, self._x_dtype.itemsize)
            numbers = {**call.numbers, "m": rows, "mi": plan.mi}
            yield plan, Call(call.place, call.on_host, x, addresses, numbers)

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
            and info.layout.reads_in_place
            and is_aligned(x, 1)
        )

    def _prepared(self, call: Call) -> dict[str, int]:
        """Memory for what `PREPARE` writes."""
        layout = self.kernel.info.layout
        sizes = {
            "xq": call.m * layout.x_columns,
            "x_scale": 4 * call.m,
            "x_zero_point": 4 * call.m,
            "x_sum": 4 * call.m * layout.sum_columns,
        }
        return {
            name: self._memory(name, sizes[name], call.place) for name in self.kernel.info.prepared
        }

    def _launch(self, name: str, call: Call) -> None:
        """Launch one kernel."""
        launch, numbers, addresses = self.kernel.info.launches[name], call.numbers, call.addresses
        x, y, z = (numbers[each] if isinstance(each, str) else each for each in launch.grid)
        values = [
            numbers[each] if each in numbers else addresses[each] for each in launch.arguments
        ]
        self.kernel.function(call.place.device, name)((x, y, z), call.place.stream, *values)

    def _on(self, place: Place) -> dict[str, int]:
        """Addresses of the weight and what belongs to it on a device; copied there once."""
        device = place.device
        if device not in self._constants:
            self._not_captured(place, "the weight must be copied to the device")
            self.kernel.function(device, PREPARE)
            found = {}
            for name, array in self._arrays.items():
                found[name] = self._allocate(device, array.nbytes)
                self._gpu.copy_to(device, found[name], array, 0)
            for name, value in self._defaults.items():
                if value.shape == (1,):
                    found[f"bound {name}"] = self._allocate(device, value.nbytes)
                    self._gpu.copy_to(device, found[f"bound {name}"], value, 0)
            self._gpu.synchronize(device, 0)
            self._constants[device] = found
        return self._constants[device]

    def _download(self, y: DeviceArray, out: np.ndarray, place: Place) -> None:
        """Copy results back to the host."""
        stored = numpy_dtype(stored_as(self._out_dtype.name))
        contiguous = np.empty(y.shape, stored)
        self._gpu.copy_from(place.device, contiguous, y.address, place.stream)
        out[...] = contiguous.view(self._out_dtype)

    def _upload(self, name: str, array: np.ndarray, place: Place) -> DeviceArray:
        """A copy on the device of a contiguous matrix of the host."""
        address = self._copied(name, array, place)
        rows, columns = array.shape
        return DeviceArray(address, (rows, columns), columns, array.dtype.name, *place)

    def _copied(self, name: str, array: np.ndarray, place: Place) -> int:
        """The address of a copy of `array`."""
        self._not_captured(place, f"{name} must be copied from the host")
        address = self._memory(name, array.nbytes, place)
        if array.nbytes:
            self._gpu.copy_to(place.device, address, array, place.stream)
        return address

    def _memory(self, name: str, size: int, place: Place) -> int:
        """Memory of at least `size` bytes for one stream's calls."""
        address, there = self._workspace.get((place, name), (0, 0))
        if size > there:
            # Into a graph that is being captured goes the address, and not the allocation. So what
            # was there may still be in use, and is freed with everything else. Doubled, all of it
            # together is less than what takes its place, however M grows.
            size = max(size, 2 * there)
            address = self._allocate(place.device, size)
            self._workspace[place, name] = address, size
        return address

    def _allocate(self, device: int, size: int) -> int:
        """New memory on a device, freed with this object and its copies."""
        address = self._gpu.allocate(device, max(size, ALIGNMENT))
        self._allocated.append((device, address))
        return address

    def _not_captured(self, place: Place, what: str) -> None:
        """Refuse what no CUDA graph can hold."""
        if self._gpu.is_capturing(*place):
            raise CudaError(f"a CUDA graph is being captured, and {what}: call once before")


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


def release(gpu: Any, allocated: list[tuple[int, int]]) -> None:
    """Give memory back to the devices."""
    for device, address in allocated:
        gpu.free(device, address)
