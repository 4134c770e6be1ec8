"""The CUDA driver as kernels need it at run time, over `libcuda` and nothing else.

What is loaded and allocated lives in the device's primary context, which is the one of torch and
CuPy, so their arrays and streams are usable as they are. A call makes that context current where
another one is, and puts the other one back.

`gpu` says what `Driver`, `Module` and `Function` do.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from ctypes import c_float, c_int, c_uint64, c_void_p
from typing import Any

import numpy as np

from ..errors import CudaError, TargetError
from . import libcuda
from .gpu import Device as Device
from .gpu import Driver as Driver
from .gpu import Function as Function
from .gpu import Graph as Graph
from .gpu import Module as Module
from .gpu import Triple as Triple
from .libcuda import Library, relaxed


class CudaDriver:
    """The GPUs of this machine; `Driver` says what the methods do.

    Raises
    ------
    TargetError
        No driver, or none that works.
    """

    def __init__(self) -> None:
        self.library = Library()
        self._lock = threading.Lock()
        self._contexts: dict[int, int] = {}

    def devices(self) -> tuple[Device, ...]:
        """As `Driver`."""
        count = c_int()
        self.library.call("cuDeviceGetCount", count)
        return tuple(map(self._device, range(count.value)))

    def _device(self, number: int) -> Device:
        name = ctypes.create_string_buffer(256)
        handle = self._handle(number)
        self.library.call("cuDeviceGetName", name, len(name), handle)

        def attribute(which: int) -> int:
            value = c_int()
            self.library.call("cuDeviceGetAttribute", value, which, handle)
            return value.value

        return Device(
            number=number,
            name=name.value.decode(),
            capability=(attribute(libcuda.MAJOR), attribute(libcuda.MINOR)),
            multiprocessors=attribute(libcuda.MULTIPROCESSORS),
            shared_bytes=attribute(libcuda.SHARED_BYTES),
            l2_bytes=attribute(libcuda.L2_BYTES),
        )

    def _handle(self, number: int) -> int:
        handle = c_int()
        self.library.call("cuDeviceGet", handle, number, what=f"device {number}")
        return handle.value

    def context(self, device: int) -> int:
        """The device's primary context, retained for as long as the process lives."""
        # What dies while this thread has the lock is given back in a context that is there.
        if (there := self._contexts.get(device)) is not None:
            return there
        with self._lock:
            if device not in self._contexts:
                context = c_void_p()
                handle = self._handle(device)
                what = f"device {device}"
                self.library.call("cuDevicePrimaryCtxRetain", context, handle, what=what)
                self._contexts[device] = context.value or 0
            return self._contexts[device]

    @contextlib.contextmanager
    def current(self, device: int) -> Iterator[Library]:
        """Within, the device's context is the calling thread's."""
        context, before = self.context(device), c_void_p()
        self.library.call("cuCtxGetCurrent", before)
        if before.value == context:
            yield self.library
            return
        self.library.call("cuCtxSetCurrent", context)
        try:
            yield self.library
        finally:
            self.library.call("cuCtxSetCurrent", before)

    def load(self, device: int, image: bytes) -> CudaModule:
        """As `Driver`.

        Raises
        ------
        TargetError
            An image for another architecture, of another format, or PTX that is too new.
        """
        module, log = c_void_p(), ctypes.create_string_buffer(8192)
        options = (c_int * 2)(libcuda.ERROR_LOG, libcuda.ERROR_LOG_SIZE)
        values = (c_void_p * 2)(ctypes.addressof(log), len(log))
        with self.current(device) as library:
            status = library.cuda.cuModuleLoadDataEx(module, image, 2, options, values)
        if not status:
            return CudaModule(self, device, module)
        lines = log.value.decode(errors="replace").split("\n")
        said = "".join(f"; {line.strip()}" for line in lines[:3] if line.strip())
        if status in libcuda.UNUSABLE_IMAGE:
            reason = f"the driver cannot load this machine code on device {device}"
            raise TargetError(f"{reason}: {library.reason(status)}{said}")
        raise CudaError(f"cuModuleLoadDataEx: {library.reason(status)}{said}")

    def allocate(self, device: int, size: int) -> int:
        """As `Driver`."""
        address = c_uint64()
        with self.current(device) as library, relaxed(library):
            library.call("cuMemAlloc_v2", address, max(1, size), what=f"{size} bytes")
        return address.value

    def free(self, device: int, address: int) -> None:
        """As `Driver`."""
        with self.current(device) as library, relaxed(library):
            library.call("cuMemFree_v2", address)

    def copy_to(self, device: int, address: int, array: np.ndarray, stream: int) -> None:
        """As `Driver`."""
        with self.current(device) as library:
            library.call("cuMemcpyHtoDAsync_v2", address, array.ctypes.data, array.nbytes, stream)

    def copy_from(self, device: int, array: np.ndarray, address: int, stream: int) -> None:
        """As `Driver`."""
        with self.current(device) as library:
            library.call("cuMemcpyDtoHAsync_v2", array.ctypes.data, address, array.nbytes, stream)
            library.call("cuStreamSynchronize", stream)

    def synchronize(self, device: int, stream: int) -> None:
        """As `Driver`."""
        with self.current(device) as library:
            library.call("cuStreamSynchronize", stream)

    def is_capturing(self, device: int, stream: int) -> bool:
        """As `Driver`."""
        status = c_int()
        with self.current(device) as library:
            library.call("cuStreamIsCapturing", stream, status)
        return status.value != 0

    def new_stream(self, device: int) -> int:
        """As `Driver`."""
        stream = c_void_p()
        with self.current(device) as library:
            library.call("cuStreamCreate", stream, libcuda.NON_BLOCKING)
        return stream.value or 0

    def captured(self, device: int, stream: int, work: Callable[[], object]) -> CudaGraph:
        """As `Driver`; where `work` fails, the stream is as before."""
        graph, ready = c_void_p(), c_void_p()
        with self.current(device) as library:
            library.call("cuStreamBeginCapture_v2", stream, libcuda.RELAXED)
            try:
                work()
            finally:
                status = library.cuda.cuStreamEndCapture(stream, graph)
            if status:
                raise library.error("cuStreamEndCapture", status)
            try:
                library.call("cuGraphInstantiateWithFlags", ready, graph, 0)
            finally:
                library.call("cuGraphDestroy", graph)
        return CudaGraph(self, device, ready)

    def seconds(self, device: int, stream: int, work: Callable[[], object]) -> float:
        """As `Driver`."""
        milliseconds = c_float()
        with self.current(device) as library, contextlib.ExitStack() as stack:
            first, last = c_void_p(), c_void_p()
            for event in (first, last):
                library.call("cuEventCreate", event, 0)
                stack.callback(library.cuda.cuEventDestroy_v2, event)
            library.call("cuEventRecord", first, stream)
            work()
            library.call("cuEventRecord", last, stream)
            library.call("cuEventSynchronize", last)
            library.call("cuEventElapsedTime", milliseconds, first, last)
        return milliseconds.value / 1e3


