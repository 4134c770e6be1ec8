"""Tiles of every strategy for GPUs: those of which a kernel has functions."""

from __future__ import annotations

import dataclasses

from ...targets.cuda import CudaTarget
from ...targets.cuda_layout import COLUMNS, CudaLayout
from .plan import CudaPlan
from .program import SKEW, CudaTile

#: Rows of the tiles of gemv, with blocks of 8 columns: fewer where N gives too few thread blocks.
GEMV_TILES = {1: 4, 2: 2, 4: 1, 8: 1}
#: Rows of those of splitk; and the tiles of the others, with their warps.
SPLITK_ROWS = (16, 32, 64)
MMA_TILES: tuple[CudaTile, ...] = (
    CudaTile(64, 8, (2, 2, 1)),
    CudaTile(128, 16, (2, 2, 1)),
    CudaTile(128, 32, (2, 4, 1)),
)
#: With groups a warp has sums of integers and of floats, and half the registers for each.
GROUPED_MMA_TILES: tuple[CudaTile, ...] = (CudaTile(64, 8, (2, 2, 1)), CudaTile(128, 16, (2, 4, 1)))
#: Where groups of 4-bit weights have zero points too, those would not fit.
CROWDED_MMA_TILES: tuple[CudaTile, ...] = (CudaTile(64, 8, (2, 2, 1)), CudaTile(128, 8, (4, 4, 1)))
#: Rows up to which a splitk with groups keeps both in registers.
GROUPED_SPLITK_ROWS = 32
DP4A_TILES: tuple[CudaTile, ...] = (CudaTile(32, 8, (4, 2, 1)),)
#: Blocks of columns of a thread block of splitk: so few that every multiprocessor has one.
SPLITK_BLOCKS = 4
#: Results at most that a thread of splitk adds up from all warps. Two warps of 64 rows would have
#: 32, beside 64 sums of a lane's own: up to 246 registers, with only 64 threads in a block.
MOST_RESULTS = 16
#: K that a round of the pipeline brings to shared memory, and at most for a group that is longer.
ROUND_DEPTH, LONGEST_ROUND = 128, 256
#: Groups of a round at most. Their products are written out one by one: eight of 16 k make the loop
#: of mma twice as long, 941 instructions instead of 488, and spill; TVM has no vector for dp4a's.
MOST_GROUPS = 4
#: Stages of a pipeline at most, and how many hide the latency of memory by themselves. Tiles of so
#: many sums have no more: two of their rounds are 48 or 64 KB and more, and to find a round among
#: three costs a loop of 64 products 7 to 14 instructions less than among four.
STAGES, ENOUGH_STAGES = 4, 3
ENOUGH_SUMS = 128 * 128
#: Thread blocks of a gemv of which several share every multiprocessor: while one waits for memory
#: or adds its sums up, others have loads under way.
MANY_BLOCKS = 512
#: Bytes of shared memory for the sums of groups that a gemv adds up at a time.
GEMV_SUMS = 16 << 10


def gemv_tiles(plan: CudaPlan) -> list[CudaTile]:
    """One for each number of rows."""
    return [gemv(plan.layout, rows, blocks) for rows, blocks in GEMV_TILES.items()]


def dp4a_tiles(plan: CudaPlan) -> list[CudaTile]:
    """Of chips that have no tensor core."""
    return [blocked(plan.target, plan.layout, tile) for tile in DP4A_TILES]


def splitk_tiles(plan: CudaPlan) -> list[CudaTile]:
    """One for each number of rows that fits into registers and shared memory."""
    most = GROUPED_SPLITK_ROWS if plan.layout.groups > 1 else max(SPLITK_ROWS)
    found = (splitk(plan.target, plan.layout, rows) for rows in SPLITK_ROWS if rows <= most)
    return [tile for tile in found if tile]


def mma_tiles(plan: CudaPlan) -> list[CudaTile]:
    """The largest that fit, of each number of rows."""
    target, layout = plan.target, plan.layout
    tiles = fitting_mma_tiles(target, layout, plan.spec.weight_zero_point)
    return [blocked(target, layout, tile) for tile in tiles]


def fitting_mma_tiles(target: CudaTarget, layout: CudaLayout, zero_points: bool) -> list[CudaTile]:
    """Tiles whose sums fit into registers, made narrower until they fit into shared memory."""
    tiles = MMA_TILES
    if layout.groups > 1:
        crowded = zero_points and layout.bits == 4
        tiles = CROWDED_MMA_TILES if crowded else GROUPED_MMA_TILES
    fitting = dict[tuple[int, int], CudaTile]()
    for tile in tiles:
        blocks = tile.blocks
        while tile_bytes(tile.rows, blocks) > target.shared_bytes:
            blocks //= 2
        narrowed = dataclasses.replace(tile, blocks=blocks)
        fitting.setdefault((tile.rows, blocks), narrowed)
    return [*fitting.values()]


