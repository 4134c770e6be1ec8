"""Steps that the recipes share. Each takes a `Schedule` of a `Program` and says what it leaves."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV

from ...targets import Instruction
from ...targets.instructions import parted, register
from .program import Program, Tile

#: Dot products of a block of K up to which its loop is joined with the one over blocks: LLVM would
#: unroll it, load the weights of every step at once and run out of registers.
SHORT = 8


@dataclass(frozen=True)
class TileLoops:
    """The loops around a register tile, outermost first.

    mo, panel, mi, beside choose the tile, part the part of K, of one of the `passes` where there
    are several; kb, ks walk along K, `step` within ks where that is unrolled; `over` (rows, blocks,
    fragments in a block) walk over the fragments of the tile; `fragment` (its rows if it has
    several, its lanes) and d are the instruction.
    """

    mo: LoopRV
    panel: LoopRV
    mi: LoopRV
    beside: LoopRV
    passes: LoopRV | None
    part: LoopRV
    kb: LoopRV
    ks: LoopRV
    step: LoopRV
    over: tuple[LoopRV, ...]
    fragment: tuple[LoopRV, ...]
    d: LoopRV

    @property
    def joined(self) -> bool:
        """Whether kb and ks are one loop."""
        return self.kb is self.ks


def pack(schedule: Schedule, program: Program, *, parallel: bool) -> LoopRV:
    """One tile of rows after the other, all steps of its packing together. Returns that loop.

    What an instruction reads of several rows lies together: [r / rows][k / depth][rows][depth].
    """
    first, *others = program.packing
    tile = schedule.get_loops(schedule.get_sblock(first))[1]
    for name in others:
        schedule.reverse_compute_at(schedule.get_sblock(name), tile, preserve_unit_loops=True)
    if parallel:
        schedule.parallel(tile)
    if "xq" in program.packing:
        part(schedule, program)
        *_, kb, r, step, d = schedule.get_loops(schedule.get_sblock("xq"))
        kk = schedule.fuse(step, d)
    else:
        *_, kb, r, kk = schedule.get_loops(schedule.get_sblock("xp"))
    schedule.reorder(r, kb)  # row after row, a block of K per copy
    contiguous = program.layout.k_block
    if program.layout.pairs:
        half, kk = schedule.split(kk, [2, None])
        schedule.unroll(half)
        contiguous //= 2
    if program.x_piece < contiguous:
        _, kk = schedule.split(kk, [None, program.x_piece])
    schedule.vectorize(kk)
    for sums in ("x_sum", "x_own"):
        if sums in program.packing:
            sum_in_lanes(schedule, sums)
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


def part(schedule: Schedule, program: Program) -> None:
    """Both parts of the activations that the instruction reads, row after row."""
    *_, kb, r, half, kk = schedule.get_loops(schedule.get_sblock("xp"))
    schedule.reorder(r, kb)
    if program.instruction.form == "sums":
        schedule.tensorize(half, parted.register(program.layout.k_block // program.layout.depth))
        return
    schedule.unroll(half)
    schedule.vectorize(kk)


def sum_in_lanes(schedule: Schedule, sums: str) -> None:
    """Each group's sum of activations as one vector, whose lanes are added at its end."""
    lanes = schedule.get_sblock(f"{sums}_lanes")
    *_, r, _ = schedule.get_loops(schedule.get_sblock(sums))
    schedule.compute_at(lanes, r, preserve_unit_loops=True)
    lane, kb, step = schedule.get_loops(lanes)[-3:]
    schedule.reorder(kb, step, lane)
    schedule.vectorize(lane)
    zero = schedule.decompose_reduction(lanes, kb)
    schedule.vectorize(schedule.get_loops(zero)[-1])


