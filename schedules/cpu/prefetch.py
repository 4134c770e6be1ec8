"""Prefetching weights.

In a gemm, the next panel, or one behind it, while this one is multiplied. A task reads its panel of
w from L2, once per tile of rows; only the first tile meets weights that are still in memory or L3,
and would wait for them. So the tiles of a panel before ask for them: while a tile works on block
kb, it fetches some lines of that panel's block kb, the first tile the first lines and so on, few
enough at a time that its own loads do not wait.

In a gemv, a few KB ahead of what is read, where groups are small (`defaults.small_groups`). Offsets
too: the hardware follows scales beside the weights, but no third stream (docs/performance.md).
"""

from __future__ import annotations

import tvm_ffi
from tvm import tirx

from .program import CACHE_LINE, Program

#: Arguments of llvm.prefetch: read; into L2 (prefetcht1) or L1 (prefetcht0); data cache.
READ, INTO_L2, INTO_L1, DATA = 0, 2, 3, 1


def prefetch_next_panel(
    func: tirx.PrimFunc,
    program: Program,
    task: tirx.For,
    mi: tirx.For,
    beside: tirx.For,
    kb: tirx.For,
    part: tirx.Expr | int,
) -> tirx.PrimFunc:
    """The scheduled `func` with prefetches at the head of its loop over blocks of K.

    `task` is the fused loop over (mo, panel).
    """
    layout, size = program.layout, program.tile
    tasks = -(-layout.n_blocks // size.width)
    (w,) = (param for param in func.params if param.name == "w")
    steps = layout.k_block // (layout.depth * layout.steps_per_byte)
    per_line = max(1, CACHE_LINE // layout.step_bytes)
    lines = steps // per_line
    if lines == 0:
        return func  # a block of weights is too small for a prefetch of its own
    ahead = program.parameters.ahead
    panel = tirx.min(task.loop_var % tasks + ahead, tasks - 1) * size.panels + beside.loop_var
    # A single tile reads its own panel from memory, and has no time to spare for the next.
    lines_per_tile = tirx.if_then_else(
        mi.extent > 1, tirx.floordiv(lines + mi.extent - 1, mi.extent), 0
    )
    first_line = mi.loop_var * lines_per_tile

    def fetch(line: tirx.Expr, block: tirx.Var) -> tirx.Stmt:
        nb = tirx.min(panel * size.blocks + block, layout.n_blocks - 1)
        k_block = part * (layout.k_blocks // program.parts) + kb.loop_var
        place = tirx.address_of(tirx.BufferLoad(w, [nb, k_block * steps + line * per_line, 0, 0]))
        return tirx.Evaluate(tirx.call_intrin("void", "tirx.prefetch", place, READ, INTO_L2, DATA))

    def with_prefetch(loop: tirx.For) -> tirx.For:
        if not loop.loop_var.same_as(kb.loop_var):
            return loop
        line = tirx.Var("line", "int32")
        block = tirx.Var("block", "int32")
        of_blocks = tirx.For(
            block, 0, size.blocks, tirx.ForKind.UNROLLED, fetch(first_line + line, block)
        )
        some = tirx.For(line, 0, lines_per_tile, tirx.ForKind.SERIAL, of_blocks)
        body = tirx.SeqStmt([tirx.IfThenElse(first_line < lines, some, None), loop.body])
        return tirx.For(
            loop.loop_var, loop.min, loop.extent, loop.kind, body, annotations=loop.annotations
        )

    body = tvm_ffi.structural_map(func.body, [(tirx.For, with_prefetch)])
    return func.with_body(body)


def prefetch_ahead(
    func: tirx.PrimFunc,
    program: Program,
    task: tirx.For,
    kb: tirx.For,
    part: tirx.Expr | int,
    matrix: tirx.Var | None,
) -> tirx.PrimFunc:
    """The scheduled `func` asking for every line of weights some bytes before it reads it.

    `matrix` chooses the block where those of a tile are read one after the other.
    Behind the end of a panel lies the next one, which the hardware's prefetchers would only find
    when it is read.
    """
    layout, width = program.layout, program.tile.blocks
    blocks = width if matrix is None else 1
    panels, steps = -(-layout.n_blocks // width), layout.shape[1]
    per_block = layout.k_block // (layout.depth * layout.steps_per_byte)
    (w,) = (param for param in func.params if param.name == "w")
    offsets = [each for each in func.params if each.name == "w_offset" and layout.groups > 1]
    k_block = part * (layout.k_blocks // program.parts) + kb.loop_var
    first_block = task.loop_var % panels * width + (0 if matrix is None else matrix)

    def fetch(at: tirx.Expr) -> tirx.Stmt:
        step = k_block * per_block + at + program.parameters.ahead // layout.step_bytes
        block = tirx.Var("block", "int32")
        if blocks == 1:
            # Behind a panel's end the next one begins; behind the last a prefetch does nothing.
            place = [first_block, step]
        else:
            beyond = tirx.if_then_else(step >= steps, 1, 0)
            panel = tirx.min(task.loop_var % panels + beyond, panels - 1)
            nb = tirx.min(panel * width + block, layout.n_blocks - 1)
            place = [nb, (step - beyond * steps) % steps]
        line = tirx.address_of(tirx.BufferLoad(w, [*place, 0, 0]))
        one = tirx.Evaluate(tirx.call_intrin("void", "tirx.prefetch", line, READ, INTO_L1, DATA))
        return tirx.For(block, 0, blocks, tirx.ForKind.UNROLLED, one)

    def fetch_offsets(w_offset: tirx.Var) -> tirx.Stmt:
        """The offsets of the group whose weights are asked for."""
        groups = program.parameters.ahead * layout.groups // (steps * layout.step_bytes)
        block = tirx.Var("block", "int32")
        nb = tirx.min(first_block + block, layout.n_blocks - 1)
        line = tirx.address_of(tirx.BufferLoad(w_offset, [nb, part + groups, 0]))
        one = tirx.Evaluate(tirx.call_intrin("void", "tirx.prefetch", line, READ, INTO_L1, DATA))
        return tirx.For(block, 0, blocks, tirx.ForKind.UNROLLED, one)

    def with_prefetch(loop: tirx.For) -> tirx.For:
        if not loop.loop_var.same_as(kb.loop_var):
            return loop
        (ks,) = (stmt for stmt in [loop.body] if isinstance(stmt, tirx.For))
        at_once = per_block // int(ks.extent)  # steps of an iteration
        per_line = max(1, CACHE_LINE // (at_once * layout.step_bytes))
        if int(ks.extent) % per_line:
            return loop  # less than a line
        line, within = tirx.Var("line", "int32"), tirx.Var("within", "int32")
        at = line * per_line + within

        def moved(var: tirx.Var) -> tirx.Expr:
            return at if var.same_as(ks.loop_var) else var

        body = tvm_ffi.structural_map(ks.body, [(tirx.Var, moved)])
        steps_of_line = tirx.For(within, 0, per_line, tirx.ForKind.UNROLLED, body)
        lines = tirx.For(
            line,
            0,
            int(ks.extent) // per_line,
            ks.kind,
            tirx.SeqStmt([fetch(line * (per_line * at_once)), steps_of_line]),
            annotations=ks.annotations,
        )
        body = tirx.SeqStmt([*map(fetch_offsets, offsets), lines]) if offsets else lines
        return tirx.For(
            loop.loop_var, loop.min, loop.extent, loop.kind, body, annotations=loop.annotations
        )

    body = tvm_ffi.structural_map(func.body, [(tirx.For, with_prefetch)])
    return func.with_body(body)
