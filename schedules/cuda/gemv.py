"""gemv: a few rows, by dot products of threads. The weight is read once, and bounds the time.

grid over (tiles of rows, panels of 8 to 32 columns): a thread block
  for warp in the block:                a part of K each, or a group after the other
    for step:                           16 bytes of W a lane, straight to registers
      for row: acc += x * w             x from L1, four lanes to a column
    sums = acc of four lanes            by shuffles, to shared memory
  tile = sum of sums                    groups in their order
  y = epilogue(tile)
"""

from __future__ import annotations

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV

from ...targets.cuda_layout import COLUMNS
from .program import CudaProgram
from .steps import (
    SHARED,
    by_dot_products,
    grid,
    share_few,
    stage_numbers,
    stage_tile,
    unroll,
    write_out,
)

#: Loads of weights that a lane has under way at a time.
AHEAD = 8


def schedule(program: CudaProgram) -> tirx.PrimFunc:
    """`program` with one part of K for every warp at a time."""
    sch = Schedule(program.func)
    warps, grouped = program.tile.warps[2], program.layout.groups > 1
    panel = grid(sch, program)
    tile = stage_tile(sch, program, panel)
    total = sch.get_sblock("total")
    sch.set_scope(total, 0, "local")
    sch.compute_at(total, panel, preserve_unit_loops=True)
    *results, part = sch.get_loops(total)[-4:]
    # As the tile has its columns, so that each thread is seen to have one number, and no array.
    columns = lambda o, i, r, nb, c: (o, i, r, nb * COLUMNS + c)  # noqa: E731
    sch.transform_layout(total, ("write", 0), columns)
    outer = panel
    if grouped:
        outer, part = sch.split(part, [None, program.tile.steps])
        sch.reorder(outer, *results, part)
    sums = sch.get_sblock("sums")
    sch.set_scope(sums, 0, SHARED)
    sch.compute_at(sums, outer, preserve_unit_loops=True)
    part, r, nb, c = sch.get_loops(sums)[-4:]
    part, warp = sch.split(part, [None, warps])
    sch.bind(warp, "threadIdx.y")
    acc = sch.get_sblock("acc")
    sch.compute_at(acc, warp, preserve_unit_loops=True)
    within = 1 + program.k_loops
    r, nb, c, t, s, *inner = sch.get_loops(acc)[-within - 3 :]
    sch.reorder(s, nb, r, c, t, *inner)
    by_dot_products(sch, program, s, "global")
    if grouped:
        unroll_some(sch, part, AHEAD // (program.tile.blocks * program.layout.group_steps))
        stage_numbers(sch, program, outer)
    else:
        unroll_some(sch, s, AHEAD // program.tile.blocks)
    # Only now: what is computed at loops covers all threads that they are shared out among.
    share_few(sch, warps, *results)
    share_few(sch, warps, *tile)
    sch.decompose_reduction(total, outer if grouped else sch.get_loops(total)[-1])
    write_out(sch, warps)
    return sch.mod["main"]


def unroll_some(sch: Schedule, loop: LoopRV, most: int) -> None:
    """Unroll up to `most` iterations of a loop, as many as divide it."""
    extent = int(sch.get(loop).extent)
    few = max(count for count in range(1, max(1, most) + 1) if extent % count == 0)
    unroll(sch, sch.split(loop, [None, few])[1])
