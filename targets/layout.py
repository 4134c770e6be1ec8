"""The private weight layout: [N / lanes][K / depth][lanes][depth], and what padding costs.

An instruction reads its weights from consecutive bytes. 4-bit weights lie two to a byte,
[N / lanes][K / (2 depth)][lanes][depth]: the low nibbles feed one instruction, the high ones the
next, so that one load and three operations on it feed two.

Nothing is padded that can overlap. When N is no multiple of `lanes`, the last block of columns
starts at N - lanes, and computes again what its neighbour computed. K is cut into blocks of
`k_block`, the unit in which activations are copied; when K is no multiple of it, the last block
starts at K - k_block, and what it repeats is multiplied by zero. Groups are whole blocks; where the
last one is shorter than the others, the blocks behind the end of K are zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .target import Instruction

#: Sizes of a block of K; a cache line of activations is the natural copy.
K_BLOCKS = (64, 32, 16, 8, 4)
#: How much larger than K the padded K may be before a smaller block is taken.
PADDING_LIMIT = 1.01

#: Integers of so many bytes, which NumPy moves and shifts at once.
WORDS = {1: "u1", 2: "<u2", 4: "<u4", 8: "<u8"}


@dataclass(frozen=True)
class WeightLayout:
    """Where weight (n, k) lies.

    Attributes
    ----------
    n, k : of the weight.   lanes : columns of a block.   depth : consecutive k of one column.
    k_block : see above.
    group_size : k per group, a multiple of k_block; None when all of a row is one group.
    bits : 8 or 4, of a stored weight.
    dtype : in which the instruction reads weights.
    stored_dtype : of the packed weight.
    offset : what is added to every weight before it is stored.
    pairs : within a block of K the even positions come first, then the odd ones. That is the order
        in which packed 4-bit activations unpack without a shuffle.
    matrices : of n rows each, whose blocks lie side by side: the first blocks of all of them, then
        the second ones. `pack` and `pack_columns` are for one of them.
    """

    n: int
    k: int
    lanes: int
    depth: int
    k_block: int
    group_size: int | None = None
    bits: int = 8
    dtype: str = "int8"
    stored_dtype: str = "int8"
    offset: int = 0
    pairs: bool = False
    matrices: int = 1

    @property
    def n_blocks(self) -> int:
        """Blocks of `lanes` rows of W."""
        return self.matrices * self.y_blocks

    @property
    def y_blocks(self) -> int:
        """Blocks of `lanes` columns of Y."""
        return -(-self.n // self.lanes)

    @property
    def groups(self) -> int:
        """Groups along K."""
        return 1 if self.group_size is None else -(-self.k // self.group_size)

    @property
    def k_blocks(self) -> int:
        """Blocks of `k_block` columns."""
        if self.group_size is None:
            return -(-self.k // self.k_block)
        return self.groups * (self.group_size // self.k_block)

    @property
    def k_padded(self) -> int:
        """K as the kernels see it."""
        return self.k_blocks * self.k_block

    @property
    def steps_per_byte(self) -> int:
        """Instructions that one packed vector feeds."""
        return 8 // self.bits

    @property
    def unpacked(self) -> bool:
        """Whether weights are unpacked before the instruction reads them."""
        return self.bits < 8

    @property
    def step_bytes(self) -> int:
        """Bytes of weights that belong together: a block of columns, `depth` of each."""
        return self.lanes * self.depth

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The packed weight's shape."""
        steps = self.k_padded // (self.depth * self.steps_per_byte)
        return self.n_blocks, steps, self.lanes, self.depth

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight."""
        return math.prod(self.shape)

    @property
    def k_even(self) -> int:
        """K, rounded up to whole bytes of packed activations."""
        return self.k + self.k % 2 if self.pairs else self.k

    @property
    def last_start(self) -> int:
        """The k at which the last block starts; negative when K is shorter than a block."""
        return self.k_even - self.k_block

    @property
    def last_column(self) -> int:
        """The n at which the last block of columns starts; 0 when N is shorter than a block."""
        return max(0, self.n - self.lanes)

    def pack(self, w: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """`w` (n, k) of integers in this layout, in `out` or a new array of `shape`."""
        data = w.view(self.stored_dtype)
        if self.offset:
            data = data + np.array(self.offset % 256, np.uint8).view(data.dtype)
        rows = self.placed(data)
        if self.pairs:
            blocks = rows.reshape(len(rows), self.k_blocks, self.k_block // 2, 2)
            rows = blocks.transpose(0, 1, 3, 2).reshape(rows.shape)
        if self.bits == 4:
            split = rows.reshape(len(rows), -1, 2, self.depth)
            rows = split[:, :, 0] | split[:, :, 1] << 4
        return self.interleaved(rows, out)

    @property
    def keeps_pairs(self) -> bool:
        """Whether `pack_pairs` packs the weight: 4-bit integers stay two to a byte meanwhile."""
        return self.bits == 4 and not self.pairs and self.k % 2 == 0 and self.depth in WORDS

    def pack_pairs(self, q: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """What `pack` makes of 4-bit integers (n, k), of such as lie two to a byte, (n, k / 2).

        Number 2i is in the low half; those that get an offset are in two's complement.
        """
        rows = self.placed(q ^ 0x88 if self.offset else q.copy(), per_byte=2)
        set_apart(rows.view(WORDS[self.depth]), self.depth)
        return self.interleaved(rows, out)

    def placed(self, w: np.ndarray, per_byte: int = 1) -> np.ndarray:
        """`w` (n, k) where N and K are as kernels see them, or itself where they are that already.

        What is overlapped stands twice, or in K in the second place; what is padded is zero.
        `per_byte` numbers lie in an element.
        """
        shape = self.n_blocks * self.lanes, self.k_padded // per_byte
        if w.shape == shape:
            return w
        k, block = self.k // per_byte, self.k_block // per_byte
        rows = np.zeros(shape, w.dtype)
        whole = k // block * block
        rows[: self.n, :whole] = w[:, :whole]
        if rest := k - whole:
            # The last block ends at K (or starts at 0 when K is shorter than a block).
            start = whole if self.last_start < 0 else 2 * whole - self.last_start // per_byte
            rows[: self.n, start : start + rest] = w[:, whole:]
        if self.n > self.lanes and self.n % self.lanes:
            rows[-self.lanes :] = rows[self.last_column : self.n].copy()
        return rows

    def interleaved(self, rows: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        """Bytes (n_blocks lanes, steps depth), with those of a step of all lanes side by side."""
        out = np.empty(self.shape, self.stored_dtype) if out is None else out
        run = np.dtype(WORDS.get(self.depth, f"V{self.depth}"))
        words = np.ascontiguousarray(rows.reshape(len(rows), -1)).view(run)
        blocks = words.reshape(self.n_blocks, self.lanes, -1).transpose(0, 2, 1)
        out.view(run)[..., 0] = blocks
        return out

    def pair_sums(self, packed: np.ndarray) -> np.ndarray:
        """Sums per column and group of the products of every even k with the next.

        As `pack_columns`, of what `pack` gave.
        """
        steps = packed.reshape(self.n_blocks, self.groups, -1, self.lanes, self.depth)
        return np.einsum("ngsld,ngsld->ngl", steps[..., ::2], steps[..., 1::2], dtype="int32")

    def pack_columns(self, values: np.ndarray) -> np.ndarray:
        """Numbers per column and group, (n, groups), as (n_blocks, groups, lanes)."""
        groups = values.shape[1]
        columns = np.zeros((self.n_blocks * self.lanes, groups), values.dtype)
        columns[: self.n] = values
        if self.n > self.lanes and self.n % self.lanes:
            columns[-self.lanes :] = values[self.last_column :]
        blocks = columns.reshape(self.n_blocks, self.lanes, groups)
        return np.ascontiguousarray(blocks.transpose(0, 2, 1))


def set_apart(words: np.ndarray, depth: int) -> None:
    """Move 4-bit integers, 2 depth of them in a word, so that i lies with i + depth.

    Two lie in a byte, and 2i lay with 2i + 1. It is a perfect shuffle, see Warren, "Hacker's
    Delight", 2nd edition, section 7-2.
    """
    moved = np.empty_like(words)
    bits = 8 * depth
    while bits > 8:  # exchange the second quarter of every `bits` with the third
        shift = bits // 4
        second = sum(((1 << shift) - 1) << at for at in range(shift, 8 * depth, bits))
        np.right_shift(words, shift, out=moved)
        moved ^= words
        moved &= second
        words ^= moved
        moved <<= shift
        words ^= moved
        bits //= 2


def weight_layout(
    n: int,
    k: int,
    instruction: Instruction,
    *,
    group_size: int | None = None,
    bits: int = 8,
    offset: int = 0,
    pairs: bool = False,
    k_block: int | None = None,
) -> WeightLayout:
    """The layout for an (n, k) weight.

    Its blocks of K are the first of `k_blocks` unless `k_block` is given, which must be one of
    them.
    """
    if group_size is not None and group_size >= k:
        group_size = None
    default, *_ = k_blocks(k, instruction, group_size, bits)
    return WeightLayout(
        n,
        k,
        instruction.block_columns,
        instruction.block_depth,
        k_block or default,
        group_size,
        bits,
        instruction.w_dtype,
        "uint8" if bits == 4 else instruction.w_dtype,
        offset,
        pairs,
    )


def k_blocks(k: int, instruction: Instruction, group_size: int | None, bits: int) -> list[int]:
    """Sizes that a block of K may have, the default first.

    That is the longest one that divides the group, or without groups the longest that wastes at
    most 1 %.
    """
    unit = instruction.block_depth * (8 // bits)
    sizes = [size for size in K_BLOCKS if size % unit == 0]
    if group_size is not None and group_size < k:
        return [size for size in sizes if group_size % size == 0]
    padded = {size: -(-k // size) * size for size in sizes}
    fit = [size for size in sizes if size <= k and padded[size] <= PADDING_LIMIT * k]
    return fit or [min(sizes, key=lambda size: padded[size])]
