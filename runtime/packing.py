"""Packing a weight for a kernel: some rows at a time, with the numbers that belong to it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterator

import numpy as np

from ..formats.integers import INTEGERS
from ..formats.quantize import QTensor
from ..formats.spec import MatmulSpec
from ..side_by_side import side_by_side
from ..targets import WeightLayout
from ..targets.cuda_layout import CudaLayout
from .memory import aligned, aligned_empty

#: Weights that are packed at a time.
PIECE = 2 << 20


def packed_weight(
    spec: MatmulSpec,
    layout: WeightLayout | CudaLayout,
    x_offset: int,
    w: QTensor,
    names: Collection[str],
) -> dict[str, np.ndarray]:
    """The arrays of `names` that a kernel reads of a weight, in its private layout and aligned.

    Packed some rows at a time, which leaves beside the result a few of these pieces in memory. The
    weights of experts lie one behind the other.
    """
    arrays: dict[str, np.ndarray] = {}
    if "w_order" in names:
        order = np.arange(spec.k, dtype=np.int32) if w.order is None else w.order
        arrays["w_order"] = aligned(order)
    experts = spec.experts or 1

    def at(array: np.ndarray, expert: int, rows: slice, matrix: int) -> np.ndarray:
        """Where some rows of a matrix of an expert lie."""
        of_expert = array[expert * layout.n_blocks : (expert + 1) * layout.n_blocks]
        return of_expert[matrix :: spec.matrices][
            rows.start // layout.lanes : -(-rows.stop // layout.lanes)
        ]

    def pack(part: tuple[int, slice, int]) -> None:
        expert, rows, matrix = part
        some = dataclasses.replace(layout, n=rows.stop - rows.start, matrices=1)
        start = expert * spec.w_rows + matrix * spec.n
        piece = w.rows(slice(start + rows.start, start + rows.stop))
        packed = at(arrays["w"], *part)
        for name, array in packed_rows(spec, some, x_offset, piece, names, packed).items():
            if name not in arrays:
                shape = experts * layout.n_blocks, *array.shape[1:]
                arrays[name] = aligned_empty(shape, array.dtype)
            at(arrays[name], *part)[...] = array

    shape = experts * layout.n_blocks, *layout.shape[1:]
    arrays["w"] = aligned_empty(shape, layout.stored_dtype)
    pieces = row_pieces(spec.n, layout.lanes, spec.k)
    first_part, *others = itertools.product(range(experts), pieces, range(spec.matrices))
    pack(first_part)  # which makes the other arrays
    if others:
        side_by_side(pack, others)
    return arrays


def packed_bias(
    spec: MatmulSpec, layout: WeightLayout | CudaLayout, bias: np.ndarray
) -> np.ndarray:
    """The biases of all columns of every expert in a kernel's private layout and aligned."""
    one = dataclasses.replace(layout, matrices=1)
    parts = np.split(bias, (spec.experts or 1) * spec.matrices)
    columns = [one.pack_columns(part[:, None]) for part in parts]
    of_experts = [
        np.stack(columns[first : first + spec.matrices], axis=1)
        for first in range(0, len(columns), spec.matrices)
    ]
    packed = np.concatenate(of_experts)
    return aligned(packed.reshape(-1, *packed.shape[2:]))


def row_pieces(n: int, lanes: int, k: int) -> Iterator[slice]:
    """Rows of W that are packed at a time: whole blocks, and at the end what a block overlaps."""
    size = max(1, PIECE // (k * lanes)) * lanes
    start = 0
    while start < n:
        stop = start + size
        if n - stop < lanes:
            stop = n
        yield slice(start, stop)
        start = stop


def packed_rows(
    spec: MatmulSpec,
    layout: WeightLayout | CudaLayout,
    x_offset: int,
    w: QTensor,
    names: Collection[str],
    packed: np.ndarray,
) -> dict[str, np.ndarray]:
    """What a kernel reads of some rows of a weight, whose layout is that of as many.

    Their integers come into `packed`.
    """
    size = layout.group_size or spec.k
    starts = np.arange(0, spec.k, size)
    shape = w.shape[0], len(starts)

    def of_groups(values: np.ndarray) -> np.ndarray:
        """Numbers per group, or one for all, as they lie in the layout."""
        given = np.reshape(values, (-1, shape[1]) if values.ndim else (1, 1))
        return layout.pack_columns(np.broadcast_to(given, shape))

    if layout.keeps_pairs:
        layout.pack_pairs(w.data, packed)
    else:
        layout.pack(w.unpacked(), packed)
    arrays: dict[str, np.ndarray] = {}
    zero = np.zeros((), np.int32) if w.zero_point is None else w.zero_point
    if "w_sum" in names:
        sums = sums_of_groups(w, starts)
        count = np.diff(np.append(starts, spec.k)).astype(np.int32)
        sums -= np.reshape(zero, (-1, shape[1]) if zero.ndim else ()) * count
        if not spec.activation_zero_point:
            sums *= np.int32(x_offset)  # the whole correction
        arrays["w_sum"] = layout.pack_columns(sums)
    if "w_zero_point" in names:
        arrays["w_zero_point"] = of_groups((zero + layout.offset).astype(layout.dtype))
    if "w_scale" in names:
        arrays["w_scale"] = of_groups(w.scale)
    if "w_offset" in names:
        arrays["w_offset"] = of_groups(np.zeros((), np.float32) if w.offset is None else w.offset)
    if "w_extra" in names and isinstance(layout, WeightLayout):
        arrays["w_extra"] = layout.pair_sums(packed)
    return arrays


def sums_of_groups(w: QTensor, starts: np.ndarray) -> np.ndarray:
    """The sum of the integers of each group, (rows, groups) of int32."""
    if not INTEGERS[w.dtype].packed or w.shape[1] % 2:
        return np.add.reduceat(w.unpacked(), starts, axis=1, dtype=np.int32)
    least = INTEGERS[w.dtype].least
    pairs = w.data ^ 0x88 if least else w.data
    sums = np.add.reduceat((pairs & 15) + (pairs >> 4), starts // 2, axis=1, dtype=np.int32)
    return sums + np.int32(least) * np.diff(np.append(starts, w.shape[1])).astype(np.int32)
