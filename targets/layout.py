"""The private weight layout: [N / lanes][K / depth][lanes][depth], and what padding K costs.

One instruction reads `lanes * depth` weights from consecutive bytes. N is padded with zero rows.
K is cut into blocks of `k_block` bytes, the unit in which activations are copied; when K is not a
multiple of it, the last block starts at K - k_block and so overlaps its neighbour. Its copy of the
activations then needs no guard, and its repeated weights are zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .target import Instruction

#: Sizes of a block of K in bytes; a cache line is the natural copy.
K_BLOCKS = (64, 32, 16, 8, 4)
#: How much larger than K the padded K may be before a smaller block is taken.
PADDING_LIMIT = 1.01


@dataclass(frozen=True)
class WeightLayout:
    """Where weight (n, k) lies.

    Attributes
    ----------
    n, k : of the weight.   lanes, depth : of the instruction.   k_block : see above.
    """

    n: int
    k: int
    lanes: int
    depth: int
    k_block: int

    @property
    def n_blocks(self) -> int:
        """Blocks of `lanes` rows of W."""
        return -(-self.n // self.lanes)

    @property
    def k_blocks(self) -> int:
        """Blocks of `k_block` columns."""
        return -(-self.k // self.k_block)

    @property
    def k_padded(self) -> int:
        """K as the kernels see it."""
        return self.k_blocks * self.k_block

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The packed weight's shape."""
        return self.n_blocks, self.k_padded // self.depth, self.lanes, self.depth

    @property
    def last_start(self) -> int:
        """The k at which the last block starts; negative when K is shorter than a block."""
        return self.k - self.k_block

    def pack(self, w: np.ndarray) -> np.ndarray:
        """`w` (n, k) of int8 in this layout."""
        rows = np.zeros((self.n_blocks * self.lanes, self.k_padded), w.dtype)
        whole = self.k // self.k_block * self.k_block
        rows[: self.n, :whole] = w[:, :whole]
        if rest := self.k - whole:
            # The last block ends at K (or starts at 0 when K is shorter than a block).
            end = self.k_padded if self.last_start >= 0 else rest
            rows[: self.n, end - rest : end] = w[:, whole:]
        split = rows.reshape(self.n_blocks, self.lanes, -1, self.depth)
        return np.ascontiguousarray(split.transpose(0, 2, 1, 3))


def weight_layout(n: int, k: int, instruction: Instruction) -> WeightLayout:
    """The layout for an (n, k) weight: the longest block of K that wastes at most 1 %."""
    blocks = [b for b in K_BLOCKS if b % instruction.depth == 0]
    for block in blocks:
        if block <= k and -(-k // block) * block <= PADDING_LIMIT * k:
            return WeightLayout(n, k, instruction.lanes, instruction.depth, block)
    least_waste = min(blocks, key=lambda block: -(-k // block) * block)
    return WeightLayout(n, k, instruction.lanes, instruction.depth, least_waste)