def gemv(layout: CudaLayout, rows: int, blocks: int) -> CudaTile:
    """Warps share out steps, or groups a round of them at a time."""
    blocks = max(blocks, layout.matrices)
    while blocks > layout.matrices and layout.n_blocks // blocks < MANY_BLOCKS:
        blocks //= 2
    if layout.groups == 1:
        return CudaTile(rows, blocks, (1, 1, 8 if layout.steps % 8 == 0 else 4))
    warps = 8 if layout.groups % 8 == 0 else 4
    most = max(warps, GEMV_SUMS // (4 * rows * blocks * COLUMNS))
    counts = range(warps, min(most, layout.groups) + 1, warps)
    return CudaTile(rows, blocks, (1, 1, warps), max(c for c in counts if layout.groups % c == 0))


def splitk(target: CudaTarget, layout: CudaLayout, rows: int) -> CudaTile | None:
    """A step or a group for every warp in a round; None where shared memory is too small."""
    parts = layout.steps if layout.groups == 1 else layout.groups
    for warps in (8, 4, 2):
        steps = warps if layout.groups == 1 else warps * layout.group_steps
        tile = CudaTile(rows, SPLITK_BLOCKS, (1, 1, warps), steps)
        results = rows * SPLITK_BLOCKS * COLUMNS // (32 * warps)
        if parts % warps or parts // warps < 2 or results > MOST_RESULTS:
            continue
        stages = min(stages_that_fit(target, layout, tile), parts // warps)
        if stages >= 2:
            return dataclasses.replace(tile, stages=stages)
    return None


def blocked(target: CudaTarget, layout: CudaLayout, tile: CudaTile) -> CudaTile:
    """`tile` with the rounds of K and the stages of its pipeline.

    A round brings whole groups where they are short and two rounds fit, else a part of one.
    """
    size = layout.group_steps * layout.depth
    if layout.groups > 1 and size <= LONGEST_ROUND:
        groups = max(1, min(ROUND_DEPTH // size, layout.groups // 2, MOST_GROUPS))
        whole = dataclasses.replace(tile, steps=groups * layout.group_steps)
        stages = min(stages_that_fit(target, layout, whole), layout.groups // groups)
        if stages >= 2:
            return dataclasses.replace(whole, stages=stages)
    most = max(1, ROUND_DEPTH // layout.depth)
    steps = max(s for s in range(1, most + 1) if layout.group_steps % s == 0)
    part = dataclasses.replace(tile, steps=steps)
    rounds = layout.group_steps // steps
    return dataclasses.replace(part, stages=min(stages_that_fit(target, layout, part), rounds))


def tile_bytes(rows: int, blocks: int) -> int:
    """Shared memory of a tile of sums."""
    return rows * (4 * blocks * COLUMNS + SKEW)


def stages_that_fit(target: CudaTarget, layout: CudaLayout, tile: CudaTile) -> int:
    """Rounds of K that shared memory holds, up to `STAGES`.

    In half of it where that is enough: two blocks then share a multiprocessor, and one multiplies
    while the other waits.
    """
    sums_bytes, round_bytes = bytes_of_rounds(target, layout, tile)
    many = tile.rows * tile.blocks * COLUMNS >= ENOUGH_SUMS
    half, whole = (
        min(
            ENOUGH_STAGES if many else STAGES,
            (target.shared_bytes // blocks - sums_bytes) // round_bytes,
        )
        for blocks in (2, 1)
    )
    return half if half >= ENOUGH_STAGES else whole


def bytes_of_rounds(target: CudaTarget, layout: CudaLayout, tile: CudaTile) -> tuple[int, int]:
    """Shared memory of sums beside the pipeline, and of one of its rounds of K."""
    x_bytes = tile.rows * layout.depth * tile.steps
    w_bytes = tile.blocks * COLUMNS * layout.piece * tile.steps
    if target.matrix:
        sums = tile.warps[2] if tile.warps[2] > 1 else 0  # one for every warp of a splitk
    else:
        sums = max(1, tile.steps // layout.group_steps)  # one for every group of a round
    sums_bytes = 4 * tile.rows * tile.blocks * COLUMNS * sums
    return sums_bytes, x_bytes + w_bytes
