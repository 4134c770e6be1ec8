"""How the lanes of a warp hold matrices for mma and ldmatrix, from the text of the PTX ISA manual.

NVIDIA, "Parallel Thread Execution ISA", section "Warp Level Matrix Multiply-Accumulate
Instructions": "Matrix Fragments for mma.m8n8k16", "Matrix Fragments for mma.m16n8k32", and
"ldmatrix". Written out index by index, and knows nothing of `emulate.cpp`.
"""

from __future__ import annotations

import numpy as np

LANES = 32


def a_fragment(x: np.ndarray) -> np.ndarray:
    """The registers of A, uint32(32, registers), for x, 8-bit(8, 16) or (16, 32)."""
    rows, depth = x.shape
    elements = rows * depth // LANES
    fragment = np.empty((LANES, elements), x.dtype)
    for lane in range(LANES):
        group, member = lane >> 2, lane % 4
        for i in range(elements):
            row = group if 0 <= i < 4 or 8 <= i < 12 else group + 8
            column = member * 4 + (i & 3) if i < 8 else member * 4 + (i & 3) + 16
            fragment[lane, i] = x[row, column]
    return fragment.view(np.uint32)


def b_fragment(w: np.ndarray) -> np.ndarray:
    """The registers of B, uint32(32, registers), for w, 8-bit(8, 16 or 32): B is w transposed."""
    b = w.T
    elements = b.size // LANES
    fragment = np.empty((LANES, elements), w.dtype)
    for lane in range(LANES):
        group, member = lane >> 2, lane % 4
        for i in range(elements):
            row = member * 4 + (i & 3) if i < 4 else member * 4 + (i & 3) + 16
            fragment[lane, i] = b[row, group]
    return fragment.view(np.uint32)


def c_fragment(sums: np.ndarray) -> np.ndarray:
    """The registers of C, int32(32, registers), for sums, int32(8 or 16, 8)."""
    elements = sums.size // LANES
    fragment = np.empty((LANES, elements), sums.dtype)
    for lane in range(LANES):
        group, member = lane >> 2, lane % 4
        for i in range(elements):
            row = group if i < 2 else group + 8
            fragment[lane, i] = sums[row, member * 2 + (i & 1)]
    return fragment


def loaded(matrices: np.ndarray) -> np.ndarray:
    """What ldmatrix gives, uint32(32, n), for uint16(n, 8, 8): two elements of a row per lane."""
    fragment = np.empty((LANES, len(matrices), 2), np.uint16)
    for lane in range(LANES):
        for i, matrix in enumerate(matrices):
            fragment[lane, i] = matrix[lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2]
    return fragment.view(np.uint32)[..., 0]
