"""Strategies, and which of them with which tiles a kernel is made of."""

from __future__ import annotations

from dataclasses import dataclass

from ..targets import Target
from .program import Program, Tile

__all__ = ["SCHEDULE_VERSION", "Program", "Tile", "Variant", "variants"]

#: Counts changes of the recipes; a record or file of another version is not used.
SCHEDULE_VERSION = 1

#: Rows up to which a tile streams weights (gemv) rather than working from the cache (gemm).
GEMV_ROWS = 4
#: Every number of rows up to this one has a tile of its own, so that no M is much worse than M + 1.
#: Nine rows of three blocks fill 31 of 32 registers.
MAX_ROWS = 9
#: Streams of weights that the hardware prefetchers follow well: 4 read memory at full speed, 8 lose
#: a tenth (docs/performance.md).
MAX_STREAMS = 4


@dataclass(frozen=True)
class Variant:
    """One compiled function of a kernel: a strategy ("gemm" or "gemv") and its register tile."""

    strategy: str
    tile: Tile

    @property
    def name(self) -> str:
        """The function's name in the compiled module."""
        return f"{self.strategy}_{self.tile.rows}x{self.tile.blocks}"

    def cost(self, n_blocks: int) -> float:
        """Relative time of one tile of rows over `n_blocks` blocks of columns.

        Issue slots of the dot products or of the loads that feed them, whichever is more, and a
        share for reading the weights once per tile; times the panels, the last one as long as any.
        """
        rows, blocks = self.tile.rows, self.tile.blocks
        panel = max(rows * blocks, rows + blocks) + 0.3 * blocks
        return -(-n_blocks // blocks) * panel


def variants(target: Target) -> tuple[Variant, ...]:
    """The functions of a kernel for `target`: one per number of rows in a tile."""
    return tuple(
        Variant("gemv" if rows <= GEMV_ROWS else "gemm", Tile(rows, widest(target, rows)))
        for rows in range(1, MAX_ROWS + 1)
    )


def widest(target: Target, rows: int) -> int:
    """The most blocks whose accumulators, weights and one broadcast fit the register file."""
    registers_per_block = max(1, target.instruction.lanes * 4 // target.vector_bytes)
    blocks = (target.vector_registers - 1) // ((rows + 1) * registers_per_block)
    return max(1, min(blocks, MAX_STREAMS if rows <= GEMV_ROWS else blocks))
