"""How a spec's integers reach the instruction: which pairing of signs, and what is added to them.

With X' = X + x_offset and W' = W + w_offset, as the instruction reads them,

    sum (X - zx) (W - zw) = sum X' W' - (zx + x_offset) sum (W - zw) - (zw + w_offset) sum X'

over the k of one group. The sum of W - zw is known when the weight is packed; the sum of X' is only
needed where zw + w_offset is not zero. An instruction that reads signs or sums
(`targets.instructions.signs`, `.winograd`) adds a sum of its own over X' to sum X' W', and the
second also one over W'; they are subtracted first, and the latter is known when the weight is
packed. All of it is exact modulo 2**32, and so in int32 whenever the left side fits (gemmlowp,
doc/low-precision.md, has the correction with its zero points).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UnsupportedError
from ..formats.spec import INTEGER_RANGE, MatmulSpec
from ..targets import Instruction, Target, WeightLayout, weight_layout
from .cpu.strategies import WINOGRAD


@dataclass(frozen=True)
class Operands:
    """An instruction of the target, and what is added to both sides before it reads them."""

    instruction: Instruction
    x_offset: int
    w_offset: int


def operands(spec: MatmulSpec, target: Target) -> Operands:
    """The pairing of signs with the least correction, by an instruction that the groups fit.

    A 4-bit weight is stored as 0 to 15, which either sign reads. An offset of W needs sums of X in
    every call, an offset of X only sums of W at packing: so the weight's sign decides first.

    Raises
    ------
    UnsupportedError
        The target has no instruction for such weights.
    """
    x_dtype = "uint8" if spec.activation == "uint8" else "int8"
    bits = 4 if spec.four_bit_weight else 8
    group_size = spec.group_size if isinstance(spec.group_size, int) else None
    candidates = [
        Operands(
            instruction, sign_offset(x_dtype, instruction.x_dtype), w_offset(spec, instruction)
        )
        for instruction in target.instructions
        if instruction.fits(bits, group_size)
    ]
    if not candidates:
        raise UnsupportedError(
            f"target {target.name} has no instruction for {spec.weight} weights "
            f"with group_size={spec.group_size!r}"
        )
    return min(candidates, key=lambda c: (c.w_offset != 0, c.x_offset != 0))


def instruction_for(
    chosen: Operands, target: Target, strategy: str, rows: int
) -> Instruction | None:
    """The instruction that the target has for a strategy's tile of `rows`, for these operands."""

    def operand_format(instruction: Instruction) -> tuple[object, ...]:
        signs = instruction.x_dtype, instruction.w_dtype
        return *signs, instruction.block_columns, instruction.block_depth

    same = [
        instruction
        for instruction in target.instructions
        if operand_format(instruction) == operand_format(chosen.instruction)
        and instruction.from_rows <= rows
        and (instruction.form == "sums") == (strategy == WINOGRAD)
    ]
    return max(same, key=lambda instruction: instruction.from_rows, default=None)


def w_offset(spec: MatmulSpec, instruction: Instruction) -> int:
    """What is added to a weight so that the instruction reads it."""
    if spec.four_bit_weight:
        return -INTEGER_RANGE[spec.weight][0]
    return sign_offset(spec.weight, instruction.w_dtype)


def sign_offset(given: str, read: str) -> int:
    """What turns a byte of one sign into one of the other."""
    if read == given:
        return 0
    return 128 if read == "uint8" else -128


def layout_for(spec: MatmulSpec, chosen: Operands, k_block: int | None = None) -> WeightLayout:
    """The private layout of the spec's weight, in blocks of K as given or as `k_blocks` begins."""
    return weight_layout(
        spec.n,
        spec.k,
        chosen.instruction,
        group_size=spec.group_size if isinstance(spec.group_size, int) else None,
        bits=4 if spec.four_bit_weight else 8,
        offset=chosen.w_offset,
        pairs=spec.packed_activation,
        k_block=k_block,
    )


def needs_x_sum(spec: MatmulSpec, chosen: Operands) -> bool:
    """Whether sums of the activations enter the correction."""
    return spec.weight_zero_point or chosen.w_offset != 0


def needs_w_sum(spec: MatmulSpec, chosen: Operands) -> bool:
    """Whether sums of the weights enter the correction."""
    return spec.activation_zero_point or chosen.x_offset != 0


def needs_x_own(chosen: Operands) -> bool:
    """Whether the instruction adds a sum over the activations alone, which must be subtracted."""
    return chosen.instruction.form != "bytes"


def needs_w_own(chosen: Operands) -> bool:
    """The same of the weights."""
    return chosen.instruction.form == "sums"
