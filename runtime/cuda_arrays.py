"""The caller's arrays for a GPU: where they lie on a device, or that they are the host's.

torch tensors and arrays with `__cuda_array_interface__` (CuPy, Numba) are described by what they
say of themselves, others through DLPack; none is copied. NumPy arrays, and all others that lie in
the host's memory, are copied to the device and back.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ArrayError
from ..formats.values import refuse_masked
from ..schedules.plan import MAX_ELEMENTS
from .arrays import (
    Span,
    from_dlpack,
    import_array,
    is_torch,
    refuse_traced,
    span,
)
from .cuda_buffer import Buffer, Described
from .driver import stream_of


@dataclass(frozen=True)
class DeviceArray:
    """A matrix in the memory of a device.

    Attributes
    ----------
    address : of its first element.
    shape : (rows, columns).
    stride : elements from one row to the next.
    dtype : NumPy's name for it; "bfloat16" for that.
    device : its number.
    stream : on which the caller works with it.
    """

    address: int
    shape: tuple[int, int]
    stride: int
    dtype: str
    device: int
    stream: int

    def rows(self, start: int, count: int, itemsize: int) -> DeviceArray:
        """Some of its rows."""
        address = self.address + start * self.stride * itemsize
        return dataclasses.replace(self, address=address, shape=(count, self.shape[1]))

    def span(self, dtype: np.dtype) -> Span:
        """Where it lies; `dtype` is its own, which a call need not look up again."""
        return span(self.address, self.shape, self.stride, dtype.itemsize)


def described(name: str, x: Any) -> Described | None:
    """What `x` says of itself; None for arrays of the host.

    Raises
    ------
    ArrayError
        No array, one on a device that is no GPU of NVIDIA's, or a view of negated numbers.
    """
    if isinstance(x, np.ndarray):
        refuse_masked(name, x)
        return None
    if isinstance(x, Buffer):
        return x.described()
    if is_torch(x):
        if not x.is_cuda:
            return None
        refuse_traced(name, x)
        if x.is_neg():
            # Its numbers have the other sign in memory, and what is on a device is not copied.
            raise ArrayError(f"{name} is a view of negated numbers; expected a tensor of its own")
        dtype = str(x.dtype).removeprefix("torch.")
        shape, strides = tuple(x.shape), tuple(x.stride())
        return Described(x.data_ptr(), shape, strides, dtype, x.device.index or 0, stream_of(x))
    interface = getattr(x, "__cuda_array_interface__", None)
    if interface is not None:
        element = np.dtype(interface["typestr"])
        strides = interface.get("strides")
        steps = strides and tuple(step // element.itemsize for step in strides)
        device = getattr(getattr(x, "device", None), "id", 0)
        # What the array's owner names, if it does, is where its numbers are ready.
        stream = stream_of(x) or interface.get("stream") or 0
        address, shape = interface["data"][0], tuple(interface["shape"])
        return Described(address, shape, steps, element.name, device, stream)
    given = from_dlpack(name, x)
    kind, _, number = str(given.device).partition(":")
    if kind == "cpu":
        return None
    if kind != "cuda":
        raise ArrayError(f"{name} is on {given.device}; this kernel reads arrays of CUDA devices")
    shape, strides = tuple(given.shape), tuple(given.strides)
    return Described(given.data_ptr(), shape, strides, str(given.dtype), int(number or 0), 0)


def on_device(name: str, x: Any) -> DeviceArray | None:
    """Where the matrix `x` lies on a device; None for arrays of the host.

    Raises
    ------
    ArrayError
        No array, no matrix, or one whose rows are not contiguous.
    """
    found = described(name, x)
    return None if found is None else matrix(name, found)


def numbers_on_device(
    name: str, x: Any, dtype: np.dtype, shape: tuple[int, ...], device: int
) -> int | None:
    """The address of consecutive numbers of `shape` on `device`; None where `x` is on the host.

    Raises
    ------
    ArrayError
        Numbers of another type, shape or device, or with gaps between them.
    """
    array = any(hasattr(x, each) for each in ("__dlpack__", "__cuda_array_interface__"))
    array = array or isinstance(x, Buffer)
    found = described(name, x) if array else None
    if found is None:
        return None
    count = math.prod(shape)
    shapes = [shape, (*shape, 1), *([()] if count == 1 else [])]
    if found.dtype != dtype.name or found.shape not in shapes:
        raise ArrayError(
            f"{name} is {found.dtype}{found.shape} on a device; expected {dtype.name}{shape}"
        )
    for at, step in enumerate(found.strides or ()):
        expected = math.prod(found.shape[at + 1 :])
        if found.shape[at] > 1 and step != expected:
            raise ArrayError(f"{name} has stride {step} in elements; expected {expected}")
    if found.device != device:
        raise ArrayError(f"{name} is on CUDA device {found.device}; expected it on {device}, as x")
    return found.address


def matrix(name: str, found: Described) -> DeviceArray:
    """A device array with contiguous rows."""
    if len(found.shape) != 2:
        raise ArrayError(f"{name} is {found.dtype}{found.shape}; expected a matrix")
    rows, columns = (int(size) for size in found.shape)
    row, column = (int(step) for step in found.strides) if found.strides else (columns, 1)
    if rows == 1:
        row = columns
    if (column != 1 and columns > 1) or not columns <= row <= MAX_ELEMENTS:
        raise ArrayError(
            f"{name} has strides ({row}, {column}) in elements; expected contiguous rows"
        )
    return DeviceArray(found.address, (rows, columns), row, found.dtype, found.device, found.stream)


def check_matrix(name: str, array: DeviceArray, dtype: np.dtype, columns: int) -> None:
    """Refuse a matrix of another format or width."""
    if array.dtype != dtype.name or array.shape[1] != columns:
        raise ArrayError(
            f"{name} is {array.dtype}{array.shape}; expected {dtype.name}(M, {columns})"
        )


def on_host(name: str, x: Any, dtype: np.dtype, columns: int) -> np.ndarray:
    """An array of the host as a contiguous NumPy array in the format that kernels take."""
    return np.ascontiguousarray(np.from_dlpack(import_array(name, x, dtype, columns)))


def read_back(value: Any) -> Any:
    """A number or array that may be on a device as one of the host; waits for it."""
    for name in ("cpu", "get"):  # torch, CuPy
        if getattr(value, "__cuda_array_interface__", None) is not None and hasattr(value, name):
            value = getattr(value, name)()
    return value


def new_on_device(like: Any, shape: tuple[int, int], dtype: np.dtype) -> Any:
    """An empty array of the library, and on the device, that `like` comes from."""
    library = type(like).__module__.partition(".")[0]
    if library == "torch":
        torch = sys.modules["torch"]
        return torch.empty(shape, dtype=getattr(torch, dtype.name), device=like.device)
    if library == "cupy" and dtype.name != "bfloat16":
        cupy = sys.modules["cupy"]
        with cupy.cuda.Device(like.device.id):
            return cupy.empty(shape, dtype)
    raise ArrayError(f"out is missing; {library} has no new {dtype.name} array for this result")
