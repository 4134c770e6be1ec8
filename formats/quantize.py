"""Quantization in NumPy: q = clip(round(x / scale) + zero_point), and back.

Rounding is half to even everywhere (np.rint). The mathematics is the usual affine scheme, see
Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", CVPR 2018, section 2.1; this module shares no code with the compiler and judges it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArrayError, SpecError
from ..side_by_side import side_by_side
from .integers import INTEGERS
from .nibbles import pack_int4, unpack_int4
from .ranges import (
    BLOCK,
    group_range,
    least_error,
    least_error_around,
    percentile_range,
    pieces,
    scale_shape,
    spread_rows,
    with_scales,
)
from .spec import MatmulSpec, as_group_size, as_size, say_short_groups
from .values import (
    FLOAT32_MAX,
    as_array,
    as_matrix,
    beside_rows,
    held,
    permutation,
    refuse_infinite,
    refuse_integers,
    scales,
    zero_points,
)

#: Numbers that a thread quantizes at a time.
STORED = 1 << 18
METHODS = ("absmax", "percentile", "mse")
PERCENTILE = 99.9


@dataclass(frozen=True, eq=False)
class QTensor:
    """A quantized matrix of `shape` (rows, K).

    Attributes
    ----------
    data : (rows, K) of int8 (for int7 too) or uint8; for int4 and uint4 (rows, ceil(K / 2)) of
        uint8, see `pack_int4`.
    scale : float32, of shape () for group_size "tensor", (rows,) for None, (rows, groups) else;
        any finite numbers, of which those of activations must be positive.
    zero_point : int32 of the same shape as `scale`, or None when symmetric.
    dtype : "int8", "uint8", "int4", "uint4" or "int7" (-64 to 63).
    group_size : None (one scale per row), "tensor", or the number of k per scale.
    offset : float32 of the same shape as `scale`, or None: what is added to scale * q, instead of
        a zero point.
    order : int32 (K,) or None: stored column k stands for column order[k] of the matrix, and is
        multiplied with that column of X. So columns that share a scale can lie side by side
        wherever they are in X: for GPTQ's act-order, where column c is in the group g_idx[c], it is
        argsort(g_idx, stable) and the columns are stored sorted.

    Arrays may be given as NumPy's, as torch tensors, or as any with DLPack; scales and offsets also
    as float16 or bfloat16, zero points and orders as any integers, and what is one per row as
    (rows, 1).
    """

    data: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray | None
    dtype: str
    group_size: int | str | None
    shape: tuple[int, int]
    offset: np.ndarray | None = None
    order: np.ndarray | None = None

    def __post_init__(self) -> None:
        check_format(self.dtype)
        object.__setattr__(self, "group_size", as_group_size(self.group_size))
        object.__setattr__(self, "shape", as_shape(self.shape))
        for name in ("data", "scale", "zero_point", "offset"):
            value = getattr(self, name)
            if value is not None or name in ("data", "scale"):
                object.__setattr__(self, name, held(name, value))
        rows, k = self.shape
        row = INTEGERS[self.dtype]
        expected = (rows, -(-k // 2) if row.packed else k), row.stored
        if (self.data.shape, self.data.dtype.name) != expected:
            raise ArrayError(
                f"{self.dtype} data of shape {self.shape} is stored as {expected[1]}{expected[0]}, "
                f"not {self.data.dtype.name}{self.data.shape}"
            )
        if row.holes:
            refuse_integers("data", self.data, self.dtype)
        shape = scale_shape(self.shape, self.group_size)
        for name in ("scale", "offset"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, stored_floats(name, value, shape))
        if self.zero_point is not None:
            zero_point = stored_zero_points(self.zero_point, shape, self.dtype)
            object.__setattr__(self, "zero_point", zero_point)
            if self.offset is not None:
                raise ArrayError("offset and zero_point are both given; expected one of them")
        if self.order is not None:
            object.__setattr__(self, "order", permutation("order", self.order, k))

    def rows(self, rows: slice) -> QTensor:
        """Some of the rows, over the same memory."""

        def some(values: np.ndarray | None) -> np.ndarray | None:
            return values if values is None or not values.ndim else values[rows]

        start, stop, _ = rows.indices(self.shape[0])
        part = copy.copy(self)  # of which nothing needs to be checked again
        for name in ("data", "scale", "zero_point", "offset"):
            object.__setattr__(part, name, some(getattr(self, name)))
        object.__setattr__(part, "shape", (max(0, stop - start), self.shape[1]))
        return part

    def spec(self, **fields: Any) -> MatmulSpec:
        """A spec that fits this weight.

        Parameters
        ----------
        fields : all of a `MatmulSpec` that no weight decides, such as input="float32" and
            dynamic=True; n too where there are several matrices (gated, experts).

        Raises
        ------
        SpecError
            They do not fit each other, or the weight.
        """
        own: dict[str, Any] = {"weight": self.dtype, "group_size": self.group_size}
        for name in ("zero_point", "offset", "order"):
            own["weight_" + name] = getattr(self, name) is not None
        n, k = self.shape
        given = {"n": n, "k": k, **fields}
        for name, value in {"k": k, **own}.items():
            if given.setdefault(name, value) != value:
                raise SpecError(f"{name}={given[name]!r}; the weight has {name}={value!r}")
        return MatmulSpec(**given)

    def unpacked(self) -> np.ndarray:
        """The quantized integers, (rows, K) of int8 or uint8."""
        if not INTEGERS[self.dtype].packed:
            return self.data
        return unpack_int4(self.data, self.shape[1], signed=self.dtype == "int4")


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
    offset: bool = False,
) -> QTensor:
    """Quantize a matrix.

    Parameters
    ----------
    x : (rows, K), finite numbers that float32 holds: NumPy, torch (of any device, wanting a
        gradient or not), anything with DLPack, or lists. A vector is taken as one row; there may
        be no rows.
    dtype : "int8", "uint8", "int4", "uint4" or "int7".
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
    offset : find floats that are added instead of zero points, as ggml's Q4_1 has them:
        scale = (max(x) - min(x)) / (qmax - qmin), offset = min(x) - scale * qmin, of ranges that
        need not have zero in them; q = clip(round((x - offset) / scale)). Where all numbers are the
        same the scale is 0. "mse" shrinks such a range around its middle, and what is left of its
        promise beside "absmax" is up to the rounding of float32. Weights alone may have offsets.

    Raises
    ------
    SpecError
        An unknown dtype, method or group_size, a percentile out of range or without its method, a
        method beside a given scale, or an offset beside a given scale or zero point, or beside
        symmetric=True.
    ArrayError
        x is not a finite matrix, a scale is not positive and finite, a zero point is outside
        dtype, or the range of an asymmetric format, from its least to its greatest number, is
        wider than float32 holds.
    """
    check_format(dtype)
    if method not in METHODS:
        raise SpecError(f"method={method!r}; expected one of {', '.join(METHODS)}")
    if scale is not None and method != "absmax":
        raise SpecError(f"method={method!r} finds the scale, but a scale was given; give only one")
    share = check_percentile(percentile, method)
    if offset:
        check_offset(offset, scale=scale, zero_point=zero_point, symmetric=symmetric or None)
    group_size = as_group_size(group_size)
    given = np.atleast_2d(as_array("x", x))
    nothing = given.ndim == 2 and given.shape[0] == 0 < given.shape[1]
    values = (given if nothing else as_matrix("x", given)).astype(np.float32, copy=False)
    shape = values.shape[0], values.shape[1]
    per_scale = scale_shape(shape, group_size)
    say_short_groups(group_size, shape[1])
    if symmetric is None:
        symmetric = zero_point is None and INTEGERS[dtype].signed and not offset
    if symmetric and zero_point is not None:
        raise SpecError("symmetric=True has no zero_point, but one was given")

    if nothing or (scale is not None and symmetric):  # there are none, or nobody asks
        low = high = np.zeros(per_scale, np.float32)
    elif method == "percentile":
        ends = {"symmetric": symmetric, "with_zero": not offset}
        low, high = percentile_range(values, group_size, share, **ends)
    else:
        low, high = group_range(values, group_size, with_zero=not offset)
    least, greatest = INTEGERS[dtype].range
    if scale is not None:
        s = broadcast("scale", scales("scale", scale), per_scale)
    else:
        s = np.maximum(-low, high) if symmetric else width(low, high)
        s = s / np.float32(greatest if symmetric else greatest - least)
        s = np.where(s > 0, s, np.float32(not offset)).astype(np.float32)

    z: np.ndarray | None = None
    b: np.ndarray | None = None
    if offset:
        b = np.asarray(low - s * np.float32(least))
    elif zero_point is not None:
        z = broadcast("zero_point", zero_points("zero_point", zero_point, dtype), per_scale)
    elif not symmetric:
        z = np.asarray(np.clip(np.rint(np.float32(least) - low / s), least, greatest), np.int32)

    if method == "mse" and not nothing:
        if b is None:
            s = least_error(values, s, z, dtype, group_size)
        else:
            s, b = least_error_around(values, s, b, dtype, group_size)

    integers = np.dtype(np.int8 if INTEGERS[dtype].signed else np.uint8)
    packed = INTEGERS[dtype].packed
    data = (
        np.empty((shape[0], -(-shape[1] // 2)), np.uint8) if packed else np.empty(shape, integers)
    )

    def store(rows: slice) -> None:
        some, at = values[rows], (rows, shape, group_size)
        q = np.empty_like(some)
        if b is not None:
            some = with_scales(np.subtract, some, b, *at, out=q)
        # Infinity is clipped like any number out of range, and 0 / 0 is what a scale of 0 covers.
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            with_scales(np.divide, some, s, *at, out=q)
        np.rint(q, out=q)
        if b is not None:
            np.nan_to_num(q, copy=False)
        if z is not None:
            with_scales(np.add, q, z.astype(np.float32), *at, out=q)
        np.clip(q, least, greatest, out=q)
        if packed:
            fill = 0 if z is None else last_of_rows(z, rows, shape)
            data[rows] = pack_int4(q.astype(integers), fill=fill)
        else:
            data[rows] = q

    side_by_side(store, pieces(shape[0], STORED // shape[1]))
    return QTensor(data, s, z, dtype, group_size, shape, b)


def last_of_rows(zero_point: np.ndarray, rows: slice, shape: tuple[int, int]) -> np.ndarray:
    """The zero points of the last numbers of these rows."""
    per_row = zero_point[:, -1] if zero_point.ndim == 2 else zero_point
    return np.broadcast_to(per_row, shape[0])[rows]


def check_offset(offset: object, **others: object) -> None:
    """Refuse what has no meaning beside offsets that are to be found."""
    if offset is not True:
        raise SpecError(f"offset={offset!r}; expected True or False")
    for name, value in others.items():
        if value is not None:
            given = "symmetric=True" if name == "symmetric" else f"a {name}"
            raise SpecError(f"{given} was given with offset=True; expected one of them")


def width(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """How wide the ranges are that asymmetric formats divide into steps."""
    with np.errstate(over="ignore"):
        wide = np.asarray(high - low)
    beyond = np.isinf(wide)
    if beyond.any():
        least, greatest = (np.asarray(end)[beyond].flat[0] for end in (low, high))
        raise ArrayError(
            f"x spans {least:.8g} to {greatest:.8g} under one scale; expected a range that float32 "
            f"holds, at most {FLOAT32_MAX:.8g}, or symmetric=True"
        )
    return wide


def dequantize(q: QTensor) -> np.ndarray:
    """float32 (rows, K): scale * (q - zero_point) or scale * q + offset, rounded once.

    Columns are in the order of X's, whatever order they are stored in.
    """
    q = check_qtensor("q", q)
    integers = q.unpacked()
    values = np.empty(q.shape, np.float32)
    for rows in pieces(q.shape[0], BLOCK // max(1, q.shape[1])):
        steps = integers[rows].astype(np.int32)
        if q.zero_point is not None:
            steps = steps - spread_rows(q.zero_point, rows, q.shape, q.group_size)
        scale = spread_rows(q.scale, rows, q.shape, q.group_size)
        if q.offset is None:
            np.multiply(scale, steps.astype(np.float32), out=values[rows])
        else:  # through float64, where the product is exact
            offset = spread_rows(q.offset, rows, q.shape, q.group_size)
            values[rows] = scale.astype(np.float64) * steps + offset
    if q.order is None:
        return values
    ordered = np.empty_like(values)
    ordered[:, q.order] = values
    return ordered


def broadcast(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`array` in `shape`, a scalar being repeated."""
    if array.shape != shape and array.size != 1:
        raise ArrayError(f"{name} has shape {array.shape}; expected {shape} or a scalar")
    return np.broadcast_to(array.reshape(() if array.size == 1 else shape), shape).copy()


