"""Strategies, and which of them with which tiles a kernel is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from ..targets import Instruction, Target, WeightLayout
from .program import Parameters, Program, Tile, prefetches_itself, x_steps

__all__ = [
    "CUDA_SCHEDULE_VERSION",
    "SCHEDULE_VERSION",
    "Parameters",
    "Program",
    "Tile",
    "Variant",
    "tuned",
    "variants",
    "why_not",
]

#: Counts changes of the recipes; a record or file of another version is not used.
SCHEDULE_VERSION = 3
#: The same of the recipes for GPUs.
CUDA_SCHEDULE_VERSION = 1

STRATEGIES = ("gemm", "gemv")

#: Rows up to which a tile streams weights (gemv) rather than working from the cache (gemm).
GEMV_ROWS = 4
#: Streams of weights that the hardware prefetchers follow well: 4 read memory at full speed,
#: 8 lose a tenth (docs/performance.md).
MAX_STREAMS = 4
#: Streams of weights whose prefetches are our own, by rows of a gemv: fewer streams leave more of
#: each one under way, more rows need more accumulators.
PREFETCHED_STREAMS = {1: 1, 2: 1, 3: 1, 4: 2}
#: Groups up to this size leave one stream: their scales are a second one beside each.
SMALL_GROUP = 32
#: How much longer a tile takes that keeps sums in memory: this many steps of K for every group.
SPILLED_STEPS = 4
#: Columns of a task. With fewer, slabs of x would pass from L2 to L1 more often than the dot
#: products take; more weights would not stay in L2.
PANEL_COLUMNS = 64
#: The share of panels that may lie behind the end of N.
IDLE_PANELS = 0.02
#: Bytes between asking for weights and reading them, about what one core has under way when it
#: reads memory at full speed (docs/performance.md).
AHEAD = 4096
#: Tiles of x up to which packing takes less time than a launch of the thread pool.
FEW_TILES = 2


@dataclass(frozen=True)
class Variant:
    """One compiled function of a kernel: a strategy ("gemm" or "gemv"), tile and dot product.

    Attributes
    ----------
    panel_cost : relative time of one tile over a panel.
    label : what its name has behind the tile.
    """

    strategy: str
    parameters: Parameters
    instruction: Instruction
    panel_cost: float
    label: str = ""

    @property
    def tile(self) -> Tile:
        """The register tile."""
        return self.parameters.tile

    @property
    def name(self) -> str:
        """The function's name in the compiled module."""
        tile = self.tile
        across = f"x{tile.panels}" if tile.panels > 1 else ""
        return f"{self.strategy}_{tile.rows}x{tile.blocks}{across}{self.label}"

    def cost(self, n_blocks: int) -> float:
        """Relative time of one tile of rows over all panels, the last one as long as any."""
        return -(-n_blocks // self.tile.width) * self.tile.panels * self.panel_cost


def variants(
    target: Target, layout: WeightLayout, instruction: Callable[[int], Instruction]
) -> tuple[Variant, ...]:
    """The functions of a kernel for `target`: one per number of rows in a tile.

    `instruction` says which dot product a tile of so many rows uses.
    """
    return tuple(variant(target, layout, instruction(rows), rows) for rows in target.tile_rows)


def variant(target: Target, layout: WeightLayout, instruction: Instruction, rows: int) -> Variant:
    """The function for tiles of `rows` rows."""
    strategy = "gemv" if rows <= GEMV_ROWS else "gemm"
    blocks = widest(target, layout, instruction, rows)
    if strategy == "gemv":
        across, ahead = 1, AHEAD if prefetches_itself(layout, rows) else 0
    else:
        across, ahead = panels(layout, blocks), 1
    parameters = Parameters(
        rows,
        blocks,
        across,
        ahead,
        unroll=1,
        few_tiles=FEW_TILES,
        block_rows=max(1, target.cache_bytes // layout.k_padded),
    )
    return tuned(target, layout, instruction, strategy, parameters)


def tuned(
    target: Target,
    layout: WeightLayout,
    instruction: Instruction,
    strategy: str,
    parameters: Parameters,
    label: str = "",
) -> Variant:
    """The function of a strategy with any parameters."""
    tile = parameters.tile
    cost = panel_cost(instruction, layout, tile)
    sums = 2 if layout.groups > 1 else 1
    if registers(target, layout, instruction, tile, sums) > budget(target, instruction):
        cost *= 1 + SPILLED_STEPS / (layout.group_size or layout.k)
    return Variant(strategy, parameters, instruction, cost, label)


def why_not(
    target: Target,
    layout: WeightLayout,
    instruction: Callable[[int], Instruction],
    strategy: str,
    parameters: Parameters,
) -> str | None:
    """Why a strategy has no code for these parameters; None when it has."""
    if strategy not in STRATEGIES:
        return f"strategy={strategy!r}; expected one of {', '.join(STRATEGIES)}"
    least = {"rows": 1, "blocks": 1, "panels": 1, "unroll": 1, "block_rows": 1}
    for name, value in dataclasses.asdict(parameters).items():
        if type(value) is not int or value < least.get(name, 0):
            return f"{name}={value!r}; expected a whole number of at least {least.get(name, 0)}"
    tile = parameters.tile
    if strategy == "gemv" and tile.panels > 1:
        return f"panels={tile.panels}; a gemv has one"
    dot = instruction(tile.rows)
    fragments = -(-tile.rows // dot.rows)
    if tile.rows % (fragments if dot.shapes else dot.rows):
        return f"rows={tile.rows}; {dot.name} computes {dot.rows} at a time"
    taken, most = registers(target, layout, dot, tile, 1), budget(target, dot)
    # One block must do where not even that fits; vectors then pass through memory.
    may_spill = tile.blocks == 1 and dot.registers is None and tile.rows <= max(target.tile_rows)
    if taken > most and not may_spill:
        return f"a tile of {tile.rows} x {tile.blocks} takes {taken} registers of {most}"
    steps = layout.k_block // (layout.depth * layout.steps_per_byte)
    if steps % parameters.unroll:
        return f"unroll={parameters.unroll} does not divide the {steps} steps of a block of K"
    if strategy == "gemv" and parameters.ahead % layout.step_bytes:
        return f"ahead={parameters.ahead}; expected a multiple of {layout.step_bytes} bytes"
    return None


def panel_cost(instruction: Instruction, layout: WeightLayout, tile: Tile) -> float:
    """Issue slots of the dot products or of the loads that feed them, whichever is more.

    And slots for every vector of weights that is read, and unpacked if need be.
    """
    fragments, blocks = -(-tile.rows // instruction.rows), tile.blocks
    per_weight = 0.5 if layout.bits == 4 else 0.3
    dots, loads = tile.rows * blocks * instruction.slots, fragments + blocks
    return max(dots, loads * instruction.load_slots) + per_weight * blocks


def widest(target: Target, layout: WeightLayout, instruction: Instruction, rows: int) -> int:
    """The most blocks that fit the register file, and that memory can feed.

    Two blocks where groups leave room for one, but not without their float sums: a second pass over
    x costs more than sums that pass through memory once per group.
    """
    most = budget(target, instruction)
    if rows <= GEMV_ROWS:
        small = layout.groups > 1 and (layout.group_size or 0) <= SMALL_GROUP
        most = 1 if small else PREFETCHED_STREAMS[rows]
        if not prefetches_itself(layout, rows):
            most = MAX_STREAMS

    def fits(blocks: int, sums: int) -> bool:
        taken = registers(target, layout, instruction, Tile(rows, blocks), sums)
        return taken <= budget(target, instruction)

    sums = 2 if layout.groups > 1 else 1
    widest_tile = max((b for b in range(1, most + 1) if fits(b, sums)), default=1)
    if widest_tile == 1 and sums > 1 and rows > GEMV_ROWS and fits(2, sums=1):
        return 2
    return widest_tile


def panels(layout: WeightLayout, blocks: int) -> int:
    """How many register tiles share a slab of x: as many as make a panel of `PANEL_COLUMNS`.

    But fewer where the last task would compute much that nobody asked for.
    """
    count = -(-layout.n_blocks // blocks)
    most = max(1, PANEL_COLUMNS // (blocks * layout.lanes))
    fits = [p for p in range(1, most + 1) if -count % p <= IDLE_PANELS * count]
    return max(fits)


def budget(target: Target, instruction: Instruction) -> int:
    """The registers that a tile may take."""
    return instruction.registers or target.vector_registers


def registers(
    target: Target, layout: WeightLayout, instruction: Instruction, tile: Tile, sums: int
) -> int:
    """Registers that a tile needs: sums, weights, activations, and what lies between them.

    Groups have two `sums`, of integers and of floats; 4-bit weights are two vectors once they are
    unpacked, with a mask.
    """
    fragments, blocks = -(-tile.rows // instruction.rows), tile.blocks
    if instruction.registers is not None:
        return blocks * (fragments + 1) + 1
    accumulators = sums * tile.rows * max(1, layout.lanes * 4 // target.vector_bytes)
    step = layout.step_bytes * (2 if layout.dtype == "int16" else 1)
    weights = max(1, step // target.vector_bytes) * layout.steps_per_byte
    # Vectors of activations stay for several steps, and the compiler loads some of the next early.
    stay = x_steps(layout, instruction) > 1
    activations = tile.rows + 2 if stay else min(2, instruction.rows)
    mask = layout.steps_per_byte - 1
    return blocks * (accumulators + weights) + activations + mask + instruction.temporaries
