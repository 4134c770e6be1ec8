"""Integers of four bits, two to a byte: the form in which a `QTensor` has them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import ArrayError
from .values import as_array


def pack_int4(values: npt.ArrayLike, fill: npt.ArrayLike = 0) -> np.ndarray:
    """Two 4-bit integers per byte along the last axis, element 2i in the low nibble.

    Parameters
    ----------
    values : (..., K) integers in [-8, 7] or in [0, 15].
    fill : what pads an odd K, (...) or a scalar; the zero point where there is one.

    Returns
    -------
    uint8 (..., ceil(K / 2)); negative numbers in two's complement.
    """
    v = nibbles_of("values", values)
    if v.ndim == 0:
        raise ArrayError("values is one number; expected an array of integers")
    pad = nibbles_of("fill", fill)
    if v.shape[-1] % 2:
        if pad.ndim and pad.shape != v.shape[:-1]:
            raise ArrayError(f"fill has shape {pad.shape}; expected {v.shape[:-1]} or a scalar")
        pad = np.broadcast_to(pad, v.shape[:-1])[..., None]
        v = np.concatenate([v.astype(np.int8), pad.astype(np.int8)], axis=-1)
    pairs = np.ascontiguousarray(v, np.uint8 if v.dtype == np.uint8 else np.int8).view("<u2")
    return (pairs & 0xF | pairs >> 4 & 0xF0).astype(np.uint8)


def nibbles_of(name: str, values: npt.ArrayLike) -> np.ndarray:
    """`values` as integers of 4 bits, with a sign or without."""
    v = as_array(name, values)
    if v.dtype.kind not in "iu":
        raise ArrayError(f"{name} is {v.dtype.name}{v.shape}; expected an array of integers")
    if v.size and not ((v.min() >= -8 and v.max() <= 7) or (v.min() >= 0 and v.max() <= 15)):
        raise ArrayError(f"{name} span {v.min()} to {v.max()}; 4 bits hold -8 to 7 or 0 to 15")
    return v


def unpack_int4(packed: npt.ArrayLike, k: int, *, signed: bool = True) -> np.ndarray:
    """The inverse of `pack_int4`: (..., k) of int8 in [-8, 7], or of uint8 in [0, 15]."""
    p = as_array("packed", packed)
    if p.dtype != np.uint8 or p.ndim == 0 or p.shape[-1] != -(-k // 2):
        raise ArrayError(
            f"{k} 4-bit values are stored in {-(-k // 2)} bytes of uint8, "
            f"not {p.dtype.name}{p.shape}"
        )
    nibbles = np.stack([p & 0xF, p >> 4], axis=-1).reshape(*p.shape[:-1], 2 * p.shape[-1])[..., :k]
    if not signed:
        return np.ascontiguousarray(nibbles)
    return ((nibbles ^ 8).astype(np.int8) - 8).astype(np.int8)
