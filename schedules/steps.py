"""Steps that the recipes share. Each takes a `Schedule` of a `Program` and says what it leaves."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV

from ..targets import Instruction
from .program import Program

#: Dot products of a block of K up to which its loop is joined with the one over blocks: LLVM would
#: unroll it, load the weights of every step at once and run out of registers.
SHORT = 8


@dataclass(frozen=True)
class TileLoops:
    """The loops around a register tile, outermost first.

    mo, panel, mi choose the tile, part the part of K; kb, ks walk along K; r and block over the
    tile; lane and d are the instruction.
    """

    mo: LoopRV
    panel: LoopRV
    mi: LoopRV
    part: LoopRV
    kb: LoopRV
    ks: LoopRV
    r: LoopRV
    block: LoopRV
    lane: LoopRV
    d: LoopRV

    @property
    def joined(self) -> bool:
        """Whether kb and ks are one loop."""
        return self.kb is self.ks


def pack(schedule: Schedule, program: Program, *, parallel: bool) -> LoopRV:
    """One tile of rows after the other, all steps of its packing together. Returns that loop."""
    first, *others = program.packing
    tile = schedule.get_loops(schedule.get_sblock(first))[1]
    for name in others:
        schedule.reverse_compute_at(schedule.get_sblock(name), tile, preserve_unit_loops=True)
    if parallel:
        schedule.parallel(tile)
    *_, kb, r, kk = schedule.get_loops(schedule.get_sblock("xp"))
    schedule.reorder(r, kb)  # row after row, a block of K per copy
    if program.layout.pairs:
        half, kk = schedule.split(kk, [2, None])
        schedule.unroll(half)
    schedule.vectorize(kk)
    if "x_sum" in program.packing:
        sum_in_lanes(schedule)
    return tile


def sum_in_lanes(schedule: Schedule) -> None:
    """Each group's sum of activations as one vector, whose lanes are added at its end."""
    lanes = schedule.get_sblock("x_lanes")
    *_, r, _ = schedule.get_loops(schedule.get_sblock("x_sum"))
    schedule.compute_at(lanes, r, preserve_unit_loops=True)
    lane, step = schedule.get_loops(lanes)[-2:]
    schedule.reorder(step, lane)
    schedule.vectorize(lane)
    zero = schedule.decompose_reduction(lanes, step)
    schedule.vectorize(schedule.get_loops(zero)[-1])


def tile(schedule: Schedule, program: Program) -> TileLoops:
    """Order the loops of the result around a register tile and compute the sums inside them."""
    layout, blocks = program.layout, program.tile.blocks
    *before, y = map(schedule.get_sblock, program.stages)
    mo, mi, r, nb, lane = schedule.get_loops(y)
    panel, block = schedule.split(nb, [None, blocks])
    schedule.reorder(mo, panel, mi, r, block, lane)
    for stage in reversed(before):
        schedule.compute_at(stage, mi, preserve_unit_loops=True)
    inner = mi
    if program.summed:
        total = schedule.get_sblock("total")
        schedule.compute_at(total, mi, preserve_unit_loops=True)
        r, block, lane, inner = schedule.get_loops(total)[-4:]
        schedule.reorder(inner, r, block, lane)
        unroll_tile(schedule, r, block, lane)
    acc = schedule.get_sblock("acc")
    schedule.compute_at(acc, inner, preserve_unit_loops=True)
    part, r, block, lane, k = schedule.get_loops(acc)[-5:]
    steps = layout.k_block // layout.depth
    kb, ks, d = schedule.split(k, [None, steps, layout.depth])
    schedule.reorder(part, kb, ks, r, block, lane, d)
    if program.unpacks:
        ks, half = schedule.split(ks, [None, layout.steps_per_byte])
        schedule.unroll(half)
    if steps <= SHORT and layout.groups == 1 == program.parts:
        kb = ks = schedule.fuse(kb, ks)
    schedule.unroll(r)
    schedule.unroll(block)
    return TileLoops(mo, panel, mi, inner if program.summed else part, kb, ks, r, block, lane, d)


def unroll_tile(schedule: Schedule, r: LoopRV, block: LoopRV, lane: LoopRV) -> None:
    """Straight-line code for the tile, vectors along its columns."""
    schedule.unroll(r)
    schedule.unroll(block)
    schedule.vectorize(lane)


def keep_in_registers(schedule: Schedule, program: Program, loops: TileLoops) -> None:
    """Zero the accumulators before the reduction and write the dot product as the instruction.

    To be called when the loops are final: afterwards "acc" is no longer a plain reduction.
    """
    if program.unpacks:
        unpack(schedule, program, loops)
    write_as_instruction(schedule, program.instruction, loops.kb, loops.lane, loops.d)
    if program.summed:
        zero = schedule.decompose_reduction(schedule.get_sblock("total"), loops.part)
        unroll_tile(schedule, *schedule.get_loops(zero)[-3:])


def unpack(schedule: Schedule, program: Program, loops: TileLoops) -> None:
    """Both nibbles of a panel's weights become vectors just before the instructions read them."""
    block = schedule.get_sblock("wu")
    schedule.compute_at(block, loops.ks, preserve_unit_loops=True)
    nb, step, lane, d = schedule.get_loops(block)[-4:]
    schedule.unroll(nb)
    schedule.unroll(step)
    schedule.vectorize(schedule.fuse(lane, d))


def write_as_instruction(
    schedule: Schedule, instruction: Instruction, first: LoopRV, lane: LoopRV, d: LoopRV
) -> None:
    """Split the zeroing off the reduction "acc" before its loop `first`; tensorize (lane, d)."""
    if instruction.intrinsic is None:
        schedule.reorder(d, lane)
        schedule.unroll(d)
        schedule.vectorize(lane)
    zero = schedule.decompose_reduction(schedule.get_sblock("acc"), first)
    unroll_tile(schedule, *schedule.get_loops(zero)[-3:])
    if instruction.intrinsic is not None:
        module = importlib.import_module(f"..targets.{instruction.intrinsic}", __package__)
        schedule.tensorize(lane, module.NAMES[instruction.x_dtype, instruction.w_dtype])


def write_back(schedule: Schedule, program: Program) -> None:
    """The epilogue, one vector of `lanes` outputs at a time."""
    for stage in program.stages:
        unroll_tile(schedule, *schedule.get_loops(schedule.get_sblock(stage))[-3:])
