"""Sums of a group that start from their correction instead of from zero.

Where weights are stored with an offset, the sum of products over a group is corrected by the sum of
its activations (see `operands`). Added at the end, that is one operation per group, row and vector,
a third of what the end of a group takes; as the value that a sum starts from it takes nothing. A
TensorExpression cannot say this: what a reduction starts from has no index.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import tirx
from tvm.s_tir import SBlock

from ...schedules import fragments
from ...schedules.cpu.program import Program


def can_start_from_x_sum(program: Program) -> bool:
    """Whether the correction is one number per row and group, and sums begin in vectors."""
    return (
        program.layout.groups > 1
        and "x_sum" in program.packing
        and program.instruction.registers is None
    )


def start_from_x_sum(program: Program, func: tirx.PrimFunc) -> tirx.PrimFunc:
    """`func`, a schedule of `program`, with "acc" starting from "x_sum" and not adding it later."""
    buffers = {buffer.name: buffer for buffer in func.body.block.alloc_buffers}
    acc, x_sum = buffers["acc"], buffers["x_sum"]

    def correction(index: list[tirx.Expr]) -> list[tirx.Expr]:
        o, i, part, *at = index
        row, _, _ = fragments.sums_of(program.instruction, program.layout.lanes, tuple(at))
        return [o, i, part, row]

    started = ended = 0

    def start(block: SBlock) -> SBlock:
        nonlocal started
        if block.name_hint != "acc_init":
            return block
        started += 1
        store = block.body
        place = correction(list(store.indices))
        read = tirx.BufferRegion(x_sum, [tvm.ir.Range.from_min_extent(at, 1) for at in place])
        body = tirx.BufferStore(acc, tirx.BufferLoad(x_sum, place), store.indices)
        return SBlock(block.iter_vars, [*block.reads, read], block.writes, block.name_hint, body)

    def end(value: tirx.Add) -> tirx.Expr:
        nonlocal ended
        is_correction = isinstance(value.b, tvm.ir.TensorLoad) and value.b.source.same_as(x_sum)
        ended += is_correction
        return value.a if is_correction else value

    body = tvm_ffi.structural_map(func.body, [(SBlock, start), (tirx.Add, end)])
    assert started == 1, started
    assert ended, "the correction is not added any more"
    return func.with_body(body)
