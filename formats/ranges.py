"""What one scale covers, and its range: all numbers, a percentile of them, or what errs least."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..side_by_side import side_by_side
from .integers import INTEGERS

#: Elements per step of a loop over a matrix: a few float32 arrays of them stay in a core's cache.
BLOCK = 1 << 16

#: Elements that a thread looks at at a time. Fewer, and threads wait for Python's lock.
SEARCHED = 1 << 18
#: Rows of fewer numbers are searched side by side.
SHORT = 1 << 10
#: Of two estimated errors one is greater for sure if this much of it is.
SURE = np.float32(0.999)
#: What a number may be before it is rounded: each (rows, 1), or one for all.
Bounds = tuple[Any, Any]

#: What `least_error` multiplies the scale by. 1 comes first, so that it wins a tie.
SHRINK = np.linspace(1, 0.2, 81, dtype=np.float32)


def pieces(length: int, size: int) -> Iterator[slice]:
    """Slices of `size` (at least 1) that cover `length`; the last may be shorter."""
    size = max(1, size)
    return (slice(start, start + size) for start in range(0, length, size))


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
        # A group may be far longer than K.
        return np.repeat(values, min(group_size, shape[1]), axis=1)[:, : shape[1]]
    return values[:, None] if values.ndim == 1 else values


def spread_rows(
    scale: np.ndarray, rows: slice, shape: tuple[int, int], group_size: int | str | None
) -> np.ndarray:
    """What `spread` gives for these rows of the matrix."""
    return spread(scale[rows] if scale.ndim else scale, shape, group_size)


def with_scales(
    operation: np.ufunc,
    x: np.ndarray,
    scale: np.ndarray,
    rows: slice,
    shape: tuple[int, int],
    group_size: int | str | None,
    out: np.ndarray,
) -> np.ndarray:
    """`operation` on x, which is `rows` of a matrix of `shape`, and what these rows share."""
    if not isinstance(group_size, int) or shape[1] % group_size:
        return operation(x, spread_rows(scale, rows, shape, group_size), out=out)
    groups = len(x), -1, group_size
    operation(x.reshape(groups), scale[rows][..., None], out=out.reshape(groups))
    return out


def group_range(
    x: np.ndarray, group_size: int | str | None, *, with_zero: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest value of whatever shares a scale, zero among them or not."""
    if group_size == "tensor":
        low, high = x.min(), x.max()
    elif group_size is None:
        low, high = x.min(axis=1), x.max(axis=1)
    else:
        assert isinstance(group_size, int)
        starts = np.arange(0, x.shape[1], min(group_size, x.shape[1]))
        low, high = np.empty((2, len(x), len(starts)), x.dtype)

        def find(rows: slice) -> None:
            np.minimum.reduceat(x[rows], starts, axis=1, out=low[rows])
            np.maximum.reduceat(x[rows], starts, axis=1, out=high[rows])

        side_by_side(find, pieces(len(x), SEARCHED // x.shape[1]))
    return including_zero(low, high) if with_zero else (low, high)


def including_zero(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranges with zero in them."""
    zero = np.float32(0)
    return np.minimum(low, zero), np.maximum(high, zero)


def percentile_range(
    x: np.ndarray,
    group_size: int | str | None,
    percentile: float,
    *,
    symmetric: bool,
    with_zero: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """The range without its outliers, zero among it or not; its tails will be clipped.

    Symmetric: ± the percentile of |x|. Asymmetric: the percentile of x, and as low down as that
    is high up, minus the percentile of -x. Between two numbers it is interpolated linearly. Where
    that leaves nothing but one number, all of the range is taken.

    Percentile calibration is described in Wu et al., "Integer Quantization for Deep Learning
    Inference: Principles and Empirical Evaluation", 2020 (arXiv 2004.09602), section 4.
    """
    if symmetric:
        high = upper(np.abs(x), group_size, percentile)
        low = -high
    else:
        low, high = -upper(-x, group_size, percentile), upper(x, group_size, percentile)
    if with_zero:
        low, high = including_zero(low, high)
    least, greatest = group_range(x, group_size, with_zero=with_zero)
    nothing = low == high
    return np.where(nothing, least, low), np.where(nothing, greatest, high)


def upper(x: np.ndarray, group_size: int | str | None, percentile: float) -> np.ndarray:
    """The percentile of whatever shares a scale, float32."""
    if group_size == "tensor":
        return of_last_axis(x.reshape(-1), percentile)
    if group_size is None:
        return of_last_axis(x, percentile)
    assert isinstance(group_size, int)
    rows, k = x.shape
    whole = k // group_size * group_size
    parts = [of_last_axis(x[:, :whole].reshape(rows, -1, group_size), percentile)] if whole else []
    if whole < k:
        parts.append(of_last_axis(x[:, whole:], percentile)[:, None])
    return np.concatenate(parts, axis=1)


def of_last_axis(x: np.ndarray, percentile: float) -> np.ndarray:
    """The percentile along the last axis, float32.

    np.percentile interpolates in float32, where the difference of two numbers may overflow.
    """
    last = x.shape[-1] - 1
    position = percentile / 100 * last
    below = int(position)
    above = min(below + 1, last)
    ordered = np.partition(x, (below, above), axis=-1)
    start, end = (ordered[..., i].astype(np.float64) for i in (below, above))
    return (start + (position - below) * (end - start)).astype(np.float32)


def least_error(
    x: np.ndarray,
    scale: np.ndarray,
    zero_point: np.ndarray | None,
    dtype: str,
    group_size: int | str | None,
) -> np.ndarray:
    """Each scale times that factor of `SHRINK` which leaves the least squared error.

    The error is that of x against what quantizing and dequantizing makes of it, summed over
    whatever shares the scale. Both ends of the range shrink alike, so zero points stay.

    Minimising it by a search over a grid is described in Nagel et al., "A White Paper on Neural
    Network Quantization", 2021 (arXiv 2106.08295), section 3.1; a grid of factors from 1 to 0.2 is
    what the published code of GPTQ (Frantar et al., 2022) uses.
    """
    values = lines(x, group_size)
    count, width = values.shape
    s = scale.reshape(-1, 1)
    least, greatest = (np.float32(end) for end in INTEGERS[dtype].range)
    zero = None if zero_point is None else zero_point.reshape(-1, 1).astype(np.float32)
    found = np.empty_like(s)

    def search(rows: slice) -> None:
        given = s[rows]
        bounds = (least, greatest) if zero is None else (least - zero[rows], greatest - zero[rows])
        blocks = [values[rows, columns] for columns in pieces(width, SEARCHED)]
        shrunk = given * SHRINK[best_factors(blocks, given, bounds)][:, None]
        shrunk = np.where(shrunk > 0, shrunk, given)  # the least float32 may have become zero
        # The estimates are rounded. What decides is exact, so nothing is ever worse than before.
        after, before = (
            sum(squared_error(block, by, *bounds) for block in blocks) for by in (shrunk, given)
        )
        found[rows] = np.where(np.asarray(after < before)[:, None], shrunk, given)

    side_by_side(search, pieces(count, SEARCHED // width))
    return found.reshape(scale.shape)


def least_error_around(
    values: np.ndarray,
    scale: np.ndarray,
    offset: np.ndarray,
    dtype: str,
    group_size: int | str | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Scales and offsets of ranges that shrink around their middle, see `least_error`."""
    shape = values.shape[0], values.shape[1]
    middle = np.int32(sum(INTEGERS[dtype].range) // 2)
    anchor = offset + scale * middle.astype(np.float32)
    beside = values - spread(anchor, shape, group_size)
    usable = np.where(scale > 0, scale, np.float32(1))
    found = least_error(beside, usable, np.full_like(scale, middle, np.int32), dtype, group_size)
    scale = np.where(scale > 0, found, scale)
    return scale, np.asarray(anchor - scale * middle.astype(np.float32))


def lines(x: np.ndarray, group_size: int | str | None) -> np.ndarray:
    """`x` with one row per scale; a shorter last group is filled with zeros, which have no error.

    The rows are in the order of the scales.
    """
    if group_size == "tensor":
        return x.reshape(1, -1)
    if group_size is None:
        return x
    assert isinstance(group_size, int)
    width = min(group_size, x.shape[1])
    missing = -x.shape[1] % width
    return (np.pad(x, ((0, 0), (0, missing))) if missing else x).reshape(-1, width)


def best_factors(blocks: list[np.ndarray], scale: np.ndarray, bounds: Bounds) -> np.ndarray:
    """For each row the number of the factor that leaves the least squared error, as estimated.

    Once the greatest and the least number of every row, cut off, err more by themselves than the
    best factor so far leaves in all, smaller factors are not tried: their error is greater still.

    Parameters
    ----------
    blocks : of columns, (rows, columns) each.
    scale, bounds : (rows, 1), or a number for all.
    """
    short = blocks[0].shape[1] < SHORT
    # Numbers of short rows stand in columns: NumPy's loops are along the last axis.
    steps = [turned(block, short) / turned(scale, short) for block in blocks]
    low, high = (turned(np.asarray(bound), short) for bound in bounds)
    axis = 0 if short else 1
    ends = [(block.min(axis, keepdims=True), block.max(axis, keepdims=True)) for block in steps]
    least = np.minimum.reduce([end[0] for end in ends])
    greatest = np.maximum.reduce([end[1] for end in ends])
    q = [np.empty_like(block) for block in steps]
    scratch = np.empty(max(block.size for block in steps), np.float32)
    best = np.zeros(len(scale), np.intp)
    error = np.full(len(scale), np.inf, np.float32)
    for i, factor in enumerate(SHRINK):
        cut_off = np.maximum(np.maximum(greatest - high * factor, low * factor - least), 0)
        if np.all(np.square(cut_off.reshape(-1)) * SURE > error):
            break
        left = np.zeros(len(scale), np.float32)
        for block, out in zip(steps, q, strict=True):
            scaled = np.multiply(block, 1 / factor, out=scratch[: block.size].reshape(block.shape))
            np.rint(scaled, out=out)
            np.clip(out, low, high, out=out)
            out -= scaled
            out *= out
            left += np.add.reduce(out, axis=axis)
        left *= factor * factor
        better = left < error
        best[better] = i
        np.minimum(error, left, out=error)
    return best


def turned(values: np.ndarray, short: bool) -> np.ndarray:
    """Rows as columns, if they are short."""
    return np.ascontiguousarray(values.T) if short and values.ndim else values


def squared_error(values: np.ndarray, scale: np.ndarray, low: Any, high: Any) -> np.ndarray:
    """The squared error of each row, of the very numbers that `dequantize` gives."""
    q = np.clip(np.rint(values / scale), low, high)
    difference = values.astype(np.float64) - scale * q
    return np.einsum("ij,ij->i", difference, difference)
