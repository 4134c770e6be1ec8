"""gemv: few rows. The weight is streamed once, and bounds the time; x is packed by one thread.

for x: pack                             a few KB, not worth waking the threads for
parallel over (mo, panel):              each thread streams its own contiguous part of w
  for mi in the tiles of the block:
    acc[rows, blocks, lanes] = 0
    for kb, ks:                         `blocks` streams of w at a time, each read once
      for r, block: acc += xp * w
    y = epilogue(acc)
"""

from __future__ import annotations

from tvm import tirx
from tvm.s_tir import Schedule

from .program import Program
from .steps import keep_in_registers, pack, tile, write_back


def schedule(program: Program) -> tirx.PrimFunc:
    """`program` as a gemv: `tile.blocks` streams of weights for `tile.rows` rows."""
    sch = Schedule(program.func)
    pack(sch, program)
    loops = tile(sch, program)
    sch.parallel(sch.fuse(loops.mo, loops.panel))
    keep_in_registers(sch, program, loops)
    write_back(sch, program)
    return sch.mod["main"]
