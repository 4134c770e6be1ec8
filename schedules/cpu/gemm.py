"""gemm: many rows. Blocked for registers and L2, all threads on one grid of tasks.

    parallel over tiles of x: pack          x (M, k) -> xp, one contiguous slab per tile of rows;
                                            the calling thread alone where there are few
    parallel over (mo, panel):              a task: a block of rows times a panel of columns
      for mi in the tiles of the block:     the panel of w stays in L2 over them
       for beside in the panel's tiles:     the slab of xp in L1 over these
        acc[rows, blocks, lanes] = 0        in registers
        for kb, ks:                         streams the panel of w and the slab of xp once,
                                            and asks for a little of the next panel
          for r, block: acc += xp * w       one instruction
        y = epilogue(acc)

Two loops may stand elsewhere: those over mi and beside change places where `rows_inner`, and with
`k_passes` K is cut into parts, for each of which all tiles of the task add to sums in memory before
the next one begins; the epilogue follows the last. The default does neither.

The slab [k_block-wise][rows][k_block] keeps the rows of a tile together: read row-major, rows that
are a power of two apart would share one set of the L1 cache. Loop order and packing follow Goto and
van de Geijn, "Anatomy of High-Performance Matrix Multiplication", ACM TOMS 34(3), 2008.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm_ffi
from tvm import tirx
from tvm.s_tir import SBlock, SBlockRealize, Schedule
from tvm.s_tir.schedule import LoopRV

from ...targets.instructions import with_setup
from .prefetch import prefetch_next_panel
from .program import Program
from .space import Scope
from .steps import keep_in_registers, pack, part_of, tile, write_back

#: Rows up to which blocks of M are not worth a trial.
ONE_BLOCK = 64


def space(scope: Scope) -> dict[str, tuple[int, ...]]:
    """What tuning may choose for every decision, the usual first."""
    usual_block = max(1, scope.target.cache_bytes // scope.layout.k_padded)
    blocks_of_rows = (256, 128, 64) if scope.m > ONE_BLOCK else ()
    return {
        "rows": scope.rows,
        "blocks": (3, 2, 1, 4, 5, 6, 8),
        "panels": (1, 2, 3, 4, 6, 8),
        "ahead": (1, 0, 2, 4),
        "unroll": (1, 2, 4),
        "few_tiles": (2, 0, *(few for few in (8, 32) if few < scope.m)),
        "block_rows": (usual_block, *(b for b in blocks_of_rows if b < usual_block)),
        "k_block": scope.k_blocks,
        "k_passes": (1, 2, 4, 8),
        "rows_inner": (0, 1),
    }


def schedule(program: Program) -> tirx.PrimFunc:
    """`program` as a gemm in register tiles of `program.tile`."""
    sch = Schedule(program.func)
    scratch = [buffer for name in program.scratch for buffer in written(sch, name)]
    packing = pack(sch, program, parallel=not program.in_units)
    loops = tile(sch, program)
    keep_in_registers(sch, program, loops)
    write_back(sch, program)
    if program.in_units:
        func = sch.mod["main"]
    else:
        func = pack_few_alone(sch, packing, scratch, program.parameters.few_tiles)
    task, mi, beside, kb = map(sch.get, (loops.task, loops.mi, loops.beside, loops.kb))
    func = with_setup(func, task, program.instruction, program.fragments, program.tile.blocks)
    if loops.joined or not program.parameters.ahead:
        return func  # joined blocks are too small for prefetches of their own
    part = part_of(sch, program, loops)
    return prefetch_next_panel(func, program, task, mi, beside, kb, part)


def written(sch: Schedule, block: str) -> list[tirx.Var]:
    """The buffers that a block writes."""
    return [region.source for region in sch.get(sch.get_sblock(block)).writes]


def pack_few_alone(
    sch: Schedule, packing: LoopRV, scratch: Sequence[tirx.Var], few: int
) -> tirx.PrimFunc:
    """The function with few tiles packed by the calling thread: waking the pool takes longer.

    Buffers of `scratch` are used by the packing alone.
    """
    parallel = sch.get(packing)
    func = sch.mod["main"]
    root = func.body.block
    # Scratch gets memory of its own in the copy: shared by both, it would have to outlive them, and
    # be as large as for all tiles at once.
    scratch = [b for b in root.alloc_buffers if any(b.same_as(other) for other in scratch)]
    own = [tirx.decl_buffer(b.shape, b.dtype, b.name) for b in scratch]

    def either(loop: tirx.For) -> tirx.Stmt:
        if not loop.loop_var.same_as(parallel.loop_var):
            return loop
        alone = copy(loop, scratch, own)
        serial = tirx.For(alone.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, alone.body)
        return tirx.IfThenElse(loop.extent > few, loop, serial)

    body = tvm_ffi.structural_map(root.body, [(tirx.For, either)])
    buffers = [*root.alloc_buffers, *own]
    block = SBlock([], root.reads, root.writes, root.name_hint, body, alloc_buffers=buffers)
    return func.with_body(SBlockRealize([], True, block))


def copy(loop: tirx.For, buffers: list[tirx.Var], own: list[tirx.Var]) -> tirx.For:
    """The loop with variables of its own, as TVM wants them, and `own` instead of `buffers`."""
    old, new = [*buffers], [*own]

    def note(stmt: tirx.Stmt) -> tirx.Stmt:
        var = stmt.loop_var if isinstance(stmt, tirx.For) else stmt.var
        old.append(var)
        new.append(tirx.Var(var.name, str(var.ty)))
        return stmt

    def note_matched(block: SBlock) -> SBlock:
        for region in block.match_buffers:
            view = region.buffer
            other = tirx.decl_buffer(
                view.shape, view.dtype, view.name, offset_factor=view.offset_factor
            )
            old.extend((view, view.elem_offset))
            new.extend((other, other.elem_offset))
        return block

    tvm_ffi.structural_map(loop, [(tirx.For, note), (tirx.Bind, note), (SBlock, note_matched)])

    def renamed(var: tirx.Var) -> tirx.Var:
        return next((b for a, b in zip(old, new, strict=True) if var.same_as(a)), var)

    return tvm_ffi.structural_map(loop, [(tirx.Var, renamed)])
