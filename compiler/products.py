"""What an instruction adds to a sum, as a term of a TensorExpression's reduction."""

from __future__ import annotations

from collections.abc import Callable

from tvm.ir import Expr

from ..targets import Instruction

AtK = Callable[[Expr], Expr]


def product(instruction: Instruction, x: AtK, w: AtK, at: Expr) -> Expr:
    """Term number `at`; `x` and `w` give the integers at a k. See `Instruction`."""

    def widened(value: Expr) -> Expr:
        return value.astype("int32")

    apart = instruction.apart
    if apart is None:
        return widened(x(at)) * widened(w(at))
    k = at // apart * (2 * apart) + at % apart
    other = k + apart
    return (widened(x(k)) + widened(w(other))) * (widened(x(other)) + widened(w(k)))
