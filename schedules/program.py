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

    Its blocks are "xp" (packed activations), "acc" (dot products) and `stages`, which lead from a
    tile of dot products to the result "y".
    """

    func: tirx.PrimFunc
    stages: tuple[str, ...]
    tile: Tile
    layout: WeightLayout
    instruction: Instruction
