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

    def pack(self, w: np.ndarray) -> np.ndarray:
        """`w` (n, k) of integers in this layout."""
        rows = np.zeros((self.n_blocks * self.lanes, self.k_padded), self.stored_dtype)
        whole = self.k // self.k_block * self.k_block
        rows[: self.n, :whole] = w[:, :whole]
        if rest := self.k - whole:
            # The last block ends at K (or starts at 0 when K is shorter than a block).
            start = whole if self.last_start < 0 else 2 * whole - self.last_start
            rows[: self.n, start : start + rest] = w[:, whole:]
        if self.offset:
            offset = np.array(self.offset % 256, np.uint8).view(rows.dtype)
            rows[: self.n, :whole] += offset
            if rest:
                rows[: self.n, start : start + rest] += offset
        if self.n > self.lanes and self.n % self.lanes:
            overlap = rows[self.last_column : self.n].copy()
            rows[-self.lanes :] = overlap
        if self.pairs:
            blocks = rows.reshape(len(rows), self.k_blocks, self.k_block // 2, 2)
            rows = blocks.transpose(0, 1, 3, 2).reshape(rows.shape)
        split = rows.reshape(self.n_blocks, self.lanes, -1, self.steps_per_byte, self.depth)
        data = split[:, :, :, 0]
        if self.bits == 4:
            data = data | split[:, :, :, 1] << 4
        return np.ascontiguousarray(data.transpose(0, 2, 1, 3))

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
