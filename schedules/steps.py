"""Steps that the recipes share. Each takes a `Schedule` of a `Program` and says what it leaves."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV

from ..targets import Instruction
from .program import Program


@dataclass(frozen=True)
class TileLoops:
    """The loops of the block "acc", outermost first: mo, panel, mi, kb, ks, r, block, lane, d."""

    mo: LoopRV
    panel: LoopRV
    mi: LoopRV
    kb: LoopRV
    ks: LoopRV
    r: LoopRV
    block: LoopRV
    lane: LoopRV
    d: LoopRV


def tile(schedule: Schedule, program: Program) -> TileLoops:
    """Order the loops of "acc" around a register tile and put the epilogue behind each tile."""
    layout = program.layout
    acc = schedule.get_sblock("acc")
    mo, mi, r, nb, lane, k = schedule.get_loops(acc)
    panel, block = schedule.split(nb, [None, program.tile.blocks])
    kb, ks, d = schedule.split(k, [None, layout.k_block // layout.depth, layout.depth])
    schedule.reorder(mo, panel, mi, kb, ks, r, block, lane, d)
    schedule.unroll(r)
    schedule.unroll(block)
    for stage in program.stages:
        schedule.reverse_compute_at(schedule.get_sblock(stage), mi, preserve_unit_loops=True)
    return TileLoops(mo, panel, mi, kb, ks, r, block, lane, d)


def keep_in_registers(schedule: Schedule, program: Program, loops: TileLoops) -> None:
    """Zero the accumulators before the reduction and write the dot product as the instruction.

    To be called when the loops are final: afterwards "acc" is no longer a plain reduction.
    """
    write_as_instruction(schedule, program.instruction, loops.kb, loops.lane, loops.d)


def write_as_instruction(
    schedule: Schedule, instruction: Instruction, first: LoopRV, lane: LoopRV, d: LoopRV
) -> None:
    """Split the zeroing off the reduction "acc" before its loop `first`; tensorize (lane, d)."""
    if instruction.intrinsic is None:
        schedule.reorder(d, lane)
        schedule.unroll(d)
        schedule.vectorize(lane)
    zero = schedule.decompose_reduction(schedule.get_sblock("acc"), first)
    *unrolled, zero_lane = schedule.get_loops(zero)[-3:]
    for loop in unrolled:
        schedule.unroll(loop)
    schedule.vectorize(zero_lane)
    if instruction.intrinsic is not None:
        module = importlib.import_module(f"..targets.{instruction.intrinsic}", __package__)
        schedule.tensorize(lane, module.NAME)


def write_back(schedule: Schedule, program: Program) -> None:
    """The epilogue, one vector of `lanes` outputs at a time."""
    for stage in program.stages:
        *unrolled, lane = schedule.get_loops(schedule.get_sblock(stage))[-3:]
        for loop in unrolled:
            schedule.unroll(loop)
        schedule.vectorize(lane)
