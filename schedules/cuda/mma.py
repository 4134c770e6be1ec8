"""mma: many rows, on the tensor core.

grid over (tiles of rows, panels of columns): a thread block
  for chunk of K:                       filled `stages` - 1 rounds ahead (cp.async):
    x_tile, w_tile = x, w               in shared memory, 16 bytes a thread
    for warp in the block:              a part of the rows and columns each
     for group in the chunk:            only where weights have groups
      for step, rows / 16, blocks:
        acc += x_tile * w_tile          16 x 8 sums in registers
      total += acc * scale
  tile = acc or total                   in shared memory,
  y = epilogue(tile)                    so that stores are 16 bytes

Groups that are larger than a chunk fill it several times, each group on its own.
"""

from __future__ import annotations

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV

from .program import CudaProgram
from .steps import (
    fill_shared_memory,
    fragments,
    grid,
    in_registers,
    lanes,
    on_tensor_core,
    pipeline,
    share_warps,
    stage_tile,
    unroll,
    write_out,
)


def schedule(program: CudaProgram) -> tirx.PrimFunc:
    """`program` in tiles of `program.tile`."""
    sch = Schedule(program.func)
    tile, layout = program.tile, program.layout
    panel = grid(sch, program)

    r, c = fragments(sch, *stage_tile(sch, program, panel))
    warp = share_warps(sch, program, "tile", -4)
    lanes(sch, r, c)

    summed = program.parts > 1
    outer = sum_groups(sch, program, warp) if summed else None
    acc = sch.get_sblock("acc")
    sch.compute_at(acc, outer[1] if outer else warp, preserve_unit_loops=True)
    reduction = program.k_loops
    rf, nb, r, c, s, *inner = sch.get_loops(acc)[-4 - reduction :]
    chunk, s = sch.split(s, [None, min(tile.steps, layout.group_steps)])
    sch.reorder(chunk, s, rf, nb, r, c, *inner)
    filled = outer[0] if outer and tile.steps >= layout.group_steps else chunk
    fill_shared_memory(sch, program, filled)
    on_tensor_core(sch, program, chunk)
    if outer:
        zero = sch.decompose_reduction(sch.get_sblock("total"), outer[0])
        for loop in sch.get_loops(zero)[-5:-3]:
            unroll(sch, loop)
    pipeline(sch, filled, tile.stages, behind=1)
    write_out(sch, tile.warps_in_all)
    return sch.mod["main"]


def sum_groups(sch: Schedule, program: CudaProgram, warp: LoopRV) -> tuple[LoopRV, LoopRV]:
    """The sum over groups in registers. Returns the loops over chunks and over a chunk's groups."""
    total = sch.get_sblock("total")
    sch.compute_at(total, warp, preserve_unit_loops=True)
    rf, nb, r, c, part = sch.get_loops(total)[-5:]
    per_chunk = max(1, program.tile.steps // program.layout.group_steps)
    chunk, group = sch.split(part, [None, per_chunk])
    sch.reorder(chunk, group, rf, nb, r, c)
    lanes(sch, r, c)
    in_registers(sch, "total")
    for loop in (rf, nb):
        unroll(sch, loop)
    return chunk, group
