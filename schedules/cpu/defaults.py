"""The parameters that a tile has where nothing was tuned."""

from __future__ import annotations

from ...targets import Instruction, WeightLayout
from .cost import panel_cost, panels_of
from .plan import CpuPlan
from .program import CACHE_LINE, CHAINS, Parameters, Tile, unrolls
from .registers import fitting, sums_of

#: Streams of weights of a gemv, which the hardware's prefetchers follow; they share the loads of x.
#: One row reads memory at full speed with one stream where a dot product is one instruction, or
#: takes a cache line of weights (docs/performance.md).
STREAMS = 4
#: Groups up to this size leave one stream, which asks for its weights ahead of time: their scales
#: are a second stream beside it, and the end of a group keeps the core from looking far ahead.
SMALL_GROUP = 32
#: Bytes between asking for weights and reading them, about what one core has under way when it
#: reads memory at full speed (docs/performance.md).
AHEAD = 4096
#: Steps along K of a gemv that are written out: fewer instructions between its reads.
GEMV_UNROLL = 2
#: Columns of a task. With fewer, slabs of x would pass from L2 to L1 more often than the dot
#: products take; more weights would not stay in L2.
PANEL_COLUMNS = 64
#: Blocks of columns of a task of paired products, where those are fewer: widened weights have twice
#: the bytes, and chips with short vectors have 256 or 512 KB of L2 (docs/performance.md).
PAIRED_BLOCKS = 4
#: The share of panels that may lie behind the end of N.
IDLE_PANELS = 0.02
#: Tiles of x up to which packing takes less time than a launch of the thread pool.
FEW_TILES = 2


def gemv_parameters(plan: CpuPlan, instruction: Instruction, rows: int) -> Parameters:
    """Of a tile of `rows` rows that reads several streams of weights once."""
    layout = plan.layout
    ahead = AHEAD if small_groups(layout) else 0
    unroll = GEMV_UNROLL if not ahead and unrolls(layout, instruction, GEMV_UNROLL) else 1
    return parameters(plan, rows, streams(plan, instruction, rows), 1, ahead, unroll)


def gemm_parameters(plan: CpuPlan, instruction: Instruction, rows: int) -> Parameters:
    """Of a tile of `rows` rows that reads weights and activations from caches."""
    blocks = blocks_of(plan, instruction, rows)
    across = panels(plan.layout, instruction, blocks)
    return parameters(plan, rows, blocks, across, ahead=1, unroll=1)


def parameters(
    plan: CpuPlan, rows: int, blocks: int, panels: int, ahead: int, unroll: int
) -> Parameters:
    """These, and what all strategies have alike."""
    block_rows = max(1, plan.target.cache_bytes // plan.layout.k_padded)
    return Parameters(
        rows, blocks, panels, ahead, unroll, few_tiles=FEW_TILES, block_rows=block_rows
    )


def streams(plan: CpuPlan, instruction: Instruction, rows: int) -> int:
    """Blocks of columns of a gemv's tile, as many as memory can feed.

    Float sums of long groups may pass through memory: that is short beside a group.
    """
    quick = instruction.alone or plan.target.vector_bytes >= CACHE_LINE
    most = 1 if (rows == 1 and quick) or small_groups(plan.layout) else STREAMS
    return min(max(most, plan.layout.matrices), fitting(plan, instruction, rows, sums=1)[-1])


def small_groups(layout: WeightLayout) -> bool:
    """Whether the scales of groups are a stream that matters beside the weights."""
    return layout.groups > 1 and (layout.group_size or 0) <= SMALL_GROUP


def blocks_of(plan: CpuPlan, instruction: Instruction, rows: int) -> int:
    """Blocks of columns of a gemm's tile: of those that fit the register file, what serves N best.

    Two where groups leave room for one, but not without their float sums: a second pass over x
    costs more than sums that pass through memory once per group.
    """
    layout = plan.layout
    fit = fitting(plan, instruction, rows, sums_of(layout))
    if len(fit) == 1:
        return fitting(plan, instruction, rows, sums=1)[:2][-1]
    enough = -(-CHAINS // rows)  # accumulators, or dot products wait for each other

    def cost(blocks: int) -> float:
        tile = Tile(rows, blocks, panels(layout, instruction, blocks))
        return panels_of(layout.n_blocks, tile) * panel_cost(instruction, layout, tile)

    return min((blocks for blocks in reversed(fit) if blocks >= min(enough, fit[-1])), key=cost)


def panels(layout: WeightLayout, instruction: Instruction, blocks: int) -> int:
    """How many register tiles share a slab of x: as many as make a panel of `PANEL_COLUMNS`.

    But fewer where the last task would compute much that nobody asked for.
    """
    count = -(-layout.n_blocks // blocks)
    most = PANEL_COLUMNS // (blocks * layout.lanes)
    if instruction.form.w_components > 1:
        most = min(most, PAIRED_BLOCKS // blocks)
    fits = [p for p in range(1, max(1, most) + 1) if -count % p <= IDLE_PANELS * count]
    return max(fits)
