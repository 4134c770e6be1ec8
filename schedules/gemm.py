"""gemm: many rows. Blocked for registers and L2, all threads on one grid of tasks.

    parallel over tiles of x: pack          x (M, k) -> xp, one contiguous slab per tile of rows;
                                            the calling thread alone where there are few
    parallel over (mo, panel):              a task: a block of rows times a panel of columns
      for mi in the tiles of the block:     the panel of w stays in L2 over them
        acc[rows, blocks, lanes] = 0        in registers
        for kb, ks:                         streams the panel of w and the slab of xp once,
                                            and asks for a little of the next panel
          for r, block: acc += xp * w       one instruction
        y = epilogue(acc)

The slab [k_block-wise][rows][k_block] keeps the rows of a tile together: read row-major, rows that
are a power of two apart would share one set of the L1 cache. Loop order and packing follow Goto and
van de Geijn, "Anatomy of High-Performance Matrix Multiplication", ACM TOMS 34(3), 2008.
"""

from __future__ import annotations

import tvm_ffi
from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV

from .prefetch import prefetch_next_panel
from .program import Program
from .steps import keep_in_registers, pack, tile, write_back

CACHE_LINE = 64
#: Tiles of x up to which packing takes less time than a launch of the thread pool.
FEW_TILES = 2


def schedule(program: Program) -> tirx.PrimFunc:
    """`program` as a gemm in register tiles of `program.tile`."""
    sch = Schedule(program.func)
    packing = pack(sch, program)
    sch.parallel(packing)
    loops = tile(sch, program)
    task = sch.fuse(loops.mo, loops.panel)
    sch.parallel(task)
    keep_in_registers(sch, program, loops)
    write_back(sch, program)
    func = pack_few_alone(sch, packing)
    if program.instruction.lanes * program.instruction.depth < CACHE_LINE:
        return func  # a step of weights is too small for a prefetch of its own
    group = sch.get(loops.g).loop_var if program.grouped else 0
    mi, kb = sch.get(loops.mi), sch.get(loops.kb)
    return prefetch_next_panel(func, program, sch.get(task), mi, kb, group)


def pack_few_alone(sch: Schedule, packing: LoopRV) -> tirx.PrimFunc:
    """The function with few tiles packed by the calling thread: waking the pool takes longer."""
    parallel = sch.get(packing)

    def either(loop: tirx.For) -> tirx.Stmt:
        if not loop.loop_var.same_as(parallel.loop_var):
            return loop
        alone = copy(loop)
        serial = tirx.For(alone.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, alone.body)
        return tirx.IfThenElse(loop.extent > FEW_TILES, loop, serial)

    func = sch.mod["main"]
    return func.with_body(tvm_ffi.structural_map(func.body, [(tirx.For, either)]))


def copy(loop: tirx.For) -> tirx.For:
    """The loop with variables of its own: TVM wants every variable defined in one place."""
    defined: list[tirx.Var] = []

    def note(stmt: tirx.Stmt) -> tirx.Stmt:
        defined.append(stmt.loop_var if isinstance(stmt, tirx.For) else stmt.var)
        return stmt

    tvm_ffi.structural_map(loop, [(tirx.For, note), (tirx.Bind, note)])
    fresh = [tirx.Var(var.name, str(var.ty)) for var in defined]

    def renamed(var: tirx.Var) -> tirx.Var:
        return next((new for old, new in zip(defined, fresh, strict=True) if var.same_as(old)), var)

    return tvm_ffi.structural_map(loop, [(tirx.Var, renamed)])