def check_format(dtype: object) -> None:
    """Refuse what is not the name of an integer format."""
    if not isinstance(dtype, str) or dtype not in INTEGERS:
        raise SpecError(f"dtype={dtype!r}; expected one of {', '.join(INTEGERS)}")


def check_qtensor(name: str, q: object) -> QTensor:
    """Refuse what is not a `QTensor`."""
    if not isinstance(q, QTensor):
        raise ArrayError(f"{name} is {type(q).__name__}; expected a QTensor, see quantize")
    return q


def as_shape(shape: Any) -> tuple[int, int]:
    """The shape of a matrix, which may be empty."""
    if not isinstance(shape, (tuple, list)) or len(shape) != 2:
        raise ArrayError(f"shape={shape!r}; expected (rows, K)")
    rows, k = (as_size("shape", size, least=0) for size in shape)
    return rows, k


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


def stored_floats(name: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Scales or offsets as float32 of `shape`, into which those of 16 bits go exactly."""
    array = beside_rows(value, shape)
    short = array.dtype.name in ("float16", "bfloat16")
    if array.shape != shape or not (short or array.dtype == np.float32):
        raise ArrayError(f"{name} is {value.dtype.name}{value.shape}; expected float32{shape}")
    array = array.astype(np.float32, copy=False)
    refuse_infinite(name, array)
    return array


def stored_zero_points(value: np.ndarray, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Zero points as int32 of `shape`, each of which the format `dtype` holds."""
    array = beside_rows(value, shape)
    if array.shape != shape or array.dtype.kind not in "iu":
        raise ArrayError(f"zero_point is {value.dtype.name}{value.shape}; expected int32{shape}")
    return zero_points("zero_point", array, dtype)
