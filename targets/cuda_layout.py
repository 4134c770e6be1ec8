"""The private weight layout of NVIDIA's GPUs: [N / 8][steps][8][piece].

A step is what one product of a warp covers: 8 columns, `piece` bytes of each. Lane 4 c + t of a
warp reads the t-th quarter of column c, at most 16 bytes, and a warp all 8 * piece of them in a
row. The tensor core does not mind which k it is given as which, as long as both operands agree: so
a lane takes a quarter of a row of X as well, with one load of shared memory. Quarters of 4 bytes
are what ldmatrix gives.

4-bit weights lie two to a byte, the `piece` first k of a step in the low nibbles, the next ones in
the high ones. Multiplied in the upper half of a byte (w << 4), they count 16 times.

Groups are whole steps. Positions that stand for no k are zero: whatever X has there adds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Columns of a block: those of one tensor core product.
COLUMNS = 8
#: Lanes of a warp that share a column.
QUARTERS = 4
#: Bytes of a column in a step, best first: a lane's quarter is one load.
PIECES = (64, 32, 16)
#: Groups, or without groups steps, come in multiples of this number: what warps share out.
SHARED_OUT = 4
#: Groups that the warps of a block sum at a time.
SUMMED_AT_ONCE = 8


@dataclass(frozen=True)
class CudaLayout:
    """Where weight (n, k) lies.

    Attributes
    ----------
    n, k : of the weight.
    group_size : k per group; None when all of a row is one group.
    bits : 8 or 4.
    dtype : in which weights are multiplied, int8 or uint8.
    matrices : of n rows each, whose blocks lie side by side; see `layout.WeightLayout`.
    """

    n: int
    k: int
    group_size: int | None = None
    bits: int = 8
    dtype: str = "int8"
    matrices: int = 1

    @property
    def halves(self) -> int:
        """Weights in a byte."""
        return 8 // self.bits

    @property
    def piece(self) -> int:
        """Bytes of a column in a step."""
        if self.group_size is None:
            return PIECES[0]
        least = PIECES[-1]
        fits = (p for p in PIECES if self.group_size % (p * self.halves) == 0)
        return next(fits, least)

    @property
    def depth(self) -> int:
        """K in a step."""
        return self.piece * self.halves

    @property
    def groups(self) -> int:
        """Groups along K, with those behind its end that are all zero."""
        if self.group_size is None:
            return 1
        return rounded_up(-(-self.k // self.group_size), SHARED_OUT)

    @property
    def group_steps(self) -> int:
        """Steps of a group."""
        if self.group_size is None:
            return rounded_up(-(-self.k // self.depth), SHARED_OUT)
        return -(-self.group_size // self.depth)

    @property
    def steps(self) -> int:
        """Steps along K."""
        return self.groups * self.group_steps

    @property
    def x_columns(self) -> int:
        """Bytes of a row of X as kernels read it: every group as long as its steps."""
        return self.steps * self.depth

    @property
    def sum_columns(self) -> int:
        """Sums of a row of X: one per group, and zeros up to a whole round of the warps."""
        return 1 if self.groups == 1 else rounded_up(self.groups, SUMMED_AT_ONCE)

    @property
    def reads_in_place(self) -> bool:
        """Whether X of K columns is already as kernels read it."""
        return self.x_columns == self.k

    @property
    def n_blocks(self) -> int:
        """Blocks of 8 rows of W."""
        return self.matrices * -(-self.n // COLUMNS)

    @property
    def lanes(self) -> int:
        """Columns of a block."""
        return COLUMNS

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The packed weight's shape, in bytes."""
        return self.n_blocks, self.steps, COLUMNS, self.piece

    @property
    def stored_dtype(self) -> str:
        """The dtype of the packed weight."""
        return "uint8" if self.bits == 4 else self.dtype

    @property
    def offset(self) -> int:
        """What is added to every weight before it is stored: both signs are multiplied."""
        return 0

    @property
    def factor(self) -> int:
        """By how much products of packed weights are too large: 16 where nibbles are high ones."""
        return 16 if self.bits == 4 else 1

    @property
    def keeps_pairs(self) -> bool:
        """Whether `pack_pairs` packs the weight: 4-bit integers stay two to a byte meanwhile."""
        return self.bits == 4 and self.k % 2 == 0

    def pack_pairs(self, q: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """What `pack` makes of 4-bit integers (n, k), of such as lie two to a byte, (n, k / 2).

        Number 2i is in the low half.
        """
        rows = np.zeros((self.n_blocks * COLUMNS, self.x_columns // 2), np.uint8)
        rows[: self.n] = self.spread(q, per_byte=2)
        first, second = (rows.reshape(-1, 2, self.piece // 2)[:, half] for half in range(2))
        pairs = (first & 15 | second << 4).astype("<u2")
        pairs |= (first >> 4 | second & 0xF0).astype("<u2") << 8
        return self.interleaved(pairs, out)

    def spread(self, w: np.ndarray, per_byte: int = 1) -> np.ndarray:
        """Rows (n, k) with every group as long as its steps, zero where no k is.

        `per_byte` numbers lie in an element.
        """
        size, padded = self.group_size or self.k, self.group_steps * self.depth
        whole, rest = self.k // size, self.k % size
        size, padded, rest = size // per_byte, padded // per_byte, rest // per_byte
        rows = np.zeros((len(w), self.groups, padded), w.dtype)
        rows[:, :whole, :size] = w[:, : whole * size].reshape(len(w), whole, size)
        if rest:
            rows[:, whole, :rest] = w[:, whole * size :]
        return rows.reshape(len(w), -1)

    def pack(self, w: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """`w` (n, k) of integers in this layout, in `out` or a new array of `shape`."""
        rows: np.ndarray = np.zeros((self.n_blocks * COLUMNS, self.x_columns), np.uint8)
        rows[: self.n] = self.spread(w.view(np.uint8))
        if self.bits == 4:
            pieces = rows.reshape(-1, 2, self.piece)
            rows = pieces[:, 0] & 15 | pieces[:, 1] << 4
        return self.interleaved(rows, out)

    def interleaved(self, rows: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        """Bytes (n_blocks columns, steps piece), with those of a step of a block side by side."""
        out = np.empty(self.shape, self.stored_dtype) if out is None else out
        pieces = np.ascontiguousarray(rows).view(f"V{self.piece}")
        blocks = pieces.reshape(self.n_blocks, COLUMNS, self.steps).transpose(0, 2, 1)
        out.view(pieces.dtype)[..., 0] = blocks
        return out

    def pack_columns(self, values: np.ndarray) -> np.ndarray:
        """Numbers per column and group as (n_blocks, groups, 8), or per column with one group."""
        groups = 1 if values.shape[1] == 1 else self.groups
        columns = np.zeros((self.n_blocks * COLUMNS, groups), values.dtype)
        columns[: self.n, : values.shape[1]] = values
        blocks = columns.reshape(self.n_blocks, COLUMNS, groups)
        return np.ascontiguousarray(blocks.transpose(0, 2, 1))


def rounded_up(count: int, unit: int) -> int:
    """The next multiple of `unit`."""
    return -(-count // unit) * unit


def cuda_layout(
    n: int, k: int, *, group_size: int | None = None, bits: int = 8, dtype: str = "int8"
) -> CudaLayout:
    """The layout for an (n, k) weight; a group of all of K is none."""
    group_size = None if group_size is not None and group_size >= k else group_size
    return CudaLayout(n, k, group_size, bits, dtype)
