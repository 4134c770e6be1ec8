"""What tuning may choose for the numbers of a tile, by strategy, and which tiles have code.

The default's numbers are options in any case (`cpu.space.sample`). Nothing here imports `tvm`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ...targets.cuda_layout import COLUMNS, SUMMED_AT_ONCE, CudaLayout
from .plan import CudaPlan
from .program import BAND_COLUMNS, FRAGMENT_ROWS, CudaTile
from .tiles import STAGES, bytes_of_rounds, tile_bytes

#: Bands that are tried: half and twice the default, and all columns in one.
BANDS = (BAND_COLUMNS, BAND_COLUMNS // 2, 2 * BAND_COLUMNS, 1 << 20)
#: Warps of a block at most, and of how many a block is worth its barriers.
MOST_WARPS = 16
#: Sums of a thread at most, which are registers: without groups, and where groups have floats too.
MOST_SUMS, MOST_GROUPED_SUMS = 128, 64

Space = Mapping[str, Sequence[int]]


def of_gemv(plan: CudaPlan) -> Space:
    """Rows and columns of a tile, and how K is split over warps."""
    layout = plan.layout
    steps = (1,) if layout.groups == 1 else divisors(layout.groups, SUMMED_AT_ONCE, 128)
    return {
        "rows": (1, 2, 4, 8, 16),
        "blocks": blocks(layout, 1, 2, 4, 8),
        "warps_over_rows": (1,),
        "warps_over_columns": (1,),
        "warps_over_k": (8, 4, 2, 16),
        "steps": steps,
        "stages": (0,),
        "band": BANDS[:1],
    }


def of_splitk(plan: CudaPlan) -> Space:
    """Rows and columns of a tile, how K is split over warps, and the pipeline."""
    layout = plan.layout
    unit = 1 if layout.groups == 1 else layout.group_steps
    return {
        "rows": (16, 32, 64),
        "blocks": blocks(layout, 2, 4, 8),
        "warps_over_rows": (1,),
        "warps_over_columns": (1,),
        "warps_over_k": (8, 4, 2),
        "steps": tuple(unit * count for count in (8, 4, 2, 16)),
        "stages": (4, 3, 2),
        "band": BANDS[:1],
    }


def of_mma(plan: CudaPlan) -> Space:
    """Tile, warps, rounds of K, stages, and bands."""
    return {
        "rows": (64, 128, 32, 256),
        "blocks": blocks(plan.layout, 8, 16, 32, 4),
        "warps_over_rows": (2, 1, 4),
        "warps_over_columns": (2, 1, 4),
        "warps_over_k": (1,),
        "steps": rounds(plan.layout),
        "stages": (3, 2, 4),
        "band": BANDS,
    }


def of_dp4a(plan: CudaPlan) -> Space:
    """As `of_mma`, for dot products of threads."""
    return {
        "rows": (32, 16, 64),
        "blocks": blocks(plan.layout, 8, 4, 16),
        "warps_over_rows": (4, 2, 1),
        "warps_over_columns": (2, 1, 4),
        "warps_over_k": (1,),
        "steps": rounds(plan.layout),
        "stages": (4, 3, 2),
        "band": BANDS,
    }


def blocks(layout: CudaLayout, *counts: int) -> tuple[int, ...]:
    """Those of some numbers of blocks that have as many of a gate as of up."""
    return tuple(count for count in counts if count % layout.matrices == 0)


def rounds(layout: CudaLayout) -> tuple[int, ...]:
    """Steps of a round of the pipeline: whole groups, or even parts of one."""
    whole = [layout.group_steps * count for count in (1, 2, 4) if layout.groups % count == 0]
    parts = divisors(layout.group_steps, 1, 8)
    return tuple(dict.fromkeys([*parts, *(whole if layout.groups > 1 else ())]))


def divisors(number: int, least: int, most: int) -> tuple[int, ...]:
    """Those from `least` to `most`, at least one."""
    found = tuple(each for each in range(least, most + 1) if number % each == 0)
    return found or (number,)


def refusal(plan: CudaPlan, strategy: str, tile: CudaTile) -> str | None:
    """Why a strategy has no code for a tile of its space; None when it has."""
    layout, warps = plan.layout, tile.warps_in_all
    numbers = tile.numbers().items()
    for name, value in numbers:
        if type(value) is not int or value < (0 if name == "stages" else 1):
            return f"{name}={value!r}; expected a whole number of at least 1"
    if tile.blocks % layout.matrices:
        return f"blocks={tile.blocks}; expected as many of the gate as of up"
    if warps > MOST_WARPS:
        return f"{warps} warps; expected at most {MOST_WARPS}"
    reason = RULES[strategy](plan, tile)
    if reason is not None or not tile.stages:
        return reason
    if tile.stages < 2 or tile.stages > STAGES:
        return f"stages={tile.stages}; expected 2 to {STAGES}"
    sums, in_round = bytes_of_rounds(plan.target, layout, tile)
    needed = max(sums + tile.stages * in_round, tile_bytes(tile.rows, tile.blocks))
    if needed > plan.target.shared_bytes:
        return f"{needed} bytes of shared memory; {plan.target.name} has {plan.target.shared_bytes}"
    return None


def gemv_rule(plan: CudaPlan, tile: CudaTile) -> str | None:
    """What a gemv needs: parts of K that its warps share out evenly."""
    layout, over_k = plan.layout, tile.warps[2]
    if tile.stages or tile.warps[:2] != (1, 1):
        return "a gemv has no pipeline, and warps over K alone"
    parts = layout.steps if layout.groups == 1 else tile.steps
    if parts % over_k or (layout.groups > 1 and layout.groups % tile.steps):
        return f"{over_k} warps do not share {parts} parts of K out evenly"
    if layout.groups == 1 and tile.steps != 1:
        return f"steps={tile.steps}; a gemv without groups has 1"
    return None


def splitk_rule(plan: CudaPlan, tile: CudaTile) -> str | None:
    """What a splitk needs: a step or a group of a round for every warp, and two rounds."""
    layout, over_k = plan.layout, tile.warps[2]
    if not tile.stages or tile.warps[:2] != (1, 1) or over_k < 2:
        return "a splitk has a pipeline, and two warps or more over K alone"
    if reason := one_block(tile.blocks):
        return reason
    unit = 1 if layout.groups == 1 else layout.group_steps
    parts = layout.steps // unit
    exact = tile.steps == over_k * unit if layout.groups > 1 else tile.steps % over_k == 0
    if not exact or layout.steps % tile.steps or parts % over_k:
        return f"{over_k} warps do not share rounds of {tile.steps} of {layout.steps} steps out"
    if layout.steps // tile.steps < tile.stages:
        return f"{layout.steps // tile.steps} rounds; expected {tile.stages}, one for each stage"
    return too_many_sums(plan, tile, tile.rows * tile.blocks * COLUMNS // 32)


def tiled_rule(plan: CudaPlan, tile: CudaTile) -> str | None:
    """What mma and dp4a need: fragments for every warp, and even rounds."""
    layout = plan.layout
    over_rows, over_columns, over_k = tile.warps
    if not tile.stages or over_k != 1:
        return "a tiled strategy has a pipeline, and warps over rows and columns alone"
    if tile.rows % over_rows or tile.blocks % over_columns:
        return f"{over_rows} x {over_columns} warps do not share {tile.rows} x {tile.blocks} out"
    whole = layout.groups > 1 and tile.steps >= layout.group_steps
    length = layout.steps if whole else layout.group_steps
    if length % tile.steps or (whole and tile.steps % layout.group_steps):
        return f"rounds of {tile.steps} steps do not divide {length}"
    if length // tile.steps < tile.stages:
        return f"{length // tile.steps} rounds; expected {tile.stages}, one for each stage"
    return too_many_sums(plan, tile, tile.rows * tile.blocks * COLUMNS // (32 * tile.warps_in_all))


def mma_rule(plan: CudaPlan, tile: CudaTile) -> str | None:
    """As `tiled_rule`, in fragments of 16 rows."""
    over_rows, over_columns, _ = tile.warps
    if tile.rows % (FRAGMENT_ROWS * over_rows):
        return f"{over_rows} warps do not share {tile.rows} rows out in fragments of 16"
    return one_block(tile.blocks // over_columns) or tiled_rule(plan, tile)


def one_block(of_warp: int) -> str | None:
    """Why a warp has too few columns: TVM finds no product where there is no loop over blocks."""
    return "a warp has one block of columns; expected two or more" if of_warp < 2 else None


def too_many_sums(plan: CudaPlan, tile: CudaTile, of_thread: int) -> str | None:
    """Why a thread has not the registers for its sums."""
    most = MOST_GROUPED_SUMS if plan.layout.groups > 1 else MOST_SUMS
    return f"{of_thread} sums of a thread; expected at most {most}" if of_thread > most else None


#: What a tile of each strategy must be.
RULES: dict[str, Callable[[CudaPlan, CudaTile], str | None]] = {
    "gemv": gemv_rule,
    "dp4a": tiled_rule,
    "splitk": splitk_rule,
    "mma": mma_rule,
}
