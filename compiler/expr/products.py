"""What an instruction adds to a sum, as a term of a TensorExpression's reduction."""

from __future__ import annotations

from collections.abc import Callable

from tvm.ir import Expr

from ...targets import Instruction

#: Gives a number of X or of W: of which part (0, or 1 where the instruction reads two parts of it),
#: and at which position.
Part = Callable[[int, Expr], Expr]


def product(instruction: Instruction, x: Part, w: Part, at: Expr) -> Expr:
    """Term number `at`; see `Instruction`.

    Parts of x are magnitudes and signs, or even and odd k, those of w even and odd k; where there
    is one it is part 0.
    """

    def widened(value: Expr) -> Expr:
        return value.astype("int32")

    if instruction.form == "bytes":
        return widened(x(0, at)) * widened(w(0, at))
    if instruction.form == "signs":
        return widened(x(0, at)) * widened(w(0, at) ^ x(1, at).astype(instruction.w_dtype))
    even, odd = (widened(x(part, at)) for part in (0, 1))
    return (even + widened(w(1, at))) * (odd + widened(w(0, at)))
