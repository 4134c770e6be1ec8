"""The caller's arrays as tvm_ffi tensors: checked, and copied only where a kernel cannot read them.

NumPy, torch and every other library with DLPack on the CPU. float16 and bfloat16 go to a kernel as
uint16, packed 4-bit integers as uint8 (`spec.stored_as`).
"""

from __future__ import annotations

import sys
from typing import Any

import ml_dtypes
import numpy as np

from ..errors import ArrayError
from .runtime import tvm_ffi
from .spec import stored_as

#: NumPy dtypes that a kernel takes as another one of the same size.
VIEWED = {np.dtype(t): np.dtype(np.uint16) for t in (np.float16, ml_dtypes.bfloat16)}

#: Kernels compute offsets in int32.
MAX_ELEMENTS = 2**31 - 1


def numpy_dtype(name: str) -> np.dtype:
    """NumPy's dtype for a float or integer format; 4-bit integers are bytes."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def import_array(name: str, x: Any, dtype: np.dtype, columns: int) -> Any:
    """`x` (M, columns) as a tensor whose rows are contiguous; copies what is not.

    Raises
    ------
    ArrayError
        No array, or one of another shape, dtype or device.
    """
    if not isinstance(x, np.ndarray):
        return import_dlpack(name, x, dtype, columns)
    native = x.dtype == dtype
    if x.ndim != 2 or x.shape[1] != columns or not (native or x.dtype.newbyteorder("=") == dtype):
        raise ArrayError(f"{name} is {x.dtype.name}{x.shape}; expected {dtype.name}(M, {columns})")
    fits = native and x.flags.writeable and rows_fit(x, columns, dtype.itemsize)
    return tensor(x if fits else np.array(x, dtype, order="C"))


def rows_fit(array: np.ndarray, columns: int, size: int) -> bool:
    """Whether a kernel can follow a matrix's strides: rows are contiguous and do not overlap."""
    # What is said of a single column's stride means nothing to NumPy, but a kernel checks it.
    if columns > 1 and array.flags.c_contiguous:
        return True
    row, column = array.strides
    most = MAX_ELEMENTS * size // max(1, array.shape[0])
    return column == size and columns * size <= row <= most and not row % size


def tensor(array: np.ndarray) -> Any:
    """A NumPy array of a format that kernels take, as a tensor over the same memory."""
    stored = VIEWED.get(array.dtype)
    return tvm_ffi.from_dlpack(array if stored is None else array.view(stored))


def import_dlpack(name: str, x: Any, dtype: np.dtype, columns: int) -> Any:
    """As `import_array`, for arrays of other libraries."""
    given = from_dlpack(name, x)
    device = str(given.device)
    if not device.startswith("cpu"):
        raise ArrayError(f"{name} is on {device}; this kernel reads arrays of the CPU")
    shape, found = tuple(given.shape), str(given.dtype)
    if len(shape) != 2 or shape[1] != columns or found != dtype.name:
        raise ArrayError(f"{name} is {found}{shape}; expected {dtype.name}(M, {columns})")
    row, column = given.strides
    fits = column == 1 and columns <= row <= MAX_ELEMENTS // max(1, shape[0])
    stored = stored_as(dtype.name)
    if fits and stored == found:
        return given
    same_bits = viewed(name, x, stored)
    return tvm_ffi.from_dlpack(same_bits if fits else copied(name, same_bits))


def from_dlpack(name: str, x: Any) -> Any:
    """`x` through DLPack."""
    if not hasattr(x, "__dlpack__"):
        raise ArrayError(
            f"{name} is {type(x).__name__}; expected an array (NumPy, torch or DLPack)"
        )
    try:
        return tvm_ffi.from_dlpack(x)
    except Exception as error:
        raise ArrayError(f"{name} cannot be read through DLPack: {error}") from error


def viewed(name: str, x: Any, stored: str) -> Any:
    """The array of another library with its elements taken for `stored` of the same size."""
    if is_torch(x):
        return x.view(getattr(sys.modules["torch"], stored))
    try:
        return np.from_dlpack(x).view(stored)
    except Exception as error:
        raise ArrayError(
            f"{name} is {type(x).__name__}, which NumPy cannot read ({error}); "
            "pass a NumPy array or a torch tensor"
        ) from error


def copied(name: str, x: Any) -> np.ndarray:
    """A contiguous NumPy copy."""
    return np.array(np.from_dlpack(x), order="C")


def export_array(name: str, out: Any, dtype: np.dtype, shape: tuple[int, int]) -> Any:
    """The caller's array as a tensor that a kernel may write; what does not fit is an error."""
    array, fits = out, False
    if isinstance(out, np.ndarray):
        fits = out.dtype == dtype
    else:
        given = from_dlpack(name, out)
        if not str(given.device).startswith("cpu"):
            raise ArrayError(f"{name} is on {given.device}; this kernel writes arrays of the CPU")
        fits = str(given.dtype) == dtype.name
        array = np.from_dlpack(viewed(name, out, stored_as(str(given.dtype))))
    if not fits or array.shape != shape:
        found = array.dtype.name if array is out else str(given.dtype)
        raise ArrayError(f"{name} is {found}{array.shape}; expected {dtype.name}{shape}")
    if not array.flags.writeable or not rows_fit(array, shape[1], dtype.itemsize):
        raise ArrayError(
            f"{name} has strides {array.strides}; expected a writable array with contiguous rows"
        )
    return tensor(array)


def apart(a: Any, b: Any) -> bool:
    """Whether two arrays are known to share no memory: quick, and never wrong when it says so."""
    ndarray = np.ndarray
    return isinstance(a, ndarray) and isinstance(b, ndarray) and not np.may_share_memory(a, b)


def refuse_overlap(name: str, written: range, other_name: str, read: range) -> None:
    """Refuse to write an array that shares bytes with one that is read meanwhile; see `span`."""
    if written.start < read.stop and read.start < written.stop:
        raise ArrayError(f"{name} shares memory with {other_name}; expected memory of its own")


def span(address: int, shape: tuple[int, int], stride: int, itemsize: int) -> range:
    """Addresses from a matrix's first byte to its last; `stride` counts elements."""
    rows, columns = shape
    return range(address, address + ((rows - 1) * stride + columns) * itemsize)


def span_of(matrix: Any) -> range:
    """The same of a tensor of the CPU."""
    rows, columns = matrix.shape
    stride, itemsize = matrix.strides[0], matrix.dtype.bits // 8
    return span(matrix.data_ptr(), (rows, columns), stride, itemsize)


def new_array(like: Any, shape: tuple[int, int], dtype: np.dtype) -> Any:
    """An empty array of the library that `like` comes from, torch or NumPy."""
    if is_torch(like):
        torch = sys.modules["torch"]
        return torch.empty(shape, dtype=getattr(torch, dtype.name))
    return np.empty(shape, dtype)


def new_tensor(array: Any) -> Any:
    """The tensor over an array that `new_array` made."""
    if isinstance(array, np.ndarray):
        return tensor(array)
    stored = stored_as(str(array.dtype).removeprefix("torch."))
    return tvm_ffi.from_dlpack(array.view(getattr(sys.modules["torch"], stored)))


def is_torch(x: Any) -> bool:
    """Whether `x` is a torch tensor, without importing torch."""
    return type(x).__module__.partition(".")[0] == "torch"
