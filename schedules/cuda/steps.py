"""Steps that the recipes for GPUs share. Each takes a `Schedule` and says what it leaves."""

from __future__ import annotations

import tvm
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV

from ...targets.cuda import WARP
from ...targets.cuda_layout import COLUMNS, QUARTERS
from ...targets.instructions import cuda_dot, cuda_mma
from .program import BAND_COLUMNS, FRAGMENT_ROWS, SKEW, CudaProgram

#: Bytes of a copy that one thread makes at a time.
COPY = 16
SHARED = "shared.dyn"
#: Bytes of a round of shared memory's banks. Rows of a tile of sums start SKEW bytes behind one:
#: a warp that writes 8 rows of 4 pairs spreads them over all banks.
ROUND = 128


def grid(sch: Schedule, program: CudaProgram) -> LoopRV:
    """A thread block per tile of y. Returns the loop over panels of columns, the inner one.

    Blocks start along x first and along z last: all rows of a band of panels before the next band.
    """
    o, i, r, n = sch.get_loops(sch.get_sblock("y"))
    columns = program.tile.blocks // program.layout.matrices * COLUMNS
    panel, n = sch.split(n, [None, columns])
    panels = int(sch.get(panel).extent)
    band, panel = sch.split(panel, [None, band_panels(panels, columns, program.tile.band)])
    sch.reorder(band, o, i, panel, r, n)
    sch.bind(band, "blockIdx.z")
    sch.bind(sch.fuse(o, i), "blockIdx.y")
    sch.bind(panel, "blockIdx.x")
    results = sch.get_sblock("results")
    sch.set_scope(results, 0, "local")
    sch.compute_at(results, panel, preserve_unit_loops=True)
    return panel


