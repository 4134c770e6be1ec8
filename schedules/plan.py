"""Plans: what a spec and a target decide together, made once and carried.

How a spec's integers reach the instruction is which pairing of signs that has, and what is added to
them. With X' = X + x_shift and W' = W + w_shift, as the instruction reads them,

    sum (X - zx) (W - zw) = sum X' W' - (zx + x_shift) sum (W - zw) - (zw + w_shift) sum X'

over the k of one group. The sum of W - zw is known when the weight is packed; the sum of X' is only
needed where zw + w_shift is not zero, or where a weight's offset is multiplied with that of X - zx.
An instruction may add a sum over X' alone to sum X' W', and another one over W' alone
(`targets.forms`); they are subtracted first, and the latter is known when the weight is packed. All
of it is exact modulo 2**32, and so in int32 whenever the left side fits (gemmlowp,
doc/low-precision.md, has the correction with its zero points).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from ..errors import UnsupportedError
from ..formats.integers import INTEGERS
from ..formats.spec import MatmulSpec
from ..targets import Chip, Instruction

#: Kernels compute offsets in int32: the most elements that an array may have behind its first.
MAX_ELEMENTS = 2**31 - 1

T = TypeVar("T", bound=Chip)
L = TypeVar("L")


@dataclass(frozen=True)
class Plan(Generic[T, L]):
    """A spec on a target: an instruction, what it reads, and how the weight lies for it.

    Attributes
    ----------
    instruction : of those that the target has for these operands, the one that stands for them.
    x_shift, w_shift : what is added to activations and weights before the instruction reads them.
    layout : of the packed weight.
    """

    spec: MatmulSpec
    target: T
    instruction: Instruction
    x_shift: int
    w_shift: int
    layout: L

    @property
    def needs_x_sum(self) -> bool:
        """Whether sums of the activations enter the result."""
        return self.corrects_with_x_sum or self.spec.weight_offset

    @property
    def corrects_with_x_sum(self) -> bool:
        """Whether sums of the activations enter the correction."""
        return self.spec.weight_zero_point or self.w_shift != 0

    @property
    def needs_w_sum(self) -> bool:
        """Whether sums of the weights enter the correction."""
        return self.spec.activation_zero_point or self.x_shift != 0

    @property
    def needs_x_extra(self) -> bool:
        """Whether the instruction adds a sum over the activations alone, to be subtracted."""
        return self.instruction.form.adds_x

    @property
    def needs_w_extra(self) -> bool:
        """Whether the instruction adds a sum over the weights alone, to be subtracted."""
        return self.instruction.form.adds_w


def x_sign(spec: MatmulSpec) -> str:
    """The bytes that the activations of a spec are: "int8" or "uint8"."""
    return "uint8" if spec.activation == "uint8" else "int8"


def weight_bits(spec: MatmulSpec) -> int:
    """Bits of a stored weight."""
    return INTEGERS[spec.weight].bits


def group_size(spec: MatmulSpec) -> int | None:
    """Consecutive k that share a weight scale; None where all of a row of W does."""
    return spec.group_size if isinstance(spec.group_size, int) else None


def too_large(spec: MatmulSpec, elements: int, what: str) -> UnsupportedError:
    """The refusal of a weight whose last offset is beyond int32."""
    return UnsupportedError(
        f"a weight of n={spec.n}, k={spec.k} is {elements} {what} with its padding; "
        f"expected at most {MAX_ELEMENTS + 1}"
    )
