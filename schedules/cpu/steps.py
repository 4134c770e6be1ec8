"""Steps that the recipes share, on a `Schedule` of a `Program`.

A step finds loops by the names of their axes (`loops_over`) and returns those that others need.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from ...targets import Instruction
from ...targets.instructions import even_and_odd, register
from ..fragments import axes_within
from .loops import loops_over
from .program import Program

#: Dot products of a block of K up to which its loop is joined with the one over blocks: LLVM would
#: unroll it, load the weights of every step at once and run out of registers.
SHORT = 8
#: What of a group's activations is found in lanes first, by the axes along which its steps are.
IN_LANES = {
    "x_range": ("step",),
    "x_range_low": ("step",),
    "x_part": ("kb", "step"),
    "x_sum": ("kb", "step"),
    "x_extra": ("kb", "step"),
}
#: Scales of groups that are found at a time.
SCALES = 16


@dataclass(frozen=True)
class TileLoops:
    """The loops around a register tile, outermost first.

    `task` chooses the rows and the panel that a thread computes, mi and beside the tile of these;
    part the part of K, of one of the `passes` where there are several; kb, ks walk along K, `step`
    within ks where that is unrolled. The fragments of the tile lie within.
    """

    task: LoopRV
    mi: LoopRV
    beside: LoopRV
    passes: LoopRV | None
    part: LoopRV
    kb: LoopRV
    ks: LoopRV
    step: LoopRV
    matrix: LoopRV | None = None

    @property
    def joined(self) -> bool:
        """Whether kb and ks are one loop."""
        return self.kb is self.ks


def pack(schedule: Schedule, program: Program, *, parallel: bool) -> LoopRV:
    """One tile of rows after the other, all steps of its packing together. Returns that loop.

    What an instruction reads of several rows lies together: [r / rows][k / depth][rows][depth].
    """

    def over_tiles(block: SBlockRV) -> LoopRV:
        blocks, tiles = loops_over(schedule, block, "o", "i")
        return schedule.fuse(blocks, tiles) if parallel else tiles

    first, *others = program.packing
    tile = over_tiles(schedule.get_sblock(first))
    for name in others:
        block = schedule.get_sblock(name)
        if schedule.get_producers(block):
            schedule.reverse_compute_at(block, tile, preserve_unit_loops=True)
        else:
            tile = schedule.merge(tile, over_tiles(block))
    if parallel:
        schedule.parallel(tile)
    if "xq" in program.packing:
        make_components(schedule, program)
        kb, r, step, d = loops_over(schedule, schedule.get_sblock("xq"), "kb", "r", "step", "d")
        kk = schedule.fuse(step, d)
    else:
        kb, r, kk = loops_over(schedule, schedule.get_sblock("xp"), "kb", "r", "kk")
    schedule.reorder(r, kb)  # row after row, a block of K per copy
    contiguous = program.layout.k_block
    if program.layout.pairs:
        half, kk = schedule.split(kk, [2, None])
        schedule.unroll(half)
        contiguous //= 2
    if program.x_piece < contiguous:
        _, kk = schedule.split(kk, [None, program.x_piece])
    schedule.vectorize(kk)
    in_lanes(schedule, [name for name in IN_LANES if f"{name}_lanes" in program.packing])
    if "x_range_lanes" in program.packing:
        scale_in_vectors(schedule, program)
    if "x_odd" in program.packing:
        schedule.compute_inline(schedule.get_sblock("x_odd"))
    if program.x_piece < program.layout.k_block:
        rows, depth = program.instruction.rows, program.x_piece
        schedule.transform_layout(
            "xp",
            ("write", 0),
            lambda o, i, kb, r, kk: (o, i, kb, r // rows, kk // depth, r % rows, kk % depth),
        )
    return tile


def make_components(schedule: Schedule, program: Program) -> None:
    """Both components of the activations that the instruction reads, row after row."""
    xp = schedule.get_sblock("xp")
    kb, r, component, kk = loops_over(schedule, xp, "kb", "r", "component", "kk")
    schedule.reorder(r, kb)
    if program.instruction.form.even_and_odd:
        steps = program.layout.k_block // program.layout.depth
        schedule.tensorize(component, even_and_odd.register(steps))
        return
    schedule.unroll(component)
    schedule.vectorize(kk)


def in_lanes(schedule: Schedule, names: list[str]) -> None:
    """Each group's sum or range of activations as one vector, whose lanes are joined at its end."""
    for name in names:
        lanes, (r,) = f"{name}_lanes", loops_over(schedule, schedule.get_sblock(name), "r")
        schedule.compute_at(schedule.get_sblock(lanes), r, preserve_unit_loops=True)
    for name in names:
        block = schedule.get_sblock(f"{name}_lanes")
        lane, *steps = loops_over(schedule, block, "lane", *IN_LANES[name])
        schedule.reorder(*steps, lane)
        schedule.vectorize(lane)
        start = schedule.decompose_reduction(block, steps[0])
        schedule.vectorize(*loops_over(schedule, start, "lane"))


