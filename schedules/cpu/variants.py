"""Variants: which strategies with which tiles a kernel is made of."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ...targets import Instruction
from .cost import fixed_cost, panel_cost_with_spills, panels_of
from .plan import CpuPlan
from .program import Parameters, Tile
from .strategies import STRATEGIES, Strategy, instruction_for


@dataclass(frozen=True)
class Variant:
    """One compiled function of a kernel: a strategy, a tile and a dot product.

    Attributes
    ----------
    panel_cost : relative time of one tile over a panel.
    label : what its name has behind the tile.
    first_m, last_m : it is not used for an M outside; no end where `last_m` is None.
    """

    strategy: Strategy
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
        return f"{self.strategy.name}_{tile.rows}x{tile.blocks}{across}{self.label}"

    def serves(self, m: int) -> bool:
        """Whether it may compute `m` rows."""
        return self.first_m <= m and (self.last_m is None or m <= self.last_m)

    def cost(self, n_blocks: int) -> float:
        """Relative time of one tile of rows over all panels, the last one as long as any."""
        return panels_of(n_blocks, self.tile) * self.panel_cost

    def fixed(self, n_blocks: int) -> float:
        """Relative time of what a call does once for all tiles of rows."""
        return fixed_cost(self.instruction, n_blocks)

    def cost_of(self, m: int, n_blocks: int) -> float:
        """Relative time of `m` rows."""
        return self.fixed(n_blocks) + -(-m // self.tile.rows) * self.cost(n_blocks)


def variants(plan: CpuPlan) -> tuple[Variant, ...]:
    """The functions of a kernel: one per strategy and number of rows in a tile."""
    return tuple(
        variant(plan, strategy, instruction, rows)
        for strategy in sorted(STRATEGIES.values(), key=lambda each: each.first_m)
        for rows in strategy.heights(plan.target)
        if (instruction := instruction_for(plan, strategy, rows)) is not None
    )


def variant(plan: CpuPlan, strategy: Strategy, instruction: Instruction, rows: int) -> Variant:
    """A strategy's function for tiles of `rows` rows, with default parameters."""
    parameters = strategy.defaults(plan, instruction, rows)
    default = variant_with(plan, instruction, strategy, parameters)
    return dataclasses.replace(default, first_m=strategy.first_m, last_m=strategy.last_m)


def variant_with(
    plan: CpuPlan,
    instruction: Instruction,
    strategy: Strategy,
    parameters: Parameters,
    label: str = "",
) -> Variant:
    """The function of a strategy with any parameters."""
    cost = panel_cost_with_spills(plan, instruction, parameters.tile)
    return Variant(strategy, parameters, instruction, cost, label)