class CudaGraph:
    """As `Graph`."""

    def __init__(self, driver: CudaDriver, device: int, handle: c_void_p) -> None:
        self.driver, self.device, self.handle = driver, device, handle
        weakref.finalize(
            self, give_back, driver, device, "cuGraphExecDestroy", handle
        ).atexit = False

    def launch(self, stream: int) -> None:
        """As `Graph`."""
        with self.driver.current(self.device) as library:
            library.call("cuGraphLaunch", self.handle, stream)


class CudaModule:
    """As `Module`."""

    def __init__(self, driver: CudaDriver, device: int, handle: c_void_p) -> None:
        self.driver, self.device, self.handle = driver, device, handle
        self._granted: dict[str, int] = {}  # dynamic shared memory of kernels, above the default
        # At the process's exit the driver frees everything itself, and may be gone already.
        weakref.finalize(self, give_back, driver, device, "cuModuleUnload", handle).atexit = False

    def function(
        self, name: str, parameters: str, block: Triple, *, shared_bytes: int = 0
    ) -> CudaFunction:
        """As `Module`.

        Raises
        ------
        CudaError
            No such kernel, or more shared memory than the device has.
        """
        function, static = c_void_p(), c_int()
        with self.driver.current(self.device) as library:
            library.call("cuModuleGetFunction", function, self.handle, name.encode(), what=name)
            # Asking also makes a driver that loads lazily load the code now, and not at the first
            # launch, which may be captured.
            library.call("cuFuncGetAttribute", static, libcuda.STATIC_SHARED, function, what=name)
            needed = max(shared_bytes, self._granted.get(name, 0))
            if static.value + needed > libcuda.DEFAULT_SHARED:
                what = f"{name}, {shared_bytes} bytes of dynamic shared memory"
                attribute = (function, libcuda.MAX_DYNAMIC_SHARED, needed)
                library.call("cuFuncSetAttribute", *attribute, what=what)
                self._granted[name] = needed
        return CudaFunction(self, name, function, parameters, block, shared_bytes)