def tile(schedule: Schedule, program: Program) -> TileLoops:
    """Order the loops of the result around a register tile and compute the sums inside them."""
    layout, size = program.layout, program.tile
    *before, y = map(schedule.get_sblock, program.stages)
    mo, mi, r, nb, lane = schedule.get_loops(y)
    panel, beside, block = schedule.split(nb, [None, size.panels, size.blocks])
    inner = tiles_in_order(schedule, program, panel, mi, beside, r, block, lane)
    for stage in reversed(before):
        schedule.compute_at(stage, inner, preserve_unit_loops=True)
    passes = None
    if program.parameters.k_passes > 1:
        passes, mi, beside, inner = add_up_in_passes(schedule, program, panel)
    elif program.summed:
        total = schedule.get_sblock("total")
        schedule.compute_at(total, inner, preserve_unit_loops=True)
        r, block, lane, inner = schedule.get_loops(total)[-4:]
        schedule.reorder(inner, r, block, lane)
        unroll_tile(schedule, r, block, lane)
    if program.instruction.registers is not None:
        schedule.compute_at(schedule.get_sblock("sums"), inner, preserve_unit_loops=True)
    acc = schedule.get_sblock("acc")
    schedule.compute_at(acc, inner, preserve_unit_loops=True)
    own = program.loops_over_fragments + program.loops_in_fragment
    part, *loops, k = schedule.get_loops(acc)[-own - 2 :]
    over, within = loops[: program.loops_over_fragments], loops[program.loops_over_fragments :]
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
    return TileLoops(
        mo, panel, mi, beside, passes, part, kb, ks, innermost, tuple(over), tuple(within), d
    )


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
    mi, r, nb, lane, part = schedule.get_loops(total)[-5:]
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
    r, k = schedule.get_loops(block)[-2:]
    schedule.unroll(r)
    schedule.vectorize(k)


def unroll_tile(schedule: Schedule, r: LoopRV, block: LoopRV, lane: LoopRV) -> None:
    """Straight-line code for the tile, vectors along its columns."""
    schedule.unroll(r)
    schedule.unroll(block)
    schedule.vectorize(lane)


def keep_in_registers(schedule: Schedule, program: Program, loops: TileLoops, task: LoopRV) -> None:
    """Zero the accumulators before the reduction and write the dot product as the instruction.

    To be called when the loops are final: afterwards "acc" is no longer a plain reduction. `task`
    is the loop over panels.
    """
    if program.widened_before:
        widen(schedule, program, task)
    elif program.layout.unpacked:
        unpack(schedule, loops.step)
    write_as_instruction(
        schedule, program.instruction, program.tile, loops.kb, loops.over, loops.fragment, loops.d
    )
    if program.summed:
        first = loops.passes or loops.part
        zero = schedule.decompose_reduction(schedule.get_sblock("total"), first)
        unroll_tile(schedule, *schedule.get_loops(zero)[-3:])


def unpack(schedule: Schedule, step: LoopRV) -> None:
    """The weights of a step become what the instruction reads."""
    block = schedule.get_sblock("wu")
    schedule.compute_at(block, step, preserve_unit_loops=True)
    nb, half, lane, d = schedule.get_loops(block)[-4:]
    schedule.unroll(nb)
    schedule.unroll(half)
    schedule.vectorize(schedule.fuse(lane, d))


def widen(schedule: Schedule, program: Program, task: LoopRV) -> None:
    """A task's weights become even and odd int16 before anything else."""
    block = schedule.get_sblock("wu")
    schedule.compute_at(block, task, preserve_unit_loops=True)
    half, _ = schedule.get_loops(block)[-2:]
    schedule.tensorize(half, parted.register(program.layout.lanes))


def write_as_instruction(
    schedule: Schedule,
    instruction: Instruction,
    tile: Tile,
    first: LoopRV,
    over: tuple[LoopRV, ...],
    fragment: tuple[LoopRV, ...],
    d: LoopRV,
) -> None:
    """Split the zeroing off the reduction "acc" before its loop `first`; tensorize the fragment.

    `over` are the loops over fragments.
    """
    *row, lane = fragment
    if instruction.intrinsic is None:
        schedule.reorder(d, *row, lane)
        if not instruction.shapes:
            schedule.unroll(d)
        schedule.vectorize(lane)
    zero = schedule.decompose_reduction(schedule.get_sblock("acc"), first)
    zeros = schedule.get_loops(zero)[-len(over) - len(fragment) :]
    for loop in zeros[: len(over) if instruction.shapes else -1]:
        schedule.unroll(loop)
    if instruction.intrinsic is None:
        schedule.vectorize(zeros[-1])
        return
    intrinsics = register(instruction, tile.rows // instruction.rows, tile.blocks)
    schedule.tensorize(fragment[0], intrinsics.dot)
    if intrinsics.zero is None:
        schedule.vectorize(zeros[-1])
        return
    schedule.tensorize(zeros[len(over)], intrinsics.zero)
    *stores, row, _ = schedule.get_loops(schedule.get_sblock("sums"))[-len(zeros) :]
    for loop in stores:
        schedule.unroll(loop)
    schedule.tensorize(row, intrinsics.store)


def write_back(schedule: Schedule, program: Program) -> None:
    """The epilogue, one vector of `lanes` outputs at a time."""
    for stage in program.stages:
        unroll_tile(schedule, *schedule.get_loops(schedule.get_sblock(stage))[-3:])
