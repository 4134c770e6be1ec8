"""Integers of a few bits in words, and the `QTensor` that they become.

All formats here put numbers into words from the low bits on, and one number may lie in two
words. Words are little-endian, so that the same holds of their bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import WeightFileError
from ..formats.integers import INTEGERS
from ..formats.quantize import QTensor
from ..formats.ranges import pieces
from ..side_by_side import side_by_side

#: Numbers that are unpacked to single bits at a time.
BLOCK = 1 << 20
#: Rows and columns that are transposed at a time: both sides stay in a core's cache. Several words.
TILE = 256


def as_bytes(words: np.ndarray) -> np.ndarray:
    """The bytes of a matrix of words, row by row."""
    return np.ascontiguousarray(words).view(np.uint8)


def transposed(matrix: np.ndarray) -> np.ndarray:
    """The transpose, in memory of its own: several times as fast as NumPy's copy of it."""
    rows, columns = matrix.shape
    out = np.empty((columns, rows), matrix.dtype)

    def some(others: slice) -> None:
        for piece in pieces(rows, TILE):
            out[others, piece] = matrix[piece, others].T

    for_all(some, columns, matrix.size)
    return out


def for_all(work: Callable[[slice], None], columns: int, size: int) -> None:
    """`work` for all columns of a matrix of `size` numbers, on all cores where that is worth it."""
    if size < BLOCK:
        for some in pieces(columns, TILE):
            work(some)
    else:
        side_by_side(work, pieces(columns, TILE))


def unpack_rows(words: np.ndarray, bits: int) -> np.ndarray:
    """The numbers of words (R, N) whose columns are packed: (32 R / bits, N), as uint8."""
    if 32 % bits:
        return transposed(unpack(as_bytes(transposed(words)), bits, len(words) * 32 // bits))
    out = np.empty((len(words), 32 // bits, words.shape[1]), np.uint8)
    for place in range(32 // bits):
        out[:, place] = words >> (bits * place) & ((1 << bits) - 1)
    return out.reshape(-1, words.shape[1])


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first `count` numbers of `bits` bits in each row of bytes, as uint8."""
    rows = packed.shape[0]
    if bits == 8:
        return packed[:, :count]
    if bits == 4:
        out = np.empty((rows, 2 * packed.shape[1]), np.uint8)
        np.bitwise_and(packed, 15, out=out[:, 0::2])
        np.right_shift(packed, 4, out=out[:, 1::2])
        return out[:, :count]
    out = np.empty((rows, count), np.uint8)
    for some in pieces(rows, BLOCK // max(1, count)):
        single = np.unpackbits(packed[some], axis=1, count=count * bits, bitorder="little")
        grouped = single.reshape(-1, count, bits)
        out[some] = np.packbits(grouped, axis=2, bitorder="little")[:, :, 0]
    return out


def pack_pairs(codes: np.ndarray) -> np.ndarray:
    """Numbers below 16, two to a byte along K, the first in the low nibble; odd K ends in a 0."""
    packed = codes[:, 0::2].copy()
    packed[:, : codes.shape[1] // 2] |= codes[:, 1::2] << 4
    return packed


def columns_sorted(what: str, g_idx: np.ndarray, groups: int, group_size: int) -> np.ndarray | None:
    """The order in which columns of one group lie side by side; None where they do already.

    Parameters
    ----------
    what : is said in messages.
    g_idx : (K,), the group of each column.

    Raises
    ------
    WeightFileError
        A group that does not exist, or one that has more or fewer columns than `group_size`.
    """
    k = len(g_idx)
    usual = np.arange(k) // group_size
    if np.array_equal(g_idx, usual):
        return None
    if g_idx.min() < 0 or g_idx.max() >= groups:
        beyond = g_idx[(g_idx < 0) | (g_idx >= groups)][0]
        raise WeightFileError(f"{what} names the group {beyond}; expected 0 to {groups - 1}")
    order = np.argsort(g_idx, kind="stable").astype(np.int32)
    if not np.array_equal(g_idx[order], usual):
        counts = np.bincount(g_idx, minlength=groups)
        wrong = int(np.argmax(counts != np.bincount(usual, minlength=groups)))
        raise WeightFileError(
            f"{what} has {counts[wrong]} columns in group {wrong}; expected groups of {group_size}"
        )
    return order


def fields_of(bits: int, zero_point: int | bool, **fields: Any) -> dict[str, Any]:
    """What `qtensor` gives, as fields of a spec.

    Parameters
    ----------
    zero_point : one in all, or whether there are several.
    """
    _, name = stored_format(bits, zero_point)
    several = zero_point is True or (name.startswith("u") and bool(zero_point))
    return {"weight": name, "weight_zero_point": several, **fields}


def stored_format(bits: int, zero_point: int | bool) -> tuple[int, str]:
    """What is taken from each number, and the name of the format in which that is stored."""
    wide = 4 if bits <= 4 else 8
    if zero_point is True or zero_point is False:
        return 0, f"uint{wide}"
    fits = INTEGERS[f"int{wide}"].range
    if fits[0] <= -zero_point and (1 << bits) - 1 - zero_point <= fits[1]:
        return zero_point, f"int{wide}"
    return 0, f"uint{wide}"


def common(zero_points: np.ndarray) -> int | bool:
    """The one zero point that all are, or True."""
    first = int(zero_points.flat[0])
    return first if bool((zero_points == first).all()) else True


def qtensor(
    stored: np.ndarray,
    bits: int,
    k: int,
    scale: np.ndarray,
    zero_point: np.ndarray | None,
    group_size: int | str | None,
    *,
    offset: np.ndarray | None = None,
    order: np.ndarray | None = None,
) -> QTensor:
    """A weight from unsigned numbers.

    Where all zero points are one number in the middle of the range, it is taken from the numbers,
    which are signed then: kernels for those are faster.

    Parameters
    ----------
    stored : (N, K) of uint8, or for up to 4 bits (N, ceil(K / 2)), two to a byte. It is changed.
    """
    taken, name = stored_format(bits, False if zero_point is None else common(zero_point))
    if zero_point is not None and (taken or not zero_point.any()):
        zero_point = None
    if bits > 4:
        data = (stored - np.uint8(taken)).view(np.int8) if name == "int8" else stored
    else:
        if taken == 8:
            stored ^= 0x88
        elif taken:
            nibbles = (np.arange(16, dtype=np.uint8) - np.uint8(taken)) & 15
            both = nibbles[np.arange(256) & 15] | nibbles[np.arange(256) >> 4] << 4
            stored = both[stored]
        if k % 2:  # what pads an odd K is the zero point
            z = np.zeros((), np.uint8) if zero_point is None else zero_point.astype(np.uint8)
            stored[:, -1] = stored[:, -1] & 15 | (z if z.ndim < 2 else z[:, -1]) << 4
        data = stored
    shape = stored.shape[0], k
    return QTensor(data, scale, zero_point, name, group_size, shape, offset, order)
