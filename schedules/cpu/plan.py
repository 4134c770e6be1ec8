"""Plans for CPUs: the instruction whose signs cost least, and the blocks of K that fit."""

from __future__ import annotations

import dataclasses
import math
from typing import TypeAlias

from ...errors import UnsupportedError
from ...formats.integers import INTEGERS
from ...formats.spec import MatmulSpec
from ...targets import Instruction, Target, WeightLayout, weight_layout
from ...targets.layout import k_blocks
from .. import plan as plans
from ..plan import Plan, group_size, weight_bits, x_sign

CpuPlan: TypeAlias = Plan[Target, WeightLayout]


def plan_for(spec: MatmulSpec, target: Target, k_block: int | None = None) -> CpuPlan:
    """The plan of a spec on a CPU.

    The pairing of signs is the one with the least correction, by an instruction that the groups
    fit, and the fewest weights besides these: what is exact for all of a byte takes longer. A 4-bit
    weight is stored as 0 to 15, which either sign reads. An offset of W needs sums of X in every
    call, an offset of X only sums of W at packing: so the weight's sign decides first.

    Parameters
    ----------
    k_block : a block of K, one of `k_block_sizes`; None is the first of them. A shorter one is
        taken where the padding would be what int32 does not reach.

    Raises
    ------
    UnsupportedError
        The target has no instruction for such weights, or the weight's last offset is beyond int32.
    """
    bits, size = weight_bits(spec), group_size(spec)
    x_dtype = x_sign(spec)

    def cost(instruction: Instruction) -> tuple[int, bool, bool]:
        least, greatest = instruction.weight_range
        signs = w_offset(spec, instruction) != 0, instruction.x_dtype != x_dtype
        return greatest - least, *signs

    fit = [
        each
        for each in target.instructions
        if each.reads(bits, size) and each.exact(*stored_range(spec, each))
    ]
    if not fit:
        raise UnsupportedError(
            f"target {target.name} has no instruction for {spec.weight} weights "
            f"with group_size={spec.group_size!r}"
        )
    instruction = min(fit, key=cost)
    layout = weight_layout(
        spec.n,
        spec.k,
        instruction,
        group_size=size,
        bits=bits,
        offset=w_offset(spec, instruction),
        pairs=spec.packed_activation,
        k_block=k_block,
    )
    layout = dataclasses.replace(layout, matrices=spec.matrices)
    x_offset = sign_offset(x_dtype, instruction.x_dtype)
    plan = Plan(spec, target, instruction, x_offset, layout.offset, layout)
    for block in (layout.k_block, *k_block_sizes(plan)):
        within = dataclasses.replace(layout, k_block=block)
        if math.prod(within.shape) - 1 <= plans.MAX_ELEMENTS:
            return dataclasses.replace(plan, layout=within)
    raise plans.too_large(spec, math.prod(layout.shape), "elements")


def with_k_block(plan: CpuPlan, k_block: int) -> CpuPlan:
    """The plan with blocks of K of another size, one of `k_block_sizes`."""
    return dataclasses.replace(plan, layout=dataclasses.replace(plan.layout, k_block=k_block))


def k_block_sizes(plan: CpuPlan) -> list[int]:
    """Sizes that a block of K may have, the default first."""
    return k_blocks(plan.spec.k, plan.instruction, plan.layout.group_size, plan.layout.bits)


def instructions_of(plan: CpuPlan) -> list[Instruction]:
    """The target's instructions for the operands of a plan: signs, and how the weight lies."""

    def reads(instruction: Instruction) -> tuple[object, ...]:
        signs = instruction.x_dtype, instruction.w_dtype
        return *signs, instruction.block_columns, instruction.block_depth

    return [each for each in plan.target.instructions if reads(each) == reads(plan.instruction)]


def w_offset(spec: MatmulSpec, instruction: Instruction) -> int:
    """What is added to a weight so that the instruction reads it."""
    if spec.four_bit_weight:
        return -INTEGERS[spec.weight].least
    return sign_offset(INTEGERS[spec.weight].stored, instruction.w_dtype)


def stored_range(spec: MatmulSpec, instruction: Instruction) -> tuple[int, int]:
    """The least and the greatest weight as the instruction reads it."""
    least, greatest = INTEGERS[spec.weight].range
    offset = w_offset(spec, instruction)
    return least + offset, greatest + offset


def sign_offset(given: str, read: str) -> int:
    """What turns a byte of one sign into one of the other."""
    if read == given:
        return 0
    return 128 if read == "uint8" else -128
