"""Quantization in NumPy: q = clip(round(x / scale) + zero_point), and back.

Rounding is half to even everywhere (np.rint). The mathematics is the usual affine scheme, see
Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", CVPR 2018, section 2.1; this module shares no code with the compiler and judges it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import ArrayError, SpecError
from .ranges import BLOCK, group_range, least_error, percentile_range, pieces
from .spec import INTEGER_RANGE, check_group_size

METHODS = ("absmax", "percentile", "mse")
PERCENTILE = 99.9


@dataclass(frozen=True, eq=False)
class QTensor:
    """A quantized matrix of `shape` (rows, K).

    Attributes
    ----------
    data : (rows, K) of int8 or uint8; for int4 and uint4 (rows, ceil(K / 2)) of uint8, see
        `pack_int4`.
    scale : float32, of shape () for group_size "tensor", (rows,) for None, (rows, groups) else.
    zero_point : int32 of the same shape as `scale`, or None when symmetric.
    dtype : "int8", "uint8", "int4" or "uint4".
    group_size : None (one scale per row), "tensor", or the number of k per scale.
    """

    data: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray | None
    dtype: str
    group_size: int | str | None
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        if self.dtype not in INTEGER_RANGE:
            raise SpecError(f"dtype={self.dtype!r}; expected one of {', '.join(INTEGER_RANGE)}")
        check_group_size(self.group_size)
        rows, k = self.shape
        packed = self.dtype.endswith("int4")
        expected = (rows, -(-k // 2) if packed else k), "uint8" if packed else self.dtype
        if (self.data.shape, self.data.dtype.name) != expected:
            raise ArrayError(
                f"{self.dtype} data of shape {self.shape} is stored as {expected[1]}{expected[0]}, "
                f"not {self.data.dtype.name}{self.data.shape}"
            )
        scales = scale_shape(self.shape, self.group_size)
        check_scale(self.scale, scales)
        if self.zero_point is not None:
            check_zero_point(self.zero_point, scales, self.dtype)

    def unpacked(self) -> np.ndarray:
        """The quantized integers, (rows, K) of int8 or uint8."""
        if not self.dtype.endswith("int4"):
            return self.data
        return unpack_int4(self.data, self.shape[1], signed=self.dtype == "int4")


def scale_shape(shape: tuple[int, int], group_size: int | str | None) -> tuple[int, ...]:
    """The shape of the scales of a matrix of `shape`."""
    rows, k = shape
    if group_size == "tensor":
        return ()
    if group_size is None:
        return (rows,)
    assert isinstance(group_size, int)
    return (rows, -(-k // group_size))


def spread(
    scale: npt.ArrayLike, shape: tuple[int, int], group_size: int | str | None
) -> np.ndarray:
    """`scale` (or zero points) repeated so that it broadcasts against a matrix of `shape`."""
    values = np.asarray(scale)
    if isinstance(group_size, int):
        return np.repeat(values, group_size, axis=1)[:, : shape[1]]
    return values[:, None] if values.ndim == 1 else values


def spread_rows(
    scale: np.ndarray, rows: slice, shape: tuple[int, int], group_size: int | str | None
) -> np.ndarray:
    """What `spread` gives for these rows of the matrix."""
    return spread(scale[rows] if scale.ndim else scale, shape, group_size)


def quantize(
    x: npt.ArrayLike,
    dtype: str = "int8",
    *,
    group_size: int | str | None = None,
    scale: npt.ArrayLike | None = None,
    zero_point: npt.ArrayLike | None = None,
    symmetric: bool | None = None,
    method: str = "absmax",
    percentile: float | None = None,
) -> QTensor:
    """Quantize a matrix.

    Parameters
    ----------
    x : (rows, K), finite floats. A vector is taken as one row.
    dtype : "int8", "uint8", "int4" or "uint4".
    group_size : None for one scale per row, "tensor" for one in all, or k per scale.
    scale, zero_point : given ones, broadcast to the shape that `QTensor` names. Without them
        symmetric formats take scale = max|x| / qmax and asymmetric ones
        scale = (max(x, 0) - min(x, 0)) / (qmax - qmin), zero_point = round(qmin - min / scale);
        where all of x is zero the scale is 1.
    symmetric : zero_point = 0. The default is True for signed formats and False for unsigned
        ones, and what a given `zero_point` says.
    method : how the range min to max (or max|x|) above is found, for each scale by itself:
        "absmax" takes all of it; "percentile" drops the tails, which are clipped, see
        `ranges.percentile_range`; "mse" shrinks the scale of "absmax" by the factor among 1, 0.99,
        ..., 0.2 that leaves the least squared error, so never more than "absmax" does, see
        `ranges.least_error`.
    percentile : for that method, more than 50 and at most 100; 99.9 when left out.

    Raises
    ------
    SpecError
        An unknown dtype, method or group_size, a percentile out of range or without its method, or
        a method beside a given scale.
    ArrayError
        x is not a finite matrix, a scale is not positive and finite, a zero point is outside dtype.
    """
    if dtype not in INTEGER_RANGE:
        raise SpecError(f"dtype={dtype!r}; expected one of {', '.join(INTEGER_RANGE)}")
    if method not in METHODS:
        raise SpecError(f"method={method!r}; expected one of {', '.join(METHODS)}")
    if scale is not None and method != "absmax":
        raise SpecError(f"method={method!r} finds the scale, but a scale was given; give only one")
    share = check_percentile(percentile, method)
    check_group_size(group_size)
    values = np.atleast_2d(np.asarray(x))
    if values.ndim != 2 or values.size == 0:
        raise ArrayError(f"expected a matrix with at least one element, not shape {values.shape}")
    values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise ArrayError("x holds NaN or infinity; only finite numbers can be quantized")
    shape = values.shape[0], values.shape[1]
    scales = scale_shape(shape, group_size)
    if symmetric is None:
        symmetric = zero_point is None and dtype.startswith("int")
    if symmetric and zero_point is not None:
        raise SpecError("symmetric=True has no zero_point, but one was given")

    if method == "percentile":
        low, high = percentile_range(values, group_size, share, symmetric=symmetric)
    else:
        low, high = group_range(values, group_size)
    least, greatest = INTEGER_RANGE[dtype]
    if scale is not None:
        s = broadcast("scale", scale, scales, np.float32)
    elif symmetric:
        s = np.maximum(-low, high) / np.float32(greatest)
    else:
        s = (high - low) / np.float32(greatest - least)
    if scale is None:
        s = np.where(s > 0, s, np.float32(1)).astype(np.float32)
    check_scale(s, scales)

    z: np.ndarray | None = None
    if zero_point is not None:
        z = broadcast("zero_point", zero_point, scales, np.int32)
        check_zero_point(z, scales, dtype)
    elif not symmetric:
        z = np.clip(np.rint(np.float32(least) - low / s), least, greatest).astype(np.int32)

    if method == "mse":
        s = least_error(values, s, z, dtype, group_size)

    data = np.empty(shape, np.int8 if dtype.startswith("int") else np.uint8)
    for rows in pieces(shape[0], BLOCK // shape[1]):
        with np.errstate(over="ignore"):  # infinity is clipped like any number out of range
            q = np.rint(values[rows] / spread_rows(s, rows, shape, group_size))
        if z is not None:
            q = q + spread_rows(z, rows, shape, group_size)
        data[rows] = np.clip(q, least, greatest)
    if dtype.endswith("int4"):
        fill = spread(z, shape, group_size) if z is not None else np.zeros(())
        last = np.broadcast_to(fill, shape)[:, -1].astype(data.dtype)
        data = pack_int4(data, fill=last)
    return QTensor(data, s, z, dtype, group_size, shape)


def dequantize(q: QTensor) -> np.ndarray:
    """float32 (rows, K): scale * (q - zero_point), the product rounded once."""
    integers = q.unpacked()
    values = np.empty(q.shape, np.float32)
    for rows in pieces(q.shape[0], BLOCK // max(1, q.shape[1])):
        steps = integers[rows].astype(np.int32)
        if q.zero_point is not None:
            steps = steps - spread_rows(q.zero_point, rows, q.shape, q.group_size)
        scale = spread_rows(q.scale, rows, q.shape, q.group_size)
        np.multiply(scale, steps.astype(np.float32), out=values[rows])
    return values


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
    v = np.asarray(values)
    if v.dtype.kind not in "iu" or v.ndim == 0:
        raise ArrayError(f"expected an array of integers, not {v.dtype.name}{v.shape}")
    if v.size and not ((v.min() >= -8 and v.max() <= 7) or (v.min() >= 0 and v.max() <= 15)):
        raise ArrayError(f"4-bit values span {v.min()} to {v.max()}; expected [-8, 7] or [0, 15]")
    if v.shape[-1] % 2:
        pad = np.broadcast_to(np.asarray(fill), v.shape[:-1])[..., None]
        v = np.concatenate([v, pad.astype(v.dtype)], axis=-1)
    nibbles = v.astype(np.uint8) & 0xF
    return np.ascontiguousarray(nibbles[..., 0::2] | nibbles[..., 1::2] << 4)


def unpack_int4(packed: npt.ArrayLike, k: int, *, signed: bool = True) -> np.ndarray:
    """The inverse of `pack_int4`: (..., k) of int8 in [-8, 7], or of uint8 in [0, 15]."""
    p = np.asarray(packed)
    if p.dtype != np.uint8 or p.ndim == 0 or p.shape[-1] != -(-k // 2):
        raise ArrayError(
            f"{k} 4-bit values are stored in {-(-k // 2)} bytes of uint8, "
            f"not {p.dtype.name}{p.shape}"
        )
    nibbles = np.stack([p & 0xF, p >> 4], axis=-1).reshape(*p.shape[:-1], -1)[..., :k]
    if not signed:
        return np.ascontiguousarray(nibbles)
    return ((nibbles ^ 8).astype(np.int8) - 8).astype(np.int8)


def broadcast(
    name: str, value: npt.ArrayLike, shape: tuple[int, ...], dtype: type[np.generic]
) -> np.ndarray:
    """`value` as an array of `shape`, a scalar being repeated."""
    array = np.asarray(value)
    if array.shape != shape and array.size != 1:
        raise ArrayError(f"{name} has shape {array.shape}; expected {shape} or a scalar")
    if dtype is np.int32 and array.dtype.kind not in "iu":
        raise ArrayError(f"{name} is {array.dtype.name}; expected integers")
    return np.broadcast_to(array.reshape(() if array.size == 1 else shape), shape).astype(dtype)


def check_percentile(percentile: float | None, method: str) -> float:
    """The percentile that a caller asks for, or the default."""
    if percentile is None:
        return PERCENTILE
    if method != "percentile":
        raise SpecError(
            f"percentile={percentile!r} with method={method!r}; expected method='percentile'"
        )
    number = isinstance(percentile, (int, float, np.number)) and not isinstance(percentile, bool)
    if not number or not 50 < percentile <= 100:
        raise SpecError(f"percentile={percentile!r}; expected more than 50, at most 100")
    return float(percentile)


def check_scale(scale: np.ndarray, shape: tuple[int, ...]) -> None:
    """Refuse scales of the wrong shape, and those that are not positive, finite float32."""
    if scale.shape != shape or scale.dtype != np.float32:
        raise ArrayError(f"scale is {scale.dtype.name}{scale.shape}; expected float32{shape}")
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        bad = scale[~(np.isfinite(scale) & (scale > 0))].flat[0]
        raise ArrayError(f"scale {bad}; expected positive finite numbers")


def check_zero_point(zero_point: np.ndarray, shape: tuple[int, ...], dtype: str) -> None:
    """Refuse zero points of the wrong shape, and those that `dtype` cannot hold."""
    if zero_point.shape != shape or zero_point.dtype != np.int32:
        raise ArrayError(
            f"zero_point is {zero_point.dtype.name}{zero_point.shape}; expected int32{shape}"
        )
    least, greatest = INTEGER_RANGE[dtype]
    if zero_point.size and not (least <= zero_point.min() and zero_point.max() <= greatest):
        outside = zero_point[(zero_point < least) | (zero_point > greatest)].flat[0]
        raise ArrayError(f"zero_point {outside}; {dtype} holds {least} to {greatest}")
