"""splitk: few rows, on the tensor core. K is split over the warps of a block, so that blocks can be
narrow and every multiprocessor has one.

grid over (tiles of rows, narrow panels of columns): a thread block
  for chunk of K:                       filled `stages` - 1 rounds ahead (cp.async):
    x_tile, w_tile = x, w               in shared memory, 16 bytes a thread
    for warp in the block:              a step or a group of the chunk each
      for step, rows / 16, blocks:
        acc += x_tile * w_tile          16 x 8 sums in registers
  sums = acc                            in shared memory, of each warp or each group
  tile = sum of sums                    by all threads; groups in their order
  y = epilogue(tile)                    16 bytes at a time

With groups the sums are added in every round of the loop.
"""

from __future__ import annotations

from tvm import tirx
from tvm.s_tir import Schedule

from .program import CudaProgram
from .steps import (
    SHARED,
    fill_shared_memory,
    grid,
    lanes,
    on_tensor_core,
    pipeline,
    share_results,
    stage_tile,
    write_out,
)


def schedule(program: CudaProgram) -> tirx.PrimFunc:
    """`program` with one part of K for every warp at a time."""
    sch = Schedule(program.func)
    tile, layout = program.tile, program.layout
    warps = tile.warps[2]
    panel = grid(sch, program)
    thread = share_results(sch, program, *stage_tile(sch, program, panel))
    total = sch.get_sblock("total")
    sch.set_scope(total, 0, "local")
    sch.compute_at(total, thread, preserve_unit_loops=True)
    *_, rf, nb, r, c, part = sch.get_loops(total)
    if layout.groups > 1:
        chunk, part = sch.split(part, [None, warps])
        sch.reorder(chunk, rf, nb, r, c, part)
    sums = sch.get_sblock("sums")
    sch.set_scope(sums, 0, SHARED)
    sch.compute_at(sums, chunk if layout.groups > 1 else panel, preserve_unit_loops=True)
    part, rf, nb, r, c = sch.get_loops(sums)[-5:]
    sch.bind(part, "threadIdx.y")
    lanes(sch, r, c)
    acc = sch.get_sblock("acc")
    sch.compute_at(acc, part, preserve_unit_loops=True)
    reduction = program.k_loops
    rf, nb, r, c, s, *inner = sch.get_loops(acc)[-4 - reduction :]
    if layout.groups > 1:
        first = s
        sch.reorder(s, rf, nb, r, c, *inner)
    else:
        first, s = sch.split(s, [None, tile.steps // warps])
        sch.reorder(first, s, rf, nb, r, c, *inner)
    filled = chunk if layout.groups > 1 else first
    fill_shared_memory(sch, program, filled)
    on_tensor_core(sch, program, first)
    sch.decompose_reduction(total, chunk if layout.groups > 1 else sch.get_loops(total)[-1])
    pipeline(sch, filled, tile.stages, behind=2 if layout.groups > 1 else 1)
    write_out(sch, warps)
    return sch.mod["main"]
