"""Packing a weight for a kernel: some rows at a time, with the numbers that belong to it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterator

import numpy as np

from ..formats.quantize import QTensor
from ..formats.spec import MatmulSpec
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
    for expert, rows, matrix in itertools.product(
        range(experts), row_pieces(spec.n, layout.lanes, spec.k), range(spec.matrices)
    ):
        some = dataclasses.replace(layout, n=rows.stop - rows.start, matrices=1)
        start = expert * spec.w_rows + matrix * spec.n
        piece = w.rows(slice(start + rows.start, start + rows.stop))
        packed = packed_rows(spec, some, x_offset, piece)
        if "w_extra" in names and isinstance(some, WeightLayout):
            packed["w_extra"] = some.pair_sums(packed["w"])
        first = rows.start // layout.lanes
        for name in packed.keys() & set(names):
            array = packed[name]
            if name not in arrays:
                shape = experts * layout.n_blocks, *array.shape[1:]
                arrays[name] = aligned_empty(shape, array.dtype)
            of_expert = arrays[name][expert * layout.n_blocks : (expert + 1) * layout.n_blocks]
            of_expert[matrix :: spec.matrices][first : first + len(array)] = array
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
    spec: MatmulSpec, layout: WeightLayout | CudaLayout, x_offset: int, w: QTensor
) -> dict[str, np.ndarray]:
    """What a kernel reads of a weight, or of some rows of one whose layout is that of as many."""
    integers = w.unpacked()
    size = layout.group_size or spec.k
    starts = np.arange(0, spec.k, size)
    groups = len(starts)
    zero = np.zeros((len(integers), groups), np.int32)
    if w.zero_point is not None:
        zero += np.reshape(w.zero_point, (-1, groups) if w.zero_point.ndim else ())
    sums = np.add.reduceat(integers, starts, axis=1, dtype=np.int32)
    sums -= zero * np.diff(np.append(starts, spec.k)).astype(np.int32)
    if not spec.activation_zero_point:
        sums *= np.int32(x_offset)  # the whole correction

    def floats(values: np.ndarray) -> np.ndarray:
        """Numbers per group, or one for all, as they lie in the layout."""
        given = np.reshape(values, (-1, groups) if values.ndim else (1, 1))
        return layout.pack_columns(np.broadcast_to(given, zero.shape))

    offset = np.zeros((), np.float32) if w.offset is None else w.offset
    return {
        "w": layout.pack(integers),
        "w_sum": layout.pack_columns(sums),
        "w_zero_point": layout.pack_columns((zero + layout.offset).astype(layout.dtype)),
        "w_scale": floats(w.scale),
        "w_offset": floats(offset),
    }
