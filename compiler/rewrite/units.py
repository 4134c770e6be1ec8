"""One launch for several weights: a loop over units of work around a scheduled function.

A unit is a block of rows of X that one expert multiplies, with a share of that expert's columns. A
call lists its units in a table (`runtime.units`). Around the function for one weight stands

    parallel over u:                        one unit
      rows of x, residual and y             begin at the unit's first row, and are as many as it has
      w and what belongs to its columns     begin at the expert's first block
      tiles                                 one block, of as many as the rows need; a thread has
                                            memory for mi of them, the most of any unit
      task                                  the unit's share of the panels

and inside nothing is parallel. So every strategy serves experts as it is. A unit packs its rows for
itself: next to the columns that it computes this costs little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.s_tir import SBlock, SBlockRealize

from ...schedules.arguments import ARGUMENTS, UNIT
from ...schedules.cpu.program import Program
from ...schedules.plan import MAX_ELEMENTS

#: The arguments that lie behind one another for every expert, by what they have numbers for.
OF_WEIGHT = frozenset(each.name for each in ARGUMENTS if each.of in ("weight", "group", "column"))


def over_units(
    program: Program, func: tirx.PrimFunc, experts: int, rows_of_x: Iterable[str]
) -> tirx.PrimFunc:
    """`func`, a schedule of `program` over the caller's arrays, for `experts` weights.

    Parameters
    ----------
    rows_of_x : names of the arguments that have a number, or numbers, for each row of X.
    """
    params = {param.name: param for param in func.params}
    m, mo, mi = params["x"].shape[0], params["mo"], params["mi"]
    units, unit = params["units"], tirx.Var("unit", "int32")
    of_unit = {name: tirx.Var(name, "int32") for name in UNIT}
    bound = [
        tirx.Bind(of_unit[name], tirx.BufferLoad(units, [unit, column]))
        for column, name in enumerate(UNIT)
    ]
    first_block = of_unit["expert"] * program.layout.n_blocks
    tiles = tirx.Var("tiles", "int32")
    size = program.tile.rows
    bound.append(tirx.Bind(tiles, tirx.floordiv(of_unit["rows"] + (size - 1), size)))

    whole = {name: behind_one_another(params[name], experts) for name in OF_WEIGHT & params.keys()}
    starts = {name: (whole[name], first_block) for name in whole}
    starts |= {
        name: (params[name], of_unit["first_row"]) for name in set(rows_of_x) & params.keys()
    }
    moved, count = moving([(params[name], *start) for name, start in starts.items()])

    def number(var: tirx.Var) -> tirx.Expr:
        for old, new in ((m, of_unit["rows"]), (mo, tirx.const(1, "int32"))):
            if var.same_as(old):
                return new
        return var

    def over_own(loop: tirx.For) -> tirx.For:
        if isinstance(loop.extent, tirx.Var) and loop.extent.same_as(mi):
            return tirx.For(loop.loop_var, loop.min, tiles, loop.kind, loop.body)
        if loop.kind != tirx.ForKind.PARALLEL:
            return loop
        # Loops that begin anywhere would keep TVM from seeing that tasks are panels.
        behind = loop.loop_var - of_unit["first_panel"]
        own = tirx.And(behind >= 0, behind < of_unit["panels"])
        panel = tirx.IfThenElse(own, loop.body, None)
        extent = tirx.const(-(-program.layout.n_blocks // program.tile.width), "int32")
        return tirx.For(loop.loop_var, loop.min, extent, tirx.ForKind.SERIAL, panel)

    body = tvm_ffi.structural_map(
        func.body,
        [*moved, (tirx.For, over_own), (tirx.Var, number)],
    )
    assert count(), "a function reads its weight"
    each = tirx.For(unit, 0, units.shape[0], tirx.ForKind.PARALLEL, tirx.SeqStmt([*bound, body]))
    around = SBlockRealize([], True, SBlock([], [], [], "root", each))
    arguments = [whole.get(param.name, param) for param in func.params]
    return tirx.PrimFunc(arguments, around, func.ret_type, func.attrs)


def moving(
    starts: Sequence[tuple[tirx.Var, tirx.Var, tirx.Expr]],
) -> tuple[list[tuple[type, Callable[..., Any]]], Callable[[], int]]:
    """What `structural_map` does so that buffers begin elsewhere, and how often that was needed.

    Parameters
    ----------
    starts : of each buffer the one that takes its place, and the index of its first element there.
    """
    moved = 0

    def place(buffer: tirx.Var) -> tuple[tirx.Var, tirx.Expr] | None:
        found = (start for old, *start in starts if buffer.same_as(old))
        return next(((new, first) for new, first in found), None)

    def load(value: tvm.ir.TensorLoad) -> tvm.ir.TensorLoad:
        nonlocal moved
        start = place(value.source)
        if start is None:
            return value
        moved += 1
        first, *others = value.indices
        return tirx.BufferLoad(start[0], [start[1] + first, *others])

    def store(stmt: tirx.BufferStore) -> tirx.BufferStore:
        nonlocal moved
        start = place(stmt.buffer)
        if start is None:
            return stmt
        moved += 1
        first, *others = stmt.indices
        return tirx.BufferStore(start[0], stmt.value, [start[1] + first, *others])

    def region(covered: tvm.ir.TensorRegion) -> tvm.ir.TensorRegion:
        start = place(covered.source)
        if start is None:
            return covered
        first, *others = covered.region
        from_start = tvm.ir.Range.from_min_extent(start[1] + first.min, first.extent)
        return tirx.BufferRegion(start[0], [from_start, *others])

    handlers = [
        (tvm.ir.TensorLoad, load),
        (tirx.BufferStore, store),
        (tvm.ir.TensorRegion, region),
    ]
    return handlers, lambda: moved


def over_gpu_units(
    func: tirx.PrimFunc, blocks: int, rows: int, experts: int, rows_of_x: Iterable[str]
) -> tirx.PrimFunc:
    """As `over_units`, a GPU's function over the caller's arrays: a unit is a tile of rows.

    The grid has a row of thread blocks for each unit, which finds its rows and its expert in the
    table by its number. What the function takes for the tile's place in M is the unit's own.

    Parameters
    ----------
    blocks : of columns of an expert.
    rows : of a tile.
    """
    params = {param.name: param for param in func.params}
    m, mi, units = params["x"].shape[0], params["mi"], params["units"]
    of_unit = {name: tirx.Var(name, "int32") for name in UNIT[:3]}
    found: list[tirx.For] = []

    def note(loop: tirx.For) -> tirx.For:
        if isinstance(loop.extent, tirx.Var) and loop.extent.same_as(mi):
            found.append(loop)
        return loop

    tvm_ffi.structural_map(func.body, [(tirx.For, note)])
    (tiles,) = found
    before = tiles.loop_var * rows  # rows of the tiles before, as the function counts them
    whole = {name: behind_one_another(params[name], experts) for name in OF_WEIGHT & params.keys()}
    first_block = of_unit["expert"] * blocks
    starts = [(params[name], whole[name], first_block) for name in whole]
    starts += [
        (params[name], params[name], of_unit["first_row"] - before)
        for name in {*rows_of_x} & params.keys()
    ]
    moved, count = moving(starts)

    def number(var: tirx.Var) -> tirx.Expr:
        return of_unit["rows"] + before if var.same_as(m) else var

    def with_unit(loop: tirx.For) -> tirx.For:
        if not loop.loop_var.same_as(tiles.loop_var):
            return loop
        bound = [
            tirx.Bind(of_unit[name], tirx.BufferLoad(units, [loop.loop_var, column]))
            for column, name in enumerate(of_unit)
        ]
        body = tirx.SeqStmt([*bound, loop.body])
        kind, thread = loop.kind, loop.thread_binding
        return tirx.For(loop.loop_var, loop.min, loop.extent, kind, body, thread)

    body = tvm_ffi.structural_map(func.body, [*moved, (tirx.For, with_unit), (tirx.Var, number)])
    assert count(), "a function reads its weight"
    arguments = [whole.get(param.name, param) for param in func.params]
    return tirx.PrimFunc(arguments, body, func.ret_type, func.attrs)


def behind_one_another(buffer: tirx.Var, experts: int) -> tirx.Var:
    """The buffer of as many weights."""
    blocks, *others = (int(size) for size in buffer.shape)
    elements = experts * blocks
    for size in others:
        elements *= size
    counts = "int64" if elements > MAX_ELEMENTS else "int32"
    shape = [tirx.IntImm(counts, size) for size in (experts * blocks, *others)]
    return tirx.decl_buffer(shape, buffer.dtype, buffer.name)
