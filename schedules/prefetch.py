"""Prefetching the next panel of weights while this one is multiplied.

A task reads its panel of w from L2, once per tile of rows; only the first tile meets weights that
are still in memory or L3, and would wait for them. So the tiles of the panel before ask for them:
while a tile works on block kb, it fetches some lines of the next panel's block kb, the first tile
the first lines and so on, few enough at a time that its own loads do not wait.
"""

from __future__ import annotations

import tvm_ffi
from tvm import tirx

from .program import Program

#: Arguments of llvm.prefetch: read, into L2 (prefetcht1), data cache.
READ, INTO_L2, DATA = 0, 2, 1


def prefetch_next_panel(
    func: tirx.PrimFunc,
    program: Program,
    task: tirx.For,
    mi: tirx.For,
    kb: tirx.For,
    group: tirx.Var | int,
) -> tirx.PrimFunc:
    """The scheduled `func` with prefetches at the head of its loop over blocks of K.

    `task` is the fused loop over (mo, panel).
    """
    layout, blocks = program.layout, program.tile.blocks
    panels = -(-layout.n_blocks // blocks)
    (w,) = (param for param in func.params if param.name == "w")
    steps = layout.k_block // (layout.depth * layout.steps_per_byte)
    panel = tirx.min(task.loop_var % panels + 1, panels - 1)
    # A single tile reads its own panel from memory, and has no time to spare for the next.
    lines_per_tile = tirx.if_then_else(
        mi.extent > 1, tirx.floordiv(steps + mi.extent - 1, mi.extent), 0
    )
    first_line = mi.loop_var * lines_per_tile

    def fetch(step: tirx.Var, block: tirx.Var) -> tirx.Stmt:
        nb = tirx.min(panel * blocks + block, layout.n_blocks - 1)
        k_block = group * (layout.k_blocks // layout.groups) + kb.loop_var
        line = tirx.address_of(tirx.BufferLoad(w, [nb, k_block * steps + step, 0, 0]))
        return tirx.Evaluate(tirx.call_intrin("void", "tirx.prefetch", line, READ, INTO_L2, DATA))

    def with_prefetch(loop: tirx.For) -> tirx.For:
        if not loop.loop_var.same_as(kb.loop_var):
            return loop
        line = tirx.Var("line", "int32")
        block = tirx.Var("block", "int32")
        of_blocks = tirx.For(
            block, 0, blocks, tirx.ForKind.UNROLLED, fetch(first_line + line, block)
        )
        some = tirx.For(line, 0, lines_per_tile, tirx.ForKind.SERIAL, of_blocks)
        body = tirx.SeqStmt([tirx.IfThenElse(first_line < steps, some, None), loop.body])
        return tirx.For(
            loop.loop_var, loop.min, loop.extent, loop.kind, body, annotations=loop.annotations
        )

    body = tvm_ffi.structural_map(func.body, [(tirx.For, with_prefetch)])
    return func.with_body(body)
