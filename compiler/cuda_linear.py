"""A kernel for GPUs with a packed weight: binding it once, and the call.

A call is one launch, or two where X must be made ready first (`cuda_frontend.prepare`). Constants
lie on each device that was called. What a call needs beyond its arguments is kept per stream, and
grows with M. A call whose arrays all lie on the device copies nothing and waits for nothing, so it
can be captured into a CUDA graph. The graph uses the memory of the stream that it was captured on,
so it must not run at the same time as calls on that stream or other graphs of it.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import ArrayError, CudaError
from .arrays import numpy_dtype
from .cuda_arrays import (
    DeviceArray,
    check_matrix,
    new_on_device,
    numbers_on_device,
    on_device,
    on_host,
    read_back,
)
from .linear import SCALARS, Bound, why_no
from .quantize import QTensor
from .spec import stored_as

if TYPE_CHECKING:
    from .cuda_kernel import CudaKernel, Launch

#: What vector loads and stores of rows need.
ALIGNMENT = 16
#: The device that computes on arrays of the host.
FIRST = 0


class CudaLinear(Bound):
    """A kernel with a packed weight on a GPU: y = linear(x). Made by `CudaKernel.bind`.

    Arrays on a device are read and written in place, on the stream on which the caller works:
    torch's or CuPy's current one. NumPy arrays, and torch tensors of the host, are copied to the
    first device and back. Rows may lie at any distance.
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
        self._gpu = kernel.gpu
        self._lock = threading.Lock()
        self._constants: dict[int, dict[str, int]] = {}
        #: Memory by device, stream and name: address and bytes.
        self._workspace: dict[tuple[int, int, str], tuple[int, int]] = {}
        self._allocated: list[tuple[int, int]] = []
        # At the process's exit the driver frees everything itself, and may be gone already.
        weakref.finalize(self, release, self._gpu, self._allocated).atexit = False
        self._on(FIRST, 0)

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
            An array of the wrong shape, dtype, rank or device, or a scale that is missing.
        CudaError
            The driver refuses something; or a graph is being captured, and an array or number is
            on the host, or the weight not yet on the device.
        """
        spec = self._spec
        if isinstance(x, QTensor):
            x, x_scale, x_zero_point = self._open(x, x_scale, x_zero_point)
        given = on_device("x", x)
        device, stream = (given.device, given.stream) if given else (FIRST, 0)
        with self._lock:
            if given:
                check_matrix("x", given, self._x_dtype, self._x_columns)
                m, source = given.shape[0], given
                plan = self.kernel.plan(m)
            else:
                host = on_host("x", x, self._x_dtype, self._x_columns)
                m = host.shape[0]
                plan = self.kernel.plan(m)
                source = self._upload("x", host, device, stream)
            shape = m, spec.n
            result = out
            if out is None:
                result = (
                    new_on_device(x, shape, self._out_dtype)
                    if given
                    else np.empty(shape, self._out_dtype)
                )
            y = self._target("out", result, shape, device, stream, given)
            addresses = {**self._on(device, stream), "y": y.address}
            numbers = {
                "m": m,
                "mi": plan.mi,
                "columns": spec.n,
                "aligned": int(is_aligned(y, self._out_dtype.itemsize)),
                "y_stride": y.stride,
            }
            if residual is not None and not spec.residual:
                raise ArrayError("a residual was given; the spec has residual=False")
            if spec.residual:
                added = self._residual(residual, shape, device, stream, given)
                addresses["residual"] = added.address
                numbers["residual_stride"] = added.stride
            scalars = {
                "x_scale": x_scale,
                "x_zero_point": x_zero_point,
                "out_scale": out_scale,
                "out_zero_point": out_zero_point,
            }
            for name, value in scalars.items():
                if value is not None and name not in self._names:
                    raise ArrayError(f"{name} was given; {why_no(name, spec)}")
                if name in self._names:
                    address = self._number(name, value, m, device, stream)
                    addresses[name] = address
            launches = self.kernel.info.launches
            if self._reads(source):
                addresses["x"], numbers["x_stride"] = source.address, source.stride
            else:
                made = self._prepared(m, device, stream)
                first = {**addresses, **made, "x": source.address}
                self._launch(
                    launches["prepare"], first, {"m": m, "x_stride": source.stride}, device, stream
                )
                addresses |= made
                addresses["x"] = made["xq"]
                numbers["x_stride"] = self.kernel.info.layout.x_columns
            self._launch(launches[plan.name], addresses, numbers, device, stream, plan.name)
            if not given:
                self._download(y, result, device, stream)
        return result

    def _launch(
        self,
        launch: Launch,
        addresses: dict[str, int],
        numbers: dict[str, int],
        device: int,
        stream: int,
        name: str = "prepare",
    ) -> None:
        """Launch one kernel."""
        x, y, z = (numbers[each] if isinstance(each, str) else each for each in launch.grid)
        values = [
            numbers[each] if each in numbers else addresses[each] for each in launch.arguments
        ]
        self.kernel.function(device, name)((x, y, z), stream, *values)

    def _on(self, device: int, stream: int) -> dict[str, int]:
        """Addresses of the weight and what belongs to it on a device; copied there once."""
        if device not in self._constants:
            self._not_captured(device, stream, "the weight must be copied to the device")
            self.kernel.function(device, "prepare")
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

    def _prepared(self, m: int, device: int, stream: int) -> dict[str, int]:
        """Memory for what `prepare` writes."""
        layout = self.kernel.info.layout
        sizes = {
            "xq": m * layout.x_columns,
            "x_scale": 4 * m,
            "x_zero_point": 4 * m,
            "x_sum": 4 * m * layout.sum_columns,
        }
        return {
            name: self._memory(name, sizes[name], device, stream)
            for name in self.kernel.info.prepared
        }

    def _number(
        self, name: str, value: npt.ArrayLike | None, m: int, device: int, stream: int
    ) -> int:
        """The address of a scale or zero point: of the call's, or of the bound one.

        One that is on the device is not looked at, which would mean to wait for it.
        """
        per_row = self._spec.activation_scale == "row" and name.startswith("x_")
        if value is None and name in self._defaults and not per_row:
            return self._on(device, stream)[f"bound {name}"]
        if value is None:
            value = self._defaults.get(name)
        if value is None:
            raise ArrayError(f"{name} is missing; give it to bind or to the call")
        dtype = np.dtype(SCALARS[name])
        there = numbers_on_device(name, value, dtype, m if per_row else 1, device)
        if there is not None:
            return there
        numbers = self._numbers(name, value, m)
        return self._copied(name, numbers, device, stream)

    def _residual(
        self,
        residual: Any,
        shape: tuple[int, int],
        device: int,
        stream: int,
        x: DeviceArray | None,
    ) -> DeviceArray:
        """The residual on the device."""
        if residual is None:
            raise ArrayError(f"residual is missing; the spec adds one of {shape}")
        dtype = numpy_dtype(self._spec.residual_dtype)
        there = on_device("residual", residual)
        same_side("residual", there, x)
        if there is None:
            host = on_host("residual", residual, dtype, shape[1])
            there = self._upload("residual", host, device, stream)
        else:
            check_matrix("residual", there, dtype, shape[1])
        if there.shape[0] != shape[0]:
            raise ArrayError(f"residual has {there.shape[0]} rows; expected {shape[0]}")
        return there

    def _target(
        self,
        name: str,
        out: Any,
        shape: tuple[int, int],
        device: int,
        stream: int,
        x: DeviceArray | None,
    ) -> DeviceArray:
        """Where results are written."""
        there = on_device(name, out)
        same_side(name, there, x)
        dtype = self._out_dtype
        if there is not None:
            if there.dtype != dtype.name or there.shape != shape:
                raise ArrayError(
                    f"{name} is {there.dtype}{there.shape}; expected {dtype.name}{shape}"
                )
            return there
        fits = isinstance(out, np.ndarray) and out.dtype == dtype and out.flags.writeable
        if not fits or out.shape != shape:
            found = getattr(out, "dtype", type(out).__name__)
            raise ArrayError(
                f"{name} is {found}{tuple(getattr(out, 'shape', ()))}; expected a writable NumPy "
                f"array {dtype.name}{shape} beside an x of the host"
            )
        address = self._memory("y", shape[0] * shape[1] * dtype.itemsize, device, stream)
        return DeviceArray(address, shape, shape[1], stored_as(dtype.name), device, stream)

    def _download(self, y: DeviceArray, out: np.ndarray, device: int, stream: int) -> None:
        """Copy results back to the host."""
        stored = numpy_dtype(stored_as(self._out_dtype.name))
        contiguous = np.empty(y.shape, stored)
        self._gpu.copy_from(device, contiguous, y.address, stream)
        out[...] = contiguous.view(self._out_dtype)

    def _upload(self, name: str, array: np.ndarray, device: int, stream: int) -> DeviceArray:
        """A copy on the device of a contiguous matrix of the host."""
        address = self._copied(name, array, device, stream)
        rows, columns = array.shape
        return DeviceArray(address, (rows, columns), columns, array.dtype.name, device, stream)

    def _copied(self, name: str, array: np.ndarray, device: int, stream: int) -> int:
        """The address of a copy of `array`."""
        self._not_captured(device, stream, f"{name} must be copied from the host")
        address = self._memory(name, array.nbytes, device, stream)
        self._gpu.copy_to(device, address, array, stream)
        return address

    def _memory(self, name: str, size: int, device: int, stream: int) -> int:
        """Memory of at least `size` bytes for one stream's calls."""
        key = device, stream, name
        address, there = self._workspace.get(key, (0, 0))
        if size > there:
            # Into a graph that is being captured goes the address, and not the allocation.
            # What was there may still be in use; it is freed with everything else.
            address = self._allocate(device, size)
            self._workspace[key] = address, size
        return address

    def _allocate(self, device: int, size: int) -> int:
        """New memory on a device, freed when this object is."""
        address = self._gpu.allocate(device, max(size, ALIGNMENT))
        self._allocated.append((device, address))
        return address

    def _not_captured(self, device: int, stream: int, what: str) -> None:
        """Refuse what no CUDA graph can hold."""
        if self._gpu.is_capturing(device, stream):
            raise CudaError(f"a CUDA graph is being captured, and {what}: call once before")


def is_aligned(array: DeviceArray, itemsize: int) -> bool:
    """Whether every row starts at a multiple of 16 bytes."""
    return array.address % ALIGNMENT == 0 and array.stride * itemsize % ALIGNMENT == 0


def same_side(name: str, array: DeviceArray | None, x: DeviceArray | None) -> None:
    """Refuse an array that lies elsewhere than x."""
    here, there = (f"CUDA device {a.device}" if a else "the host" for a in (array, x))
    if here != there:
        raise ArrayError(f"{name} is on {here}; expected it on {there}, as x")


def release(gpu: Any, allocated: list[tuple[int, int]]) -> None:
    """Give memory back to the devices."""
    for device, address in allocated:
        gpu.free(device, address)
