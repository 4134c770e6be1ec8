"""Numbers that callers hand over, as NumPy arrays of the formats that are computed with.

They are converted or refused: what is checked is what was given, not what a cast made of it.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ..errors import ArrayError
from .integers import INTEGERS

FLOAT32_MAX = float(np.finfo(np.float32).max)


def numpy_dtype(name: str) -> np.dtype:
    """NumPy's dtype for a float or integer format; 4-bit integers are bytes."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def as_array(name: str, value: Any) -> np.ndarray:
    """`value` as an array of real numbers: of NumPy, torch or any library, or of Python.

    Raises
    ------
    ArrayError
        It is no array, or holds something else.
    """
    try:
        if isinstance(value, np.ndarray):
            array = value
        elif hasattr(value, "detach"):
            array = from_torch(value)
        elif hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
            array = np.from_dlpack(value)
        else:
            array = np.asarray(value)
    except Exception as error:  # anything, out of other libraries; lists that are no matrix
        raise ArrayError(
            f"{name} is {type(value).__name__}; expected an array of numbers: {error}"
        ) from None
    # The small floats of ml_dtypes have no kind of NumPy's own.
    refuse_masked(name, value)
    if array.dtype.kind not in "fiu" and not np.can_cast(array.dtype, np.longdouble):
        raise ArrayError(f"{name} holds {array.dtype.name}; expected real numbers")
    return array


def held(name: str, value: Any) -> np.ndarray:
    """The array that a `QTensor` holds: of NumPy, or over the memory of torch or any library.

    Raises
    ------
    ArrayError
        It is no array, or has a mask.
    """
    if not isinstance(value, (np.ndarray, np.generic)) and not hasattr(value, "__dlpack__"):
        raise ArrayError(f"{name} is {type(value).__name__}; expected an array")
    return np.asarray(as_array(name, value))


