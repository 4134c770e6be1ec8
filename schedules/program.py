"""What the frontend hands to a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..targets import Instruction, WeightLayout

if TYPE_CHECKING:
    from tvm import tirx


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
        lie "acc" (dot products per group), with 4-bit weights "wu" (unpacked ones) before it and
        with groups "total" (their scaled sum) behind it.
    """

    func: tirx.PrimFunc
    packing: tuple[str, ...]
    stages: tuple[str, ...]
    tile: Tile
    layout: WeightLayout
    instruction: Instruction

    @property
    def unpacks(self) -> bool:
        """Whether weights are unpacked between memory and the instruction."""
        return self.layout.bits < 8

    @property
    def grouped(self) -> bool:
        """Whether several groups are scaled and summed."""
        return self.layout.groups > 1
