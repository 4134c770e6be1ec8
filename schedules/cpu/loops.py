"""Loops by the names that the TensorExpression gives their axes."""

from __future__ import annotations

import tvm_ffi
from tvm import tirx
from tvm.ir import Expr
from tvm.s_tir import SBlock, SBlockRealize, Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV


def loops_over(schedule: Schedule, block: SBlockRV, *names: str) -> list[LoopRV]:
    """The innermost loop over each of these axes of a block.

    A block keeps its axes wherever it is computed, and so does the one that a reduction starts with
    once it stands alone.

    Raises
    ------
    LookupError
        The block has no such axis, or no loop walks along it.
    """
    loops = schedule.get_loops(block)
    stmt = schedule.get(block)
    inward = [schedule.get(loop) for loop in loops]
    places = bindings(inward[-1], stmt)
    around = [(loop, each.loop_var) for loop, each in zip(loops, inward, strict=True)]
    return [innermost(around, name, places, stmt.name_hint) for name in names]


def bindings(around: tirx.For, block: SBlock) -> dict[str, Expr]:
    """Where each axis of `block`, which lies within the loop `around`, is in terms of loops."""
    found: dict[str, Expr] = {}

    def note(realize: SBlockRealize) -> None:
        if realize.block.same_as(block):
            for axis, value in zip(block.iter_vars, realize.iter_values, strict=True):
                found[axis_name(axis.var)] = value

    tvm_ffi.structural_walk(around, (SBlockRealize, note))
    return found


def axis_name(var: tirx.Var) -> str:
    """The name that an axis has in the TensorExpression."""
    return str(var.name).removeprefix("v_").removesuffix("_init")


def innermost(
    loops: list[tuple[LoopRV, tirx.Var]], name: str, places: dict[str, Expr], block: str
) -> LoopRV:
    """The last of `loops`, given with their variables, that moves along the axis."""
    if name not in places:
        raise LookupError(f"{block} has no axis {name}; it has {', '.join(places)}")
    variables: list[tirx.Var] = []
    tvm_ffi.structural_walk(places[name], (tirx.Var, variables.append))
    for loop, of_loop in reversed(loops):
        if any(of_loop.same_as(var) for var in variables):
            return loop
    raise LookupError(f"no loop around {block} walks along its axis {name}")
