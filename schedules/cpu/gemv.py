"""gemv: few rows. The weight is streamed once, and bounds the time; x is packed by one thread.

for x: pack                             a few KB, not worth waking the threads for
parallel over (mo, panel):              each thread streams its own contiguous part of w
  for mi in the tiles of the block:
    acc[rows, blocks, lanes] = 0
    for kb, ks:                         `blocks` streams of w at a time, each read once; where that
                                        is not plain reading, ahead of time
      for r, block: acc += xp * w
    y = epilogue(acc)
"""

from __future__ import annotations

from tvm import tirx
from tvm.s_tir import Schedule

from .prefetch import prefetch_ahead
from .program import Program
from .space import Scope
from .steps import keep_in_registers, pack, part_of, tile, write_back


def space(scope: Scope) -> dict[str, tuple[int, ...]]:
    """What tuning may choose for every decision, the usual first."""
    return {
        "rows": scope.rows,
        "blocks": (1, 2, 4, 3, 6, 8),
        "panels": (1,),
        "ahead": (4096, 0, 1024, 2048, 8192, 16384),
        "unroll": (1, 2, 4, 8),
        "few_tiles": (2,),
        "block_rows": (max(1, scope.target.cache_bytes // scope.layout.k_padded),),
        "k_block": scope.k_blocks,
        "k_passes": (1,),
        "rows_inner": (0,),
    }


def schedule(program: Program) -> tirx.PrimFunc:
    """`program` as a gemv: `tile.blocks` streams of weights for `tile.rows` rows."""
    sch = Schedule(program.func)
    pack(sch, program, parallel=False)
    loops = tile(sch, program, apart=one_stream(program))
    keep_in_registers(sch, program, loops)
    write_back(sch, program)
    func = sch.mod["main"]
    if loops.joined or not program.parameters.ahead:
        return func
    part = part_of(sch, program, loops)
    matrix = sch.get(loops.matrix).loop_var if loops.matrix else None
    return prefetch_ahead(func, program, sch.get(loops.task), sch.get(loops.kb), part, matrix)


def one_stream(program: Program) -> bool:
    """Whether a gate and up are read one after the other.

    Where groups are small their scales are a second stream, and the hardware follows no four.
    """
    gated = program.tile.blocks == program.layout.matrices > 1
    return gated and program.summed and program.parameters.ahead > 0
