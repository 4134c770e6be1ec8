"""Which parameters have code."""

from __future__ import annotations

import dataclasses

from .plan import CpuPlan
from .program import Parameters, passes_of, unrolls
from .registers import budget, registers
from .strategies import STRATEGIES, instruction_for

#: No parameter need be larger, and products of some must not pass the int32 of loops. Rows that fit
#: a cache may be as many as they want: no loop has their number.
MOST, MOST_BLOCK_ROWS = 1 << 20, 1 << 30
#: Sums of a task that lie in memory between passes over K: 8 MB, more than any core's own caches.
MOST_SUMS = 1 << 21
#: The least that parameters may be; others may be 0.
LEAST = {"rows": 1, "blocks": 1, "panels": 1, "unroll": 1, "block_rows": 1, "k_passes": 1}


def refusal(plan: CpuPlan, name: str, parameters: Parameters) -> str | None:
    """Why the strategy called `name` has no code for these parameters; None when it has."""
    if name not in STRATEGIES:
        return f"strategy={name!r}; expected one of {', '.join(STRATEGIES)}"
    strategy, layout, tile = STRATEGIES[name], plan.layout, parameters.tile
    if reason := out_of_range(parameters):
        return reason
    if tile.blocks % layout.matrices:
        return f"blocks={tile.blocks}; expected as many of the gate as of up"
    if strategy.streams and tile.panels > 1:
        return f"panels={tile.panels}; a {name} has one"
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
        return f"strategy={name!r}; target {plan.target.name} has no instruction for it"
    fragments = -(-tile.rows // dot.rows)
    if tile.rows % (fragments if dot.shapes else dot.rows):
        return f"rows={tile.rows}; {dot.name} computes {dot.rows} at a time"
    taken, most = registers(plan, dot, tile, 1), budget(plan.target, dot)
    # One block must do where not even that fits; vectors then pass through memory.
    may_spill = (
        tile.blocks == layout.matrices
        and dot.registers is None
        and tile.rows <= max(plan.target.tile_rows)
    )
    if taken > most and not may_spill:
        return f"a tile of {tile.rows} x {tile.blocks} takes {taken} registers of {most}"
    if not unrolls(layout, dot, parameters.unroll):
        return f"unroll={parameters.unroll} does not divide the steps of a block of K"
    if strategy.streams and parameters.ahead % layout.step_bytes:
        return f"ahead={parameters.ahead}; expected a multiple of {layout.step_bytes} bytes"
    return None


def out_of_range(parameters: Parameters) -> str | None:
    """Which parameter is no number that any of its kind may be."""
    for name, value in dataclasses.asdict(parameters).items():
        if type(value) is not int or value < LEAST.get(name, 0):
            return f"{name}={value!r}; expected a whole number of at least {LEAST.get(name, 0)}"
        most = MOST_BLOCK_ROWS if name == "block_rows" else MOST
        if value > most:
            return f"{name}={value}; expected at most {most}"
    return None