def scale_in_vectors(schedule: Schedule, program: Program) -> None:
    """Scales and zero points of groups, which are divisions, several at a time."""
    for name in ("x_scale", "x_zero_point"):
        if name in program.packing:
            numbers = schedule.fuse(*loops_over(schedule, schedule.get_sblock(name), "g", "r"))
            together = math.gcd(int(schedule.get(numbers).extent), SCALES)
            schedule.vectorize(schedule.split(numbers, [None, together])[1])


def tile(schedule: Schedule, program: Program, *, apart: bool = False) -> TileLoops:
    """Order the loops of the result around a register tile and compute the sums inside them.

    `apart` computes the blocks of a tile one after the other where sums of groups are added up.
    """
    layout, size = program.layout, program.tile
    *before, y = map(schedule.get_sblock, program.stages)
    mo, mi, r, nb, lane = loops_over(schedule, y, "o", "i", "r", "nb", "lane")
    blocks = size.blocks // layout.matrices
    panel, beside, block = schedule.split(nb, [None, size.panels, blocks])
    inner = tiles_in_order(schedule, program, panel, mi, beside, r, block, lane)
    for stage in reversed(before):
        schedule.compute_at(stage, inner, preserve_unit_loops=True)
    passes = matrix = None
    if program.parameters.k_passes > 1:
        passes, mi, beside, inner = add_up_in_passes(schedule, program, panel)
    elif program.summed:
        total = schedule.get_sblock("total")
        schedule.compute_at(total, inner, preserve_unit_loops=True)
        r, block, lane, inner = loops_over(schedule, total, "r", "nb", "lane", "part")
        if apart:
            matrix = block
            schedule.reorder(matrix, inner, r, lane)
        else:
            schedule.reorder(inner, r, block, lane)
        unroll_tile(schedule, r, block, lane)
    if program.instruction.registers is not None:
        schedule.compute_at(schedule.get_sblock("sums"), inner, preserve_unit_loops=True)
    acc = schedule.get_sblock("acc")
    schedule.compute_at(acc, inner, preserve_unit_loops=True)
    part, k = loops_over(schedule, acc, "part", "kk")
    over = loops_over(schedule, acc, *program.axes_over)
    within = loops_over(schedule, acc, *axes_within(program.instruction))
    depth = program.instruction.depth
    products = program.instruction.products
    kb, ks, d = schedule.split(k, [None, layout.k_block // depth, products])
    schedule.reorder(part, kb, ks, *over, *within, d)
    if layout.steps_per_byte > 1 and depth == layout.depth:
        ks, half = schedule.split(ks, [None, layout.steps_per_byte])
        schedule.unroll(half)
    if program.x_steps > 1:
        ks, step = schedule.split(ks, [None, program.x_steps // layout.steps_per_byte])
        schedule.unroll(step)
    if 1 < layout.k_block // depth <= SHORT and layout.groups == 1 == program.parts:
        kb = ks = schedule.fuse(kb, ks)
    innermost = ks
    if program.parameters.unroll > 1 and kb is not ks:
        ks, innermost = schedule.split(ks, [None, program.parameters.unroll])
        schedule.unroll(innermost)
    for loop in over:
        schedule.unroll(loop)
    if program.x_steps > 1:
        load_activations(schedule, innermost)
    part = inner if program.summed else part
    task = schedule.fuse(mo, panel)
    schedule.parallel(task)
    return TileLoops(task, mi, beside, passes, part, kb, ks, innermost, matrix)


def tiles_in_order(
    schedule: Schedule,
    program: Program,
    outer: LoopRV,
    mi: LoopRV,
    beside: LoopRV,
    *inner: LoopRV,
) -> LoopRV:
    """Order the loops over the tiles of a task as the parameters say. Returns the inner one."""
    tiles = (beside, mi) if program.parameters.rows_inner else (mi, beside)
    schedule.reorder(outer, *tiles, *inner)
    return tiles[-1]


def add_up_in_passes(
    schedule: Schedule, program: Program, panel: LoopRV
) -> tuple[LoopRV, LoopRV, LoopRV, LoopRV]:
    """All tiles of a task for a part of K before the next part. Returns passes, mi, beside, part.

    The sums of a task lie in memory meanwhile.
    """
    total, size = schedule.get_sblock("total"), program.tile
    schedule.compute_at(total, panel, preserve_unit_loops=True)
    mi, r, nb, lane, part = loops_over(schedule, total, "i", "r", "nb", "lane", "part")
    beside, block = schedule.split(nb, [size.panels, size.blocks])
    passes, part = schedule.split(part, [program.parameters.k_passes, None])
    tiles_in_order(schedule, program, passes, mi, beside, part, r, block, lane)
    unroll_tile(schedule, r, block, lane)
    return passes, mi, beside, part


def part_of(schedule: Schedule, program: Program, loops: TileLoops) -> tirx.Expr | int:
    """The number of the part of K that the loops are at."""
    if not program.summed:
        return 0
    part = schedule.get(loops.part)
    before = schedule.get(loops.passes).loop_var * part.extent if loops.passes else 0
    return before + part.loop_var


def load_activations(schedule: Schedule, step: LoopRV) -> None:
    """A vector of every row's activations, of which each step uses one lane."""
    block = schedule.get_sblock("xv")
    schedule.compute_at(block, step, preserve_unit_loops=True)
    r, k = loops_over(schedule, block, "r", "kk")
    schedule.unroll(r)
    schedule.vectorize(k)


def unroll_tile_of(schedule: Schedule, block: SBlockRV) -> None:
    """As `unroll_tile`, of the loops over a block with the axes of a tile."""
    unroll_tile(schedule, *loops_over(schedule, block, "r", "nb", "lane"))


def unroll_tile(schedule: Schedule, r: LoopRV, block: LoopRV, lane: LoopRV) -> None:
    """Straight-line code for the tile, vectors along its columns."""
    schedule.unroll(r)
    schedule.unroll(block)
    schedule.vectorize(lane)


def keep_in_registers(schedule: Schedule, program: Program, loops: TileLoops) -> None:
    """Zero the accumulators before the reduction and write the dot product as the instruction."""
    if program.w_components_first:
        widen(schedule, program, loops.task)
    elif program.layout.unpacked:
        unpack(schedule, loops.step)
    write_as_instruction(
        schedule,
        program.instruction,
        program.fragments,
        program.tile.blocks,
        loops.kb,
        program.axes_over,
    )
    if program.summed:
        first = loops.passes or loops.part
        zero = schedule.decompose_reduction(schedule.get_sblock("total"), first)
        unroll_tile_of(schedule, zero)


def unpack(schedule: Schedule, step: LoopRV) -> None:
    """The weights of a step become what the instruction reads."""
    block = schedule.get_sblock("wu")
    schedule.compute_at(block, step, preserve_unit_loops=True)
    nb, half, lane, d = loops_over(schedule, block, "nb", "step", "lane", "d")
    schedule.unroll(nb)
    schedule.unroll(half)
    schedule.vectorize(schedule.fuse(lane, d))


def widen(schedule: Schedule, program: Program, task: LoopRV) -> None:
    """A task's weights become even and odd int16 before anything else."""
    block = schedule.get_sblock("wu")
    schedule.compute_at(block, task, preserve_unit_loops=True)
    (component,) = loops_over(schedule, block, "component")
    schedule.tensorize(component, even_and_odd.register(program.layout.lanes))


def write_as_instruction(
    schedule: Schedule,
    instruction: Instruction,
    fragments: int,
    blocks: int,
    first: LoopRV,
    over: list[str],
) -> None:
    """Split the zeroing off the reduction "acc" before its loop `first`; tensorize the fragment.

    `over` are the axes along which the fragments of the tile lie, `fragments` x `blocks` of them.
    """
    acc, within = schedule.get_sblock("acc"), axes_within(instruction)
    *fragment, d = loops_over(schedule, acc, *within, "kk")
    if instruction.intrinsic is None:
        schedule.reorder(d, *fragment)
        if not instruction.shapes:
            schedule.unroll(d)
        schedule.vectorize(fragment[-1])
    zero = schedule.decompose_reduction(acc, first)
    over_zero, within_zero = (loops_over(schedule, zero, *axes) for axes in (over, within))
    for loop in over_zero if instruction.shapes else [*over_zero, *within_zero[:-1]]:
        schedule.unroll(loop)
    if instruction.intrinsic is None:
        schedule.vectorize(within_zero[-1])
        return
    intrinsics = register(instruction, fragments, blocks)
    schedule.tensorize(fragment[0], intrinsics.dot)
    if intrinsics.zero is None:
        schedule.vectorize(within_zero[-1])
        return
    schedule.tensorize(within_zero[0], intrinsics.zero)
    sums = schedule.get_sblock("sums")
    *stores, stored = loops_over(schedule, sums, *over, within[0])
    for loop in stores:
        schedule.unroll(loop)
    schedule.tensorize(stored, intrinsics.store)


def write_back(schedule: Schedule, program: Program) -> None:
    """The epilogue, one vector of `lanes` outputs at a time."""
    for stage in program.stages:
        unroll_tile_of(schedule, schedule.get_sblock(stage))
