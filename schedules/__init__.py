"""Strategies, and which of them with which tiles a kernel is made of."""

from __future__ import annotations

from dataclasses import dataclass

from ..targets import Target, WeightLayout
from .program import Program, Tile

__all__ = ["SCHEDULE_VERSION", "Program", "Tile", "Variant", "variants"]

#: Counts changes of the recipes; a record or file of another version is not used.
SCHEDULE_VERSION = 2

#: Rows up to which a tile streams weights (gemv) rather than working from the cache (gemm).
GEMV_ROWS = 4
#: Every number of rows up to this one has a tile of its own, so that no M is much worse than M + 1.
#: Nine rows of three blocks fill 31 of 32 registers.
MAX_ROWS = 9
#: Streams of 8-bit weights that the hardware prefetchers follow well: 4 read memory at full speed,
#: 8 lose a tenth (docs/performance.md).
MAX_STREAMS = 4
#: Streams of 4-bit weights by rows of a gemv, whose prefetches are our own: fewer streams leave
#: more of each one under way, more rows need more accumulators.
STREAMS_4BIT = {1: 1, 2: 1, 3: 1, 4: 2}
#: Groups up to this size leave one stream: their scales are a second one beside each.
SMALL_GROUP = 32
#: How much longer a tile takes that keeps sums in memory: this many steps of K for every group.
SPILLED_STEPS = 4


@dataclass(frozen=True)
class Variant:
    """One compiled function of a kernel: a strategy ("gemm" or "gemv") and its register tile."""

    strategy: str
    tile: Tile
    #: Relative time of one tile over a panel.
    panel_cost: float

    @property
    def name(self) -> str:
        """The function's name in the compiled module."""
        return f"{self.strategy}_{self.tile.rows}x{self.tile.blocks}"

    def cost(self, n_blocks: int) -> float:
        """Relative time of one tile of rows over all panels, the last one as long as any."""
        return -(-n_blocks // self.tile.blocks) * self.panel_cost


def variants(target: Target, layout: WeightLayout) -> tuple[Variant, ...]:
    """The functions of a kernel for `target`: one per number of rows in a tile."""
    return tuple(variant(target, layout, rows) for rows in range(1, MAX_ROWS + 1))


def variant(target: Target, layout: WeightLayout, rows: int) -> Variant:
    """The function for tiles of `rows` rows."""
    strategy = "gemv" if rows <= GEMV_ROWS else "gemm"
    tile = Tile(rows, widest(target, layout, rows))
    spilled = registers(target, layout, tile) > target.vector_registers
    cost = panel_cost(tile, 0.5 if layout.bits == 4 else 0.3)
    if spilled:
        cost *= 1 + SPILLED_STEPS / (layout.group_size or layout.k)
    return Variant(strategy, tile, cost)


def panel_cost(tile: Tile, per_weight: float) -> float:
    """Issue slots of the dot products or of the loads that feed them, whichever is more.

    And `per_weight` slots for every vector of weights that is read, and unpacked if need be.
    """
    rows, blocks = tile.rows, tile.blocks
    return max(rows * blocks, rows + blocks) + per_weight * blocks


def widest(target: Target, layout: WeightLayout, rows: int) -> int:
    """The most blocks that fit the register file, and that memory can feed.

    Two blocks at least where groups double the accumulators: a second pass over x costs more than
    sums that pass through memory once per group.
    """
    most = target.vector_registers
    if rows <= GEMV_ROWS:
        small = layout.groups > 1 and (layout.group_size or 0) <= SMALL_GROUP
        most = MAX_STREAMS if layout.bits == 8 else 1 if small else STREAMS_4BIT[rows]
    fits = [
        blocks
        for blocks in range(1, most + 1)
        if registers(target, layout, Tile(rows, blocks)) <= target.vector_registers
    ]
    least = 2 if layout.groups > 1 and rows > GEMV_ROWS else 1
    return max([least, *fits])


def registers(target: Target, layout: WeightLayout, tile: Tile) -> int:
    """Vector registers that a tile needs: sums, weights, and the broadcast activations.

    Groups have two sums, of integers and of floats; 4-bit weights are two vectors once they are
    unpacked, with a mask.
    """
    per_block = max(1, layout.lanes * 4 // target.vector_bytes)
    sums = tile.rows * (2 if layout.groups > 1 else 1)
    weights, constants = (2, 2) if layout.bits == 4 else (1, 1)
    return tile.blocks * (sums + weights) * per_block + constants
