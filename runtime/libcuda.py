"""libcuda.so.1 through ctypes: the functions of NVIDIA's driver, and the numbers that they take."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any

from ..errors import CudaError, TargetError

LIBRARY = "libcuda.so.1"

#: Parameters of the driver's functions (cuda.h); _v2 are those that 64-bit programs get by their
#: plain name.
SIGNATURES: dict[str, list[Any]] = {
    "cuInit": [c_uint],
    "cuGetErrorName": [c_int, POINTER(c_char_p)],
    "cuGetErrorString": [c_int, POINTER(c_char_p)],
    "cuDeviceGetCount": [POINTER(c_int)],
    "cuDeviceGet": [POINTER(c_int), c_int],
    "cuDeviceGetName": [c_char_p, c_int, c_int],
    "cuDeviceGetAttribute": [POINTER(c_int), c_int, c_int],
    "cuDevicePrimaryCtxRetain": [POINTER(c_void_p), c_int],
    "cuCtxGetCurrent": [POINTER(c_void_p)],
    "cuCtxSetCurrent": [c_void_p],
    "cuModuleLoadDataEx": [POINTER(c_void_p), c_char_p, c_uint, POINTER(c_int), POINTER(c_void_p)],
    "cuModuleUnload": [c_void_p],
    "cuModuleGetFunction": [POINTER(c_void_p), c_void_p, c_char_p],
    "cuFuncGetAttribute": [POINTER(c_int), c_int, c_void_p],
    "cuFuncSetAttribute": [c_void_p, c_int, c_int],
    "cuLaunchKernel": [c_void_p, *[c_uint] * 7, c_void_p, POINTER(c_void_p), c_void_p],
    "cuMemAlloc_v2": [POINTER(c_uint64), c_size_t],
    "cuMemFree_v2": [c_uint64],
    "cuMemcpyHtoDAsync_v2": [c_uint64, c_void_p, c_size_t, c_void_p],
    "cuMemcpyDtoHAsync_v2": [c_void_p, c_uint64, c_size_t, c_void_p],
    "cuStreamCreate": [POINTER(c_void_p), c_uint],
    "cuStreamSynchronize": [c_void_p],
    "cuStreamBeginCapture_v2": [c_void_p, c_int],
    "cuStreamEndCapture": [c_void_p, POINTER(c_void_p)],
    "cuGraphInstantiateWithFlags": [POINTER(c_void_p), c_void_p, c_uint64],
    "cuGraphDestroy": [c_void_p],
    "cuGraphLaunch": [c_void_p, c_void_p],
    "cuGraphExecDestroy": [c_void_p],
    "cuEventCreate": [POINTER(c_void_p), c_uint],
    "cuEventRecord": [c_void_p, c_void_p],
    "cuEventSynchronize": [c_void_p],
    "cuEventElapsedTime": [POINTER(c_float), c_void_p, c_void_p],
    "cuEventDestroy_v2": [c_void_p],
    "cuStreamIsCapturing": [c_void_p, POINTER(c_int)],
    "cuThreadExchangeStreamCaptureMode": [POINTER(c_int)],
}

# CUresult: a file that cannot be used, rather than a failure.
UNUSABLE_IMAGE = {
    200: "CUDA_ERROR_INVALID_IMAGE",
    209: "CUDA_ERROR_NO_BINARY_FOR_GPU",
    218: "CUDA_ERROR_INVALID_PTX",
    222: "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
    223: "CUDA_ERROR_JIT_COMPILATION_DISABLED",
}

# CUdevice_attribute.
MULTIPROCESSORS, L2_BYTES, MAJOR, MINOR, SHARED_BYTES = 16, 38, 75, 76, 97
# CUfunction_attribute.
STATIC_SHARED, MAX_DYNAMIC_SHARED = 1, 8
# CUstreamCaptureMode: this thread may also do what is not put into a graph.
RELAXED = 2
# CUstream_flags: it waits for no work on the legacy stream.
NON_BLOCKING = 1
# CUjit_option.
ERROR_LOG, ERROR_LOG_SIZE = 5, 6

#: What a block gets of shared memory without asking.
DEFAULT_SHARED = 48 << 10

#: Types of parameters by their letter.
TYPES: dict[str, Any] = {
    "P": c_void_p,
    "i": ctypes.c_int32,
    "I": ctypes.c_uint32,
    "q": ctypes.c_int64,
    "Q": ctypes.c_uint64,
    "f": c_float,
    "d": ctypes.c_double,
}


class Library:
    """libcuda's functions; what they return is checked."""

    def __init__(self) -> None:
        try:
            self.cuda = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise TargetError(
                f"no CUDA driver: {LIBRARY} not found, which NVIDIA's driver brings ({error})"
            ) from None
        for name, parameters in SIGNATURES.items():
            try:
                getattr(self.cuda, name).argtypes = parameters
            except AttributeError:
                raise TargetError(f"{LIBRARY} is too old: it has no {name}") from None
        if status := self.cuda.cuInit(0):
            raise TargetError(f"no usable GPU: cuInit: {self.reason(status)}")

    def call(self, name: str, *arguments: Any, what: str = "") -> None:
        """Call a function.

        Raises
        ------
        CudaError
            It failed; `what` it was about follows its name in the message.
        """
        if status := getattr(self.cuda, name)(*arguments):
            raise self.error(name, status, what)

    def error(self, name: str, status: int, what: str = "") -> CudaError:
        """The error for what a function returned."""
        return CudaError(f"{name}{what and f' ({what})'}: {self.reason(status)}")

    def reason(self, status: int) -> str:
        """A CUresult in words, with its name."""
        name, text = c_char_p(), c_char_p()
        self.cuda.cuGetErrorName(status, name)
        self.cuda.cuGetErrorString(status, text)
        if name.value is None or text.value is None:
            return f"CUresult {status}"
        return f"{name.value.decode()}, {text.value.decode()}"


@contextlib.contextmanager
def relaxed(library: Library) -> Iterator[None]:
    """Within, this thread may do what no graph can hold, while a stream is captured too.

    Objects die at any time, and a call that is refused would spoil the graph.
    """
    mode = c_int(RELAXED)
    library.call("cuThreadExchangeStreamCaptureMode", mode)
    try:
        yield
    finally:
        library.call("cuThreadExchangeStreamCaptureMode", mode)