def give_back(driver: CudaDriver, device: int, function: str, handle: c_void_p) -> None:
    """Give back, by a function of the driver's, what nobody can use any more: a module, a graph."""
    # A device that has failed tells whoever launches next; here nobody would hear it.
    with contextlib.suppress(CudaError), driver.current(device) as library, relaxed(library):
        library.call(function, handle)


class CudaFunction:
    """As `Function`. The arguments' storage is made once; a call is little but the driver's.

    It neither allocates nor waits, so it may be captured into a graph.
    """

    def __init__(
        self,
        module: CudaModule,
        name: str,
        function: c_void_p,
        parameters: str,
        block: Triple,
        shared_bytes: int,
    ) -> None:
        self._module = module  # while the launch is alive, so is what loaded the code
        self._name = name
        self.library = module.driver.library
        self._context = module.driver.context(module.device)
        self._before = c_void_p()
        self._function, self._block, self._shared_bytes = function, block, shared_bytes
        self._values = [libcuda.TYPES[letter]() for letter in parameters]
        addresses = map(ctypes.addressof, self._values)
        self._pointers = (c_void_p * max(1, len(self._values)))(*addresses)
        self._lock = threading.Lock()

    def __call__(self, grid: Triple, stream: int, *arguments: Any) -> None:
        """As `Function`.

        Raises
        ------
        CudaError
            The launch was refused, or something launched before has failed.
        """
        cuda, before = self.library.cuda, self._before
        with self._lock:
            for value, argument in zip(self._values, arguments, strict=True):
                value.value = argument
            # Not `CudaDriver.current`, which takes as long as the launch itself.
            cuda.cuCtxGetCurrent(before)
            elsewhere = before.value != self._context
            if elsewhere:
                self.library.call("cuCtxSetCurrent", self._context)
            status = cuda.cuLaunchKernel(
                self._function,
                *grid,
                *self._block,
                self._shared_bytes,
                stream,
                self._pointers,
                None,
            )
            if elsewhere:
                self.library.call("cuCtxSetCurrent", before)
        if status:
            what = f"{self._name}, grid {grid}, block {self._block}"
            raise self.library.error("cuLaunchKernel", status, what)


@functools.cache
def driver() -> CudaDriver:
    """The machine's driver, opened at the first call.

    Raises
    ------
    TargetError
        No driver, or none that works.
    """
    return CudaDriver()


def stream_of(x: Any) -> int:
    """The stream on which the caller works: torch's or CuPy's current one where `x` is theirs."""
    library = type(x).__module__.partition(".")[0]
    if library == "torch" and x.is_cuda:
        return int(sys.modules["torch"].cuda.current_stream(x.device).cuda_stream)
    if library == "cupy":
        return int(sys.modules["cupy"].cuda.get_current_stream().ptr)
    return 0
