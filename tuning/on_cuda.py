"""What tuning knows of GPUs: the default of an M, the spaces, what a choice is like."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..compiler import nvrtc
from ..errors import ToolError
from ..schedules.cuda import spaces
from ..schedules.cuda.plan import CudaPlan
from ..schedules.cuda.program import CudaTile
from ..schedules.cuda.strategies import STRATEGIES, CudaVariant, variant_with, variants
from ..schedules.cuda.tiles import bytes_of_rounds
from ..targets.cuda_layout import COLUMNS
from .choice import Choice

#: What the name of a candidate's function ends with, beside those that a kernel has anyway.
LABEL = "_tried"


def default_choice(plan: CudaPlan, m: int) -> Choice:
    """What a kernel without a record computes `m` rows with."""
    layout, processors = plan.layout, plan.target.multiprocessors
    best = min(variants(plan), key=lambda each: each.cost(layout).time(m, processors))
    return Choice(best.strategy, None, best.tile)


def variant_of(plan: CudaPlan, choice: Choice) -> CudaVariant:
    """The function that a choice stands for."""
    assert isinstance(choice.parameters, CudaTile)
    return variant_with(plan, choice.strategy, choice.parameters, LABEL)


def refusal(plan: CudaPlan, choice: Choice) -> str | None:
    """Why a choice has no code; None when it has."""
    assert isinstance(choice.parameters, CudaTile)
    return spaces.refusal(plan, choice.strategy, choice.parameters)


def space(plan: CudaPlan, m: int) -> Mapping[str, Mapping[str, Sequence[int]]]:
    """What may be chosen for `m` rows, by strategy and decision."""
    return {
        name: strategy.space(plan)
        for name, strategy in STRATEGIES.items()
        if strategy.products(plan.target) and strategy.first_m <= m <= (strategy.last_m or m)
    }


def features(plan: CudaPlan, m: int, choice: Choice) -> list[float]:
    """Numbers that say what a choice does to the grid, registers and shared memory."""
    tile, variant = choice.parameters, variant_of(plan, choice)
    assert isinstance(tile, CudaTile)
    cost, target = variant.cost(plan.layout), plan.target
    first = [name for name in STRATEGIES if name == choice.strategy or name == "gemv"]
    sums, of_round = bytes_of_rounds(target, plan.layout, tile)
    waves = -(-m // tile.rows) * cost.panels / target.multiprocessors
    time = CudaVariant.cost(variant, plan.layout)
    predicted = math.ceil(waves) * time.products + max(1.0, waves) * time.traffic
    return [
        math.log2(predicted),
        2.0 * len(first),
        math.log2(tile.rows),
        math.log2(tile.blocks),
        *(math.log2(count) for count in tile.warps),
        math.log2(tile.steps),
        1.0 * tile.stages,
        math.log2(tile.band) / 4,
        math.log2(waves) / 2,
        math.log2(tile.rows * tile.blocks * COLUMNS / tile.warps_in_all),
        4.0 * (sums + tile.stages * of_round) / target.shared_bytes,
        4.0 * (-(-m // tile.rows) * tile.rows / m - 1),
    ]


def tools(row: Any) -> dict[str, Any]:
    """What building needs is asked for; a log says nothing of it beside the header.

    Raises
    ------
    ToolError
        There is no NVRTC.
    """
    if nvrtc.bindings() is None:
        raise ToolError("tuning for NVIDIA GPUs needs NVRTC: pip install 'quantmm[cuda]'")
    return {}
