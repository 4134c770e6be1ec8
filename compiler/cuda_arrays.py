"""The caller's arrays for a GPU: where they lie on a device, or that they are the host's.

torch tensors and arrays with `__cuda_array_interface__` (CuPy, Numba) are described by what they
say of themselves, others through DLPack; none is copied. NumPy arrays, and all others that lie in
the host's memory, are copied to the device and back.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ArrayError
from ..targets.driver import stream_of
from .arrays import MAX_ELEMENTS, from_dlpack, is_torch, numpy_dtype
from .spec import stored_as


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


def on_device(name: str, x: Any) -> DeviceArray | None:
    """Where `x` lies on a device; None for arrays of the host.

    Raises
    ------
    ArrayError
        No array, no matrix, or one whose rows are not contiguous.
    """
    if isinstance(x, np.ndarray):
        return None
    if is_torch(x):
        if not x.is_cuda:
            return None
        dtype = str(x.dtype).removeprefix("torch.")
        return matrix(name, x.data_ptr(), x.shape, x.stride(), dtype, x.device.index or 0, x)
    interface = getattr(x, "__cuda_array_interface__", None)
    if interface is not None:
        dtype = np.dtype(interface["typestr"])
        strides = interface.get("strides")
        steps = strides and tuple(step // dtype.itemsize for step in strides)
        device = getattr(getattr(x, "device", None), "id", 0)
        address = interface["data"][0]
        return matrix(name, address, interface["shape"], steps, dtype.name, device, x)
    given = from_dlpack(name, x)
    kind, _, number = str(given.device).partition(":")
    if kind == "cpu":
        return None
    if kind != "cuda":
        raise ArrayError(f"{name} is on {given.device}; this kernel reads arrays of CUDA devices")
    shape, dtype = given.shape, str(given.dtype)
    return matrix(name, given.data_ptr(), shape, given.strides, dtype, int(number or 0), x)


def matrix(
    name: str, address: int, shape: Any, strides: Any, dtype: str, device: int, x: Any
) -> DeviceArray:
    """A device array with contiguous rows, from its parts; no strides are those of C."""
    if len(shape) != 2:
        raise ArrayError(f"{name} is {dtype}{tuple(shape)}; expected a matrix")
    rows, columns = (int(size) for size in shape)
    row, column = (int(step) for step in strides) if strides else (columns, 1)
    if rows == 1:
        row = columns
    if (column != 1 and columns > 1) or row < columns or row * rows > MAX_ELEMENTS:
        raise ArrayError(
            f"{name} has strides ({row}, {column}) in elements; expected contiguous rows"
        )
    return DeviceArray(address, (rows, columns), row, dtype, device, stream_of(x))


def check_matrix(name: str, array: DeviceArray, dtype: np.dtype, columns: int) -> None:
    """Refuse a matrix of another format or width."""
    if array.dtype != dtype.name or array.shape[1] != columns:
        raise ArrayError(
            f"{name} is {array.dtype}{array.shape}; expected {dtype.name}(M, {columns})"
        )


def on_host(name: str, x: Any, dtype: np.dtype, columns: int) -> np.ndarray:
    """An array of the host as a contiguous NumPy array in the format that kernels take."""
    array = x
    if not isinstance(x, np.ndarray):
        stored = stored_as(dtype.name)
        given = from_dlpack(name, x)
        found = str(given.dtype)
        if found == dtype.name and stored != found and is_torch(x):
            x = x.view(getattr(sys.modules["torch"], stored))
        array = np.from_dlpack(x)
        if found == dtype.name and array.dtype != dtype:
            array = array.view(dtype)
    if array.ndim != 2 or array.shape[1] != columns or array.dtype != dtype:
        raise ArrayError(
            f"{name} is {array.dtype.name}{array.shape}; expected {dtype.name}(M, {columns})"
        )
    native = array.astype(dtype.newbyteorder("="), copy=False)
    return np.ascontiguousarray(native).view(numpy_dtype(stored_as(dtype.name)))


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
