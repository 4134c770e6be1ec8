"""dp4a: many rows, by dot products of single threads, for chips without a tensor core.

grid over (tiles of rows, panels of columns): a thread block
  for chunk of K:
    x_tile, w_tile = x, w               in shared memory, 16 bytes a thread
    for warp in the block:              a part of the rows and columns each
      for step, block, row:
        acc += x_tile * w_tile          four lanes to a column, rows and blocks in registers
  sums = acc of four lanes              by shuffles, to shared memory
  tile = sums                           groups are added to a total in registers
  y = epilogue(tile)                    16 bytes at a time
"""

from __future__ import annotations

from tvm import tirx
from tvm.s_tir import Schedule

from .program import CudaProgram
from .steps import (
    SHARED,
    by_dot_products,
    fill_shared_memory,
    grid,
    pipeline,
    share_results,
    share_warps,
    stage_tile,
    write_out,
)


def schedule(program: CudaProgram) -> tirx.PrimFunc:
    """`program` in tiles of `program.tile`."""
    sch = Schedule(program.func)
    tile, layout = program.tile, program.layout
    panel = grid(sch, program)
    thread = share_results(sch, program, *stage_tile(sch, program, panel))
    filled = panel
    if program.parts > 1:
        total = sch.get_sblock("total")
        sch.set_scope(total, 0, "local")
        sch.compute_at(total, thread, preserve_unit_loops=True)
        r, nb, c, part = sch.get_loops(total)[-4:]
        filled, part = sch.split(part, [None, max(1, tile.steps // layout.group_steps)])
        sch.reorder(filled, r, nb, c, part)
    sums = sch.get_sblock("sums")
    sch.set_scope(sums, 0, SHARED)
    sch.compute_at(sums, filled, preserve_unit_loops=True)
    part = sch.get_loops(sums)[-4]
    warp = share_warps(sch, program, "sums", -3)
    acc = sch.get_sblock("acc")
    sch.compute_at(acc, warp, preserve_unit_loops=True)
    within = 1 + program.k_loops
    r, nb, c, t, s, *inner = sch.get_loops(acc)[-within - 3 :]
    chunk, s = sch.split(s, [None, min(tile.steps, layout.group_steps)])
    sch.reorder(chunk, s, nb, r, c, t, *inner)
    in_rounds = program.parts > 1 and tile.steps >= layout.group_steps
    fill_shared_memory(sch, program, filled if in_rounds else chunk)
    by_dot_products(sch, program, chunk, SHARED)
    if program.parts > 1:
        sch.decompose_reduction(total, filled)
    pipeline(sch, filled if in_rounds else chunk, tile.stages, behind=2 if in_rounds else 1)
    write_out(sch, tile.warps_in_all)
    return sch.mod["main"]
