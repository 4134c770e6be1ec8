"""What the frontend hands to a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..targets import Instruction, WeightLayout

if TYPE_CHECKING:
    from tvm import tirx


CACHE_LINE = 64
#: Accumulators that keep the dot-product units busy: two per cycle, each 4 cycles long.
CHAINS = 8


@dataclass(frozen=True)
class Tile:
    """A register tile: `rows` rows of X times `blocks` blocks of `lanes` columns.

    It needs rows * blocks accumulators, `blocks` registers of weights and one broadcast.
    """

    rows: int
    blocks: int


@dataclass(frozen=True)
class Program:
    """A TensorExpression on its way to a kernel.

    Attributes
    ----------
    packing : its blocks that bring a tile of x into the order in which "acc" reads it: the range,
        scale and zero point of each row where they are found in the call, "xp" (the integers) and
        "x_sum" (their sums per group).
    stages : its blocks that lead from a tile of sums to the result "y". Between `packing` and them
        lie "acc" (dot products over a part of K), with 4-bit weights "wu" (unpacked ones) before it
        and with several parts "total" (their sum) behind it.
    parts : into how many parts K is cut, each with accumulators that start from zero: the groups,
        or blocks of K, see `parts_of`.
    """

    func: tirx.PrimFunc
    packing: tuple[str, ...]
    stages: tuple[str, ...]
    parts: int
    tile: Tile
    layout: WeightLayout
    instruction: Instruction

    @property
    def unpacks(self) -> bool:
        """Whether weights are unpacked between memory and the instruction."""
        return self.layout.bits < 8

    @property
    def step_bytes(self) -> int:
        """Bytes of weights that one load brings."""
        return self.layout.lanes * self.layout.depth

    @property
    def summed(self) -> bool:
        """Whether several parts are added up."""
        return self.parts > 1


def parts_of(layout: WeightLayout, tile: Tile) -> int:
    """Into how many parts K is cut: the groups, or every block of K where accumulators are few.

    A dot product waits for the one before it on the same accumulator; a new part does not wait.
    """
    if layout.groups == 1 and tile.rows * tile.blocks < CHAINS:
        return layout.k_blocks
    return layout.groups
