"""How long tiles take, in issue slots of a target's vector dot products along K."""

from __future__ import annotations

from ...targets import Instruction, WeightLayout
from .plan import CpuPlan
from .program import Tile
from .registers import budget, registers, sums_of

#: How much longer a tile takes whose float sums pass through memory at the end of a group: this
#: many steps of K for every register that it has too few (docs/performance.md).
SPILLED_STEPS = 0.1
#: Issue slots for a vector of weights beside those of its dot products (docs/performance.md).
WEIGHT_SLOTS = 0.1
#: What the components of a block of columns take, in issue slots of a tile (docs/performance.md).
COMPONENTS = 6.0


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
    # Weights whose components are made before are read beside operations that keep every port busy.
    weight = 0.0 if instruction.form.w_components > 1 else WEIGHT_SLOTS
    dots, loads = tile.rows * blocks * instruction.slots, fragments + blocks
    return max(dots, loads * instruction.load_slots) + (weight + scales) * blocks


def panel_cost_with_spills(plan: CpuPlan, instruction: Instruction, tile: Tile) -> float:
    """As `panel_cost`, of a tile whose sums need not all fit the register file."""
    layout = plan.layout
    taken = registers(plan, instruction, tile, sums_of(layout))
    missing = max(0, taken - budget(plan.target, instruction))
    spilled = missing * SPILLED_STEPS / (layout.group_size or layout.k)
    return panel_cost(instruction, layout, tile) * (1 + spilled)


def fixed_cost(instruction: Instruction, n_blocks: int) -> float:
    """What a call takes once for all tiles of rows."""
    return COMPONENTS * n_blocks if instruction.form.w_components > 1 else 0.0