def band_panels(panels: int, columns: int, band: int = BAND_COLUMNS) -> int:
    """Panels of `columns` columns that are a band: as many as share `panels` out evenly.

    At least half of what `band` columns have room for; where no such number does, there is one
    band.
    """
    most = max(1, band // columns)
    fits = (count for count in range(most, most // 2, -1) if panels % count == 0)
    return next(fits, panels)


def stage_tile(sch: Schedule, program: CudaProgram, panel: LoopRV) -> tuple[LoopRV, LoopRV]:
    """The tile of sums in shared memory. Returns its loops over rows and columns."""
    block = sch.get_sblock("tile")
    sch.set_scope(block, 0, SHARED)
    sch.compute_at(block, panel, preserve_unit_loops=True)
    size = element_bytes(sch, "tile")
    sch.storage_align(block, 0, axis=2, factor=ROUND // size, offset=SKEW // size)
    r, n = sch.get_loops(block)[-2:]
    return r, n


def fragments(sch: Schedule, r: LoopRV, n: LoopRV) -> tuple[LoopRV, LoopRV]:
    """Loops over rows and columns as rows / 16, blocks, row, column. Returns the last two."""
    rf, r = sch.split(r, [None, FRAGMENT_ROWS])
    nb, c = sch.split(n, [None, COLUMNS])
    sch.reorder(rf, nb, r, c)
    return r, c


def element_bytes(sch: Schedule, name: str) -> int:
    """Bytes of a number that the block `name` writes."""
    return tvm.DataType(sch.get(sch.get_sblock(name)).writes[0].source.dtype).itemsize


def share_warps(sch: Schedule, program: CudaProgram, name: str, row: int) -> LoopRV:
    """The fragments of block `name` shared out among the warps; its rows are the loop `row`.

    Returns the loop that is threadIdx.y; behind it are rows / 16, blocks, and what was behind them.
    """
    over_rows, over_columns, _ = program.tile.warps
    rf, nb, *within = sch.get_loops(sch.get_sblock(name))[row:]
    wm, rf = sch.split(rf, [over_rows, None])
    wn, nb = sch.split(nb, [over_columns, None])
    sch.reorder(wm, wn, rf, nb, *within)
    warp = sch.fuse(wm, wn)
    sch.bind(warp, "threadIdx.y")
    return warp


def lanes(sch: Schedule, row: LoopRV, column: LoopRV) -> None:
    """A fragment's 16 rows and 8 columns as mma.sync leaves them: a lane and its 4 registers."""
    upper, low = sch.split(row, [2, 8])
    pair, one = sch.split(column, [4, 2])
    sch.reorder(low, pair, upper, one)
    sch.bind(sch.fuse(low, pair), "threadIdx.x")
    sch.unroll(upper)
    sch.unroll(one)


def in_registers(sch: Schedule, name: str) -> None:
    """Sums of fragments in registers: their last two dimensions become lane and register."""
    sch.set_scope(name, 0, "warp")
    sch.transform_layout(
        name, ("write", 0), lambda *at: (*at[:-2], *cuda_mma.place(at[-2], at[-1]))
    )


def fill_shared_memory(sch: Schedule, program: CudaProgram, chunk: LoopRV) -> None:
    """The tiles of X and W of one round of the loop `chunk`, copied by all threads together."""
    for name, loops in (("x_tile", 3), ("w_tile", 4)):
        block = sch.get_sblock(name)
        sch.set_scope(block, 0, SHARED)
        sch.compute_at(block, chunk, preserve_unit_loops=True)
        copy_together(sch, sch.get_loops(block)[-loops:], program.tile.warps_in_all)


def copy_together(sch: Schedule, loops: list[LoopRV], warps: int, size: int = 1) -> LoopRV:
    """A copy of elements of `size` bytes shared out among all threads, 16 bytes at a time.

    Returns the loop that is threadIdx.x.
    """
    *others, inner = loops
    inner, vector = sch.split(inner, [None, COPY // size])
    # Where there are fewer copies than threads this leaves some without work.
    _, warp, lane = sch.split(sch.fuse(*others, inner), [None, warps, WARP])
    sch.bind(warp, "threadIdx.y")
    sch.bind(lane, "threadIdx.x")
    sch.vectorize(vector)
    return lane


def stage_numbers(sch: Schedule, program: CudaProgram, round_: LoopRV) -> None:
    """What belongs to groups and columns in shared memory, where the groups are added up.

    It is on its way, in registers, while the products of the round are summed.
    """
    total = sch.get_sblock("total")
    names = [read.source.name for read in sch.get(total).reads]
    for at, name in enumerate(names):
        if name not in ("w_scale", "w_offset", "w_zero_point", "w_sum"):
            continue
        shared = sch.cache_read(total, at, SHARED)
        local = sch.cache_read(shared, 0, "local")
        size = max(element_bytes(sch, sch.get(shared).name_hint), COPY // COLUMNS)
        for block, place in ((shared, -1), (local, -2)):
            sch.compute_at(block, round_, preserve_unit_loops=True, index=place)
            copy_together(sch, sch.get_loops(block)[-3:], program.tile.warps_in_all, size)


def write_out(sch: Schedule, warps: int) -> None:
    """The epilogue, by all threads, from the tile of sums: each computes 16 bytes and stores them.

    Behind shared memory rather than where the sums are: registers are full of those.
    """
    loops = sch.get_loops(sch.get_sblock("y"))[-2:]
    lane = copy_together(sch, loops, warps, element_bytes(sch, "y"))
    results = sch.get_sblock("results")
    sch.compute_at(results, lane, preserve_unit_loops=True)
    sch.unroll(sch.get_loops(results)[-1])


def pipeline(sch: Schedule, chunk: LoopRV, stages: int, behind: int) -> None:
    """Fill shared memory `stages` - 1 rounds ahead of the `behind` blocks that read it."""
    if stages < 2:
        return
    blocks = 2 + behind
    sch.annotate(chunk, "software_pipeline_stage", [0, 0] + [stages - 1] * behind)
    sch.annotate(chunk, "software_pipeline_order", [*range(blocks)])
    sch.annotate(chunk, "software_pipeline_async_stages", [0])


def on_tensor_core(sch: Schedule, program: CudaProgram, first: LoopRV) -> None:
    """Zero the sums before the loop `first`, and write the products as the instruction."""
    in_registers(sch, "acc")
    acc = sch.get_sblock("acc")
    within = 1 + program.k_loops
    rf, nb = sch.get_loops(acc)[-within - 2 : -within]
    zero = sch.decompose_reduction(acc, first)
    blocks, layout = int(sch.get(nb).extent), program.layout
    zeros, product = cuda_mma.register(program.instruction, layout.bits, layout.piece, blocks)
    *_, zero_rf, zero_nb, zero_r, _ = sch.get_loops(zero)
    sch.tensorize(zero_r, zeros)
    sch.tensorize(nb, product)
    for loop in (zero_rf, zero_nb, rf):
        unroll(sch, loop)


def by_dot_products(sch: Schedule, program: CudaProgram, first: LoopRV, scope: str) -> None:
    """Zero the sums before the loop `first`; write products and sums of quarters as instructions.

    X and W are in the memory `scope`.
    """
    sch.set_scope("acc", 0, "warp")
    sch.transform_layout("acc", ("write", 0), lambda *at: (*at[:-2], at[-2] * QUARTERS + at[-1]))
    acc = sch.get_sblock("acc")
    within = 1 + program.k_loops
    nb, r, column = sch.get_loops(acc)[-within - 2 : -within + 1]
    zero = sch.decompose_reduction(acc, first)
    *_, zero_r, zero_nb, c, t = sch.get_loops(zero)
    sch.bind(sch.fuse(c, t), "threadIdx.x")
    layout = program.layout
    product, sum_quarters = cuda_dot.register(program.instruction, layout.bits, layout.piece, scope)
    sch.tensorize(column, product)
    *_, sum_r, sum_nb, c = sch.get_loops(sch.get_sblock("sums"))
    sch.tensorize(c, sum_quarters)
    for loop in (zero_r, zero_nb, nb, r, sum_r, sum_nb):
        unroll(sch, loop)


def share_results(sch: Schedule, program: CudaProgram, r: LoopRV, n: LoopRV) -> LoopRV:
    """The tile's results shared out among all threads, rows that follow each other to one thread.

    Returns the loop that is threadIdx.x.
    """
    warps = program.tile.warps_in_all
    at_once = warps * WARP // int(sch.get(n).extent)
    r, own = sch.split(r, [min(at_once, program.tile.rows), None])
    sch.reorder(r, n, own)
    warp, lane = sch.split(sch.fuse(r, n), [None, WARP])
    sch.bind(warp, "threadIdx.y")
    sch.bind(lane, "threadIdx.x")
    return lane


def share_few(sch: Schedule, warps: int, *loops: LoopRV) -> LoopRV:
    """Loops over a few results shared out among threads. Returns the loop that is threadIdx.x."""
    _, warp, lane = sch.split(sch.fuse(*loops), [None, warps, WARP])
    sch.bind(warp, "threadIdx.y")
    sch.bind(lane, "threadIdx.x")
    return lane


def unroll(sch: Schedule, loop: LoopRV) -> None:
    """Leave the unrolling of a loop to the CUDA compiler."""
    sch.unroll(loop)
    sch.annotate(loop, "pragma_unroll_explicit", 0)
