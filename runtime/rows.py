"""Arrays with any number of dimensions before the last one, as the matrices that kernels take.

x (..., k) is M rows of k, where M is the product of the dimensions before; results, residuals and
numbers for each row are arranged alike. Memory is used in place where rows lie at one distance.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import ArrayError
from ..formats.values import as_array
from .arrays import check_dense, from_dlpack, is_torch, torch_name, viewed


def dimensions(name: str, x: Any) -> int:
    """How many dimensions an array of any library has.

    Raises
    ------
    ArrayError
        It is no array.
    """
    ndim = getattr(x, "ndim", None)
    return len(shape_of(name, x)) if ndim is None else int(ndim)


def shape_of(name: str, x: Any) -> tuple[int, ...]:
    """The shape of an array of any library."""
    if is_torch(x):
        check_dense(name, x)
    interface = getattr(x, "__cuda_array_interface__", None)
    if interface is not None:
        return tuple(interface["shape"])
    shape = getattr(x, "shape", None)
    return tuple(from_dlpack(name, x).shape if shape is None else shape)


def dtype_of(name: str, x: Any) -> str:
    """NumPy's name for the dtype of an array."""
    if isinstance(x, np.ndarray):
        return x.dtype.name
    return torch_name(x.dtype) if is_torch(x) else str(getattr(x, "dtype", type(x).__name__))


def as_rows(name: str, x: Any, columns: int, lead: tuple[int, ...] | None = None) -> Any:
    """`x` (..., columns) as a matrix: over the same memory where that is one, else copied.

    Parameters
    ----------
    lead : the dimensions before the last one, if only these will do.

    Raises
    ------
    ArrayError
        It has another shape, or is no array.
    """
    shape = shape_of(name, x)
    if not shape or shape[-1] != columns or lead not in (None, shape[:-1]):
        expected = f"(..., {columns})" if lead is None else (*lead, columns)
        raise ArrayError(f"{name} is {dtype_of(name, x)}{shape}; expected the shape {expected}")
    return reshapable(name, x).reshape(-1, columns)


def rows_to_write(name: str, out: Any, shape: tuple[int, ...]) -> Any:
    """`out` of this shape as a matrix over the same memory.

    Raises
    ------
    ArrayError
        It has another shape or is no array, or its rows do not lie at one distance.
    """
    found = shape_of(name, out)
    if found != shape:
        raise ArrayError(f"{name} is {dtype_of(name, out)}{found}; expected the shape {shape}")
    out = reshapable(name, out)
    matrix = out.reshape(-1, shape[-1])
    if address_of(matrix) != address_of(out):
        raise ArrayError(f"{name} of {shape} has rows at several distances; expected one distance")
    return matrix


def reshapable(name: str, x: Any) -> Any:
    """An array with a method `reshape`, as of NumPy, torch and CuPy, over the same memory."""
    return x if hasattr(x, "reshape") else viewed(name, x, str(from_dlpack(name, x).dtype))


def address_of(x: Any) -> int:
    """Where an array begins; of one that was reshaped it says whether it was copied."""
    if isinstance(x, np.ndarray):
        return int(x.ctypes.data)
    return int(x.data_ptr() if is_torch(x) else x.__cuda_array_interface__["data"][0])


def numbers_of_rows(
    name: str, value: Any, lead: tuple[int, ...], within: tuple[int, ...] = ()
) -> Any:
    """One number, or numbers of the shape `within` for each row, as (M, *within)."""
    shape = getattr(value, "shape", None)
    if value is None or shape == ():
        return value
    if shape is None:
        value = as_array(name, value)
        shape = value.shape
    if tuple(shape) == (*lead, *within):
        return value.reshape(-1, *within)
    if np.prod(shape) == 1:
        return value.reshape(-1)
    raise ArrayError(f"{name} has shape {tuple(shape)}; expected a scalar or {(*lead, *within)}")