def beside_rows(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`array` in `shape`, if it has that with dimensions of 1 behind: a number per row in a column.

    Any other is left as it is.
    """
    more = array.shape[len(shape) :]
    if array.shape[: len(shape)] == shape and len(more) <= 2 and set(more) == {1}:
        return array.reshape(shape)
    return array


def refuse_masked(name: str, value: Any) -> None:
    """Refuse an array with a mask, or a list of them: what is masked would count."""
    parts = value if isinstance(value, (list, tuple)) else (value,)
    if any(isinstance(part, np.ma.MaskedArray) for part in parts):
        raise ArrayError(
            f"{name} is a masked array, whose mask has no meaning here; expected an array without, "
            "such as its filled(...)"
        )


def from_torch(tensor: Any) -> np.ndarray:
    """The numbers of a torch tensor, which may want a gradient or lie on a device."""
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point() and tensor.element_size() < 4:
        tensor = tensor.float()  # exact; NumPy has no bfloat16
    return tensor.numpy()


def as_matrix(name: str, value: Any) -> np.ndarray:
    """`value` as a matrix of finite numbers that float32 can hold.

    It has float32 where that holds what was given exactly, and float64 elsewhere.

    Raises
    ------
    ArrayError
        It is no matrix, is empty, or holds something else.
    """
    array = as_array(name, value)
    if array.ndim != 2 or array.size == 0:
        more = f", such as {name}.reshape(-1, {array.shape[-1]})" if array.ndim > 2 else ""
        raise ArrayError(
            f"{name} has shape {array.shape}; expected a matrix that is not empty{more}"
        )
    exact = np.float32 if np.can_cast(array.dtype, np.float32) else np.float64
    with np.errstate(over="ignore"):  # of long doubles, some of which become infinite
        array = array.astype(exact, copy=False)
    # Both ends are NaN wherever there is one.
    ends = np.array([array.min(), array.max()])
    if not np.isfinite(ends).all():
        found = at_first(~np.isfinite(array))
        raise ArrayError(f"{name} holds NaN or infinity{found}; expected finite numbers")
    to_float32(name, ends)
    return array


def at_first(wrong: np.ndarray) -> str:
    """Where the first of the wrong elements is, in words; nothing of an array with one element."""
    if wrong.size == 1:
        return ""
    indices = np.unravel_index(wrong.argmax(), wrong.shape)
    return f", first at [{', '.join(map(str, indices))}]"


def to_float32(name: str, array: np.ndarray) -> np.ndarray:
    """`array` rounded to float32, where NaN and infinity stay what they are.

    Raises
    ------
    ArrayError
        A finite number would become infinite.
    """
    if array.dtype.itemsize <= 4:
        return array.astype(np.float32, copy=False)
    with np.errstate(over="ignore"):
        single = array.astype(np.float32)
    beyond = np.isinf(single) & np.isfinite(array)
    if beyond.any():
        raise ArrayError(
            f"{name} holds {array[beyond].flat[0]}, which is beyond float32; expected numbers "
            f"up to {FLOAT32_MAX:.8g}"
        )
    return single


def scales(name: str, value: npt.ArrayLike) -> np.ndarray:
    """`value` as float32, positive and finite: what activations and results are divided by.

    Raises
    ------
    ArrayError
        It is something else.
    """
    array = as_array(name, value)
    if array.dtype == np.bool_:
        raise ArrayError(f"{name} is bool; expected numbers")
    single = to_float32(name, array)
    refuse_scales(name, single)
    return single


def refuse_scales(name: str, scale: np.ndarray) -> None:
    """Refuse scales that are not positive and finite."""
    fine = (scale > 0) & (scale < np.inf)
    if not fine.all():
        found = f"{scale[~fine].flat[0]}{at_first(~fine)}"
        raise ArrayError(f"{name} {found}; expected positive finite numbers")


def refuse_infinite(name: str, values: np.ndarray) -> None:
    """Refuse NaN and infinity."""
    fine = np.isfinite(values)
    if not fine.all():
        found = f"{values[~fine].flat[0]}{at_first(~fine)}"
        raise ArrayError(f"{name} {found}; expected finite numbers")


def zero_points(name: str, value: npt.ArrayLike, dtype: str) -> np.ndarray:
    """`value` as int32, each of which the format `dtype` holds.

    Raises
    ------
    ArrayError
        It is something else.
    """
    array = as_array(name, value)
    if array.dtype.kind not in "iu":
        raise ArrayError(f"{name} is {array.dtype.name}; expected integers")
    refuse_integers(name, array, dtype)
    return array.astype(np.int32)


def refuse_integers(name: str, integers: np.ndarray, dtype: str) -> None:
    """Refuse integers, a weight's or zero points, that the format `dtype` does not hold."""
    least, greatest = INTEGERS[dtype].range
    if integers.size and not (least <= integers.min() and integers.max() <= greatest):
        found = integers[(integers < least) | (integers > greatest)].flat[0]
        raise ArrayError(f"{name} {found}; {dtype} holds {least} to {greatest}")


def permutation(name: str, value: npt.ArrayLike, count: int) -> np.ndarray:
    """`value` as int32, the numbers from 0 to `count` - 1 in any order.

    Raises
    ------
    ArrayError
        It is something else.
    """
    array = as_array(name, value)
    if array.shape != (count,) or array.dtype.kind not in "iu":
        found = f"{array.dtype.name}{array.shape}"
        raise ArrayError(f"{name} is {found}; expected a permutation, int32({count},)")
    if array.size and (array.min() < 0 or array.max() >= count):
        beyond = array[(array < 0) | (array >= count)][0]
        raise ArrayError(f"{name} holds {beyond}; expected each of 0 to {count - 1} once")
    missed = np.bincount(array, minlength=count) == 0
    if missed.any():
        raise ArrayError(f"{name} lacks {missed.argmax()}; expected each of 0 to {count - 1} once")
    return np.ascontiguousarray(array, np.int32)
