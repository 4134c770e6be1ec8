"""Strategies, and which of them with which tiles a kernel is made of."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ...targets import Instruction, Target, WeightLayout
from ...targets.target import GEMV_ROWS
from .plan import CpuPlan, instruction_for
from .program import (
    CACHE_LINE,
    CHAINS,
    STRATEGIES,
    WINOGRAD,
    Parameters,
    Tile,
    passes_of,
    unrolls,
    x_steps,
)

#: Rows of the smallest tile of a gemm: 33 rows are 11 of 3, but 4 of 9 with 3 idle ones.
GEMM_TILE_ROWS = 3
#: Streams of weights of a gemv, which the hardware's prefetchers follow; they share the loads of x.
#: One row reads memory at full speed with one stream where a dot product is one instruction, or
#: takes a cache line of weights (docs/performance.md).
STREAMS = 4
#: Groups up to this size leave one stream, which asks for its weights ahead of time: their scales
#: are a second stream beside it, and the end of a group keeps the core from looking far ahead.
SMALL_GROUP = 32
#: How much longer a tile takes whose float sums pass through memory at the end of a group: this
#: many steps of K for every register that it has too few (docs/performance.md).
SPILLED_STEPS = 0.1
#: Columns of a task. With fewer, slabs of x would pass from L2 to L1 more often than the dot
#: products take; more weights would not stay in L2.
PANEL_COLUMNS = 64
#: Blocks of columns of a task that widens its weights, where those are fewer: they have twice the
#: bytes then, and chips with short vectors have 256 or 512 KB of L2 (docs/performance.md).
WIDENED_BLOCKS = 4
#: Issue slots for a vector of weights beside those of its dot products (docs/performance.md).
WEIGHT_SLOTS = 0.1
#: What widening a block of columns takes, in issue slots of a tile (docs/performance.md).
WIDENING = 6.0
#: No parameter need be larger, and products of some must not pass the int32 of loops. Rows that fit
#: a cache may be as many as they want: no loop has their number.
MOST, MOST_BLOCK_ROWS = 1 << 20, 1 << 30
#: Sums of a task that lie in memory between passes over K: 8 MB, more than any core's own caches.
MOST_SUMS = 1 << 21
#: The share of panels that may lie behind the end of N.
IDLE_PANELS = 0.02
#: Bytes between asking for weights and reading them, about what one core has under way when it
#: reads memory at full speed (docs/performance.md).
AHEAD = 4096
#: Steps along K of a gemv that are written out: fewer instructions between its reads.
GEMV_UNROLL = 2
#: Tiles of x up to which packing takes less time than a launch of the thread pool.
FEW_TILES = 2


@dataclass(frozen=True)
class Variant:
    """One compiled function of a kernel: a strategy of `STRATEGIES`, tile and dot product.

    Attributes
    ----------
    panel_cost : relative time of one tile over a panel.
    label : what its name has behind the tile.
    first_m, last_m : it is not used for an M outside; no end where `last_m` is None.
    """

    strategy: str
    parameters: Parameters
    instruction: Instruction
    panel_cost: float
    label: str = ""
    first_m: int = 1
    last_m: int | None = None

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

    def serves(self, m: int) -> bool:
        """Whether it may compute `m` rows."""
        return self.first_m <= m and (self.last_m is None or m <= self.last_m)

    def cost(self, n_blocks: int) -> float:
        """Relative time of one tile of rows over all panels, the last one as long as any."""
        return panels_of(n_blocks, self.tile) * self.panel_cost

    def fixed(self, n_blocks: int) -> float:
        """Relative time of what a call does once for all tiles of rows."""
        return WIDENING * n_blocks if self.strategy == WINOGRAD else 0.0

    def cost_of(self, m: int, n_blocks: int) -> float:
        """Relative time of `m` rows."""
        return self.fixed(n_blocks) + -(-m // self.tile.rows) * self.cost(n_blocks)


def variants(plan: CpuPlan) -> tuple[Variant, ...]:
    """The functions of a kernel: one per strategy and number of rows in a tile.

    A gemv has one pass over the weight for all rows, the others take up where it ends.
    """
    tiles = [("gemv", rows) for rows in plan.target.tile_rows if rows <= GEMV_ROWS]
    tiles += [("gemm", rows) for rows in plan.target.tile_rows if rows >= GEMM_TILE_ROWS]
    tiles += [(WINOGRAD, rows) for rows in plan.target.winograd_rows]
    return tuple(
        variant(plan, strategy, instruction, rows)
        for strategy, rows in tiles
        if (instruction := instruction_for(plan, strategy, rows)) is not None
    )


def variant(plan: CpuPlan, strategy: str, instruction: Instruction, rows: int) -> Variant:
    """A strategy's function for tiles of `rows` rows, with default parameters."""
    layout = plan.layout
    if strategy == "gemv":
        blocks, across = streams(plan, instruction, rows), 1
        ahead = AHEAD if small_groups(layout) else 0
        unroll = GEMV_UNROLL if not ahead and unrolls(layout, instruction, GEMV_UNROLL) else 1
    else:
        blocks = blocks_of(plan, instruction, rows)
        across, ahead, unroll = panels(layout, instruction, blocks), 1, 1
    parameters = Parameters(
        rows,
        blocks,
        across,
        ahead,
        unroll,
        few_tiles=FEW_TILES,
        block_rows=max(1, plan.target.cache_bytes // layout.k_padded),
    )
    default = variant_with(plan, instruction, strategy, parameters)
    if strategy == "gemv":
        return dataclasses.replace(default, last_m=GEMV_ROWS)
    return dataclasses.replace(default, first_m=GEMV_ROWS + 1)


def variant_with(
    plan: CpuPlan,
    instruction: Instruction,
    strategy: str,
    parameters: Parameters,
    label: str = "",
) -> Variant:
    """The function of a strategy with any parameters."""
    layout, tile = plan.layout, parameters.tile
    cost = panel_cost(instruction, layout, tile)
    sums = 2 if layout.groups > 1 else 1
    missing = registers(plan, instruction, tile, sums) - budget(plan.target, instruction)
    cost *= 1 + max(0, missing) * SPILLED_STEPS / (layout.group_size or layout.k)
    return Variant(strategy, parameters, instruction, cost, label)


def why_not(plan: CpuPlan, strategy: str, parameters: Parameters) -> str | None:
    """Why a strategy has no code for these parameters; None when it has."""
    if strategy not in STRATEGIES:
        return f"strategy={strategy!r}; expected one of {', '.join(STRATEGIES)}"
    least = {"rows": 1, "blocks": 1, "panels": 1, "unroll": 1, "block_rows": 1, "k_passes": 1}
    for name, value in dataclasses.asdict(parameters).items():
        if type(value) is not int or value < least.get(name, 0):
            return f"{name}={value!r}; expected a whole number of at least {least.get(name, 0)}"
        most = MOST_BLOCK_ROWS if name == "block_rows" else MOST
        if value > most:
            return f"{name}={value}; expected at most {most}"
    layout, tile = plan.layout, parameters.tile
    if strategy == "gemv" and tile.panels > 1:
        return f"panels={tile.panels}; a gemv has one"
    if parameters.rows_inner not in (0, 1):
        return f"rows_inner={parameters.rows_inner}; expected 0 or 1"
    if parameters.k_passes > 1:
        parts = passes_of(layout)
        if parts % parameters.k_passes:
            return f"k_passes={parameters.k_passes} does not divide the {parts} parts of K"
        sums = parameters.block_rows * tile.width * layout.lanes
        if sums > MOST_SUMS:
            return f"k_passes={parameters.k_passes} keeps {sums} sums; expected {MOST_SUMS} at most"
    dot = instruction_for(plan, strategy, tile.rows)
    if dot is None:
        return f"strategy={strategy!r}; target {plan.target.name} has no instruction for it"
    fragments = -(-tile.rows // dot.rows)
    if tile.rows % (fragments if dot.shapes else dot.rows):
        return f"rows={tile.rows}; {dot.name} computes {dot.rows} at a time"
    taken, most = registers(plan, dot, tile, 1), budget(plan.target, dot)
    # One block must do where not even that fits; vectors then pass through memory.
    may_spill = (
        tile.blocks == 1 and dot.registers is None and tile.rows <= max(plan.target.tile_rows)
    )
    if taken > most and not may_spill:
        return f"a tile of {tile.rows} x {tile.blocks} takes {taken} registers of {most}"
    if not unrolls(layout, dot, parameters.unroll):
        return f"unroll={parameters.unroll} does not divide the steps of a block of K"
    if strategy == "gemv" and parameters.ahead % layout.step_bytes:
        return f"ahead={parameters.ahead}; expected a multiple of {layout.step_bytes} bytes"
    return None


def panels_of(n_blocks: int, tile: Tile) -> int:
    """Register tiles in a row of them: the last task has as many as any."""
    return -(-n_blocks // tile.width) * tile.panels


def panel_cost(instruction: Instruction, layout: WeightLayout, tile: Tile) -> float:
    """Issue slots of the dot products or of the loads that feed them, whichever is more.

    And a little for every vector of weights that is read, and one for every vector of scales;
    unpacking takes slots that are free.
    """
    fragments, blocks = -(-tile.rows // instruction.rows), tile.blocks
    scales = 0.0 if layout.groups == 1 else layout.depth / (layout.group_size or layout.k)
    # Weights that are widened before are read beside operations that every port is busy with.
    weight = WEIGHT_SLOTS if instruction.form != "sums" else 0.0
    dots, loads = tile.rows * blocks * instruction.slots, fragments + blocks
    return max(dots, loads * instruction.load_slots) + (weight + scales) * blocks


def fitting(plan: CpuPlan, instruction: Instruction, rows: int, sums: int) -> list[int]:
    """Blocks of columns of a tile that fit the register file with so many sums; at least one."""
    most = budget(plan.target, instruction)
    fit = [
        blocks
        for blocks in range(2, most + 1)
        if registers(plan, instruction, Tile(rows, blocks), sums) <= most
    ]
    return [1, *fit]


def streams(plan: CpuPlan, instruction: Instruction, rows: int) -> int:
    """Blocks of columns of a gemv's tile, as many as memory can feed.

    Float sums of long groups may pass through memory: that is short beside a group.
    """
    quick = instruction.alone or plan.target.vector_bytes >= CACHE_LINE
    most = 1 if (rows == 1 and quick) or small_groups(plan.layout) else STREAMS
    return min(most, fitting(plan, instruction, rows, sums=1)[-1])


def blocks_of(plan: CpuPlan, instruction: Instruction, rows: int) -> int:
    """Blocks of columns of a gemm's tile: of those that fit the register file, what serves N best.

    Two where groups leave room for one, but not without their float sums: a second pass over x
    costs more than sums that pass through memory once per group.
    """
    layout = plan.layout
    sums = 2 if layout.groups > 1 else 1
    fit = fitting(plan, instruction, rows, sums)
    if fit == [1]:
        return fitting(plan, instruction, rows, sums=1)[:2][-1]
    enough = -(-CHAINS // rows)  # accumulators, or dot products wait for each other

    def cost(blocks: int) -> float:
        tile = Tile(rows, blocks, panels(layout, instruction, blocks))
        return panels_of(layout.n_blocks, tile) * panel_cost(instruction, layout, tile)

    return min((blocks for blocks in reversed(fit) if blocks >= min(enough, fit[-1])), key=cost)


def small_groups(layout: WeightLayout) -> bool:
    """Whether the scales of groups are a stream that matters beside the weights."""
    return layout.groups > 1 and (layout.group_size or 0) <= SMALL_GROUP


def panels(layout: WeightLayout, instruction: Instruction, blocks: int) -> int:
    """How many register tiles share a slab of x: as many as make a panel of `PANEL_COLUMNS`.

    But fewer where the last task would compute much that nobody asked for.
    """
    count = -(-layout.n_blocks // blocks)
    most = PANEL_COLUMNS // (blocks * layout.lanes)
    if instruction.form == "sums":
        most = min(most, WIDENED_BLOCKS // blocks)
    fits = [p for p in range(1, max(1, most) + 1) if -count % p <= IDLE_PANELS * count]
    return max(fits)


def budget(target: Target, instruction: Instruction) -> int:
    """The registers that a tile may take."""
    return instruction.registers or target.vector_registers


def registers(plan: CpuPlan, instruction: Instruction, tile: Tile, sums: int) -> int:
    """Registers that a tile needs: sums, weights, activations, and what lies between them.

    Groups have two `sums`, of integers and of floats; 4-bit weights are two vectors once they are
    unpacked, with a mask.
    """
    target, layout = plan.target, plan.layout
    fragments, blocks = -(-tile.rows // instruction.rows), tile.blocks
    if instruction.registers is not None:
        return blocks * (fragments + 1) + 1
    accumulators = sums * tile.rows * max(1, layout.lanes * 4 // target.vector_bytes)
    widened = 2 if instruction.form == "sums" else 1
    weights = max(1, layout.step_bytes // target.vector_bytes) * layout.steps_per_byte * widened
    parts = 1 if instruction.form == "bytes" else 2
    # Vectors of activations stay for several steps, and the compiler loads some of the next early.
    stay = x_steps(layout, instruction) > 1
    activations = tile.rows + 2 if stay else min(2, instruction.rows * parts)
    mask = layout.steps_per_byte - 1
    return blocks * (accumulators + weights) + activations + mask + instruction.temporaries
