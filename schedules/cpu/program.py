"""What the frontend hands to a recipe."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...targets import Instruction, WeightLayout
from .. import fragments

if TYPE_CHECKING:
    from tvm import tirx


CACHE_LINE = 64
#: Accumulators that keep the dot-product units busy: two per cycle, each 4 cycles long.
CHAINS = 8


@dataclass(frozen=True)
class Tile:
    """A register tile: `rows` rows of X times `blocks` blocks of `lanes` columns.

    It needs rows * blocks accumulators, `blocks` registers of weights and one broadcast. `panels`
    of them side by side share the slab of x while it is in L1.
    """

    rows: int
    blocks: int
    panels: int = 1

    @property
    def width(self) -> int:
        """Blocks of columns that a task computes."""
        return self.blocks * self.panels


@dataclass(frozen=True)
class Parameters:
    """What a recipe leaves open: a tuner may choose, and there is a default for every shape.

    Attributes
    ----------
    rows, blocks, panels : of the `Tile`.
    ahead : in a gemv, bytes between asking for weights and reading them; in a gemm, how many panels
        ahead of the one that is multiplied weights are asked for. 0 leaves it to the hardware.
    unroll : iterations of the loop over a block of K that are written out one after the other.
    few_tiles : tiles of x up to which the calling thread of a gemm packs them alone.
    block_rows : rows of x that are multiplied with all of w before the next ones are.
    k_passes : into how many parts K is cut that a task multiplies one after the other, with sums in
        memory. Weights and slabs of one part are smaller, and stay nearer to the core.
    rows_inner : whether the tiles of a task go down a column of them (1) before the next one, the
        weights of a tile in L1, or along a row (0), the slab of x there.
    """

    rows: int
    blocks: int
    panels: int
    ahead: int
    unroll: int
    few_tiles: int
    block_rows: int
    k_passes: int = 1
    rows_inner: int = 0

    @property
    def tile(self) -> Tile:
        """The register tile."""
        return Tile(self.rows, self.blocks, self.panels)


def fitted(instruction: Instruction, layout: WeightLayout, tile: Tile) -> Instruction:
    """The instruction in the shape in which it computes `tile`: whole fragments, no k too many."""
    if not instruction.shapes:
        return instruction
    fragments = -(-tile.rows // instruction.rows)
    depth = min(instruction.depth, layout.k_block)
    return dataclasses.replace(instruction, rows=tile.rows // fragments, depth=depth)


@dataclass(frozen=True)
class Program:
    """A TensorExpression on its way to a kernel.

    Attributes
    ----------
    packing : its blocks that bring a tile of x into the order in which "acc" reads it: the range,
        scale and zero point of each row where they are found in the call, "xq" (the integers, where
        the instruction reads two parts of them), "xp" (what it reads), and "x_sum" and "x_extra"
        (their sums per group, and what the instruction adds for them alone).
    scratch : those of `packing` whose results no other block reads.
    stages : its blocks that lead from a tile of sums to the result "y". Between `packing` and them
        lie "acc" (dot products over a part of K), before it "wu" where weights are unpacked or
        widened and "xv" where activations are read in vectors, and behind it "sums" (copies of
        fragments that no vector holds) and with several parts "total" (their sum).
    parts : into how many parts K is cut, each with accumulators that start from zero: the groups,
        passes or blocks of K, see `parts_of`.
    in_units : whether a thread computes a unit of an expert's work, packing and all, by itself.
    """

    func: tirx.PrimFunc
    packing: tuple[str, ...]
    scratch: tuple[str, ...]
    stages: tuple[str, ...]
    parts: int
    parameters: Parameters
    layout: WeightLayout
    instruction: Instruction
    in_units: bool = False

    @property
    def tile(self) -> Tile:
        """The register tile."""
        return self.parameters.tile

    @property
    def fragments(self) -> int:
        """Fragments of a tile on top of each other."""
        return self.tile.rows // self.instruction.rows

    @property
    def axes_over(self) -> list[str]:
        """The axes of "acc" along which the fragments of a tile lie."""
        return fragments.axes_over(self.instruction, self.layout.lanes)

    @property
    def x_piece(self) -> int:
        """Consecutive k of one row of packed activations."""
        return self.layout.k_block if self.instruction.rows == 1 else self.instruction.depth

    @property
    def x_steps(self) -> int:
        """Steps along K that one vector of activations feeds."""
        return x_steps(self.layout, self.instruction)

    @property
    def w_components_first(self) -> bool:
        """Whether the components of a panel of weights are made before its first tile.

        Where an instruction keeps every port busy, widening beside it takes a tenth of the time
        (docs/performance.md).
        """
        return self.instruction.form.w_components > 1

    @property
    def summed(self) -> bool:
        """Whether several parts are added up."""
        return self.parts > 1


def x_steps(layout: WeightLayout, instruction: Instruction) -> int:
    """Steps along K that one vector of activations feeds, lane by lane."""
    vector = instruction.x_lanes * instruction.depth
    return instruction.x_lanes if layout.k_block % vector == 0 else 1


def unrolls(layout: WeightLayout, instruction: Instruction, factor: int) -> bool:
    """Whether the loop over a block of K may be written out `factor` steps at a time.

    Where activations are read in vectors a step is as long as several already.
    """
    halves = layout.steps_per_byte if instruction.depth == layout.depth else 1
    steps = layout.k_block // min(instruction.depth, layout.k_block) // halves
    return factor == 1 or (x_steps(layout, instruction) == 1 and steps % factor == 0)


def passes_of(layout: WeightLayout) -> int:
    """Whole parts of K that passes may share out among them: groups, or blocks of K."""
    return layout.groups if layout.groups > 1 else layout.k_blocks


def parts_of(layout: WeightLayout, instruction: Instruction, parameters: Parameters) -> int:
    """Into how many parts K is cut: the groups, or every block of K where accumulators are few.

    A dot product waits for the one before it on the same accumulator; a new part does not wait.
    """
    tile = parameters.tile
    fragments = tile.rows // instruction.rows * tile.blocks * layout.lanes // instruction.lanes
    if layout.groups > 1:
        return layout.groups
    if fragments < CHAINS and instruction.registers is None:
        return layout.k_blocks
    return parameters.k_passes
