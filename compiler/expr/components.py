"""Components of the activations, for instructions that read two of them; see `targets.forms`.

A form has a row of `COMPONENTS` where the integers of X become components, and where the sum is
formed that the instruction adds for X beside the dot product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import te, tirx
from tvm.ir import Expr

from ...targets import Instruction
from ...targets.forms import PAIRED, SIGNS, Form

#: Gives the integer at a place of X, (..., k).
Integer = Callable[..., Expr]


@dataclass(frozen=True)
class Components:
    """What a form makes of the integers of X.

    Attributes
    ----------
    component : the component of a number, 0 or 1, at a position, of the integers of a place.
    extra : from the integers, (o, i, kb, r, k) in int32, and the components, the terms whose sum
        over a group the instruction adds; and stages that these need.
    """

    component: Callable[[Integer, Expr, Expr, Instruction], Expr]
    extra: Callable[[Integer, te.Tensor], tuple[Integer, dict[str, te.Tensor]]]


def both(xq: te.Tensor, instruction: Instruction) -> te.Tensor:
    """Both components of the integers, one behind the other in every block of K."""
    *outer, steps, depth = xq.shape
    form, (dtype, _) = instruction.form, instruction.read_dtypes
    piece = COMPONENTS[form.name].component

    def at(*place: Expr) -> Expr:
        *block, component, kk = place

        def integer(*k: Expr) -> Expr:
            index = *block, *k
            return xq[index]

        return piece(integer, component, kk, instruction).astype(dtype)

    shape = *outer, 2, steps * depth // form.k_per_product
    return te.compute(shape, at, "xp", varargs_names=["o", "i", "kb", "r", "component", "kk"])


def extra(form: Form, integer: Integer, xp: te.Tensor) -> tuple[Integer, dict[str, te.Tensor]]:
    """The terms whose sums over groups the instruction adds, and stages that they need."""
    return COMPONENTS[form.name].extra(integer, xp)


def magnitude_or_sign(
    integer: Integer, component: Expr, kk: Expr, instruction: Instruction
) -> Expr:
    """|x|, or -1 for a negative x and 0 for others."""
    value = integer(kk // instruction.depth, kk % instruction.depth)
    sign = value >> tirx.const(7, instruction.x_dtype)
    return tirx.Select(component == 0, (value ^ sign) - sign, sign)


def even_or_odd(integer: Integer, component: Expr, kk: Expr, instruction: Instruction) -> Expr:
    """The integers at even k, or those at odd k."""
    half = instruction.depth // 2
    return integer(kk // half, kk % half * 2 + component)


def negative(integer: Integer, xp: te.Tensor) -> tuple[Integer, dict[str, te.Tensor]]:
    """The negative integers: what `instructions.signs` adds."""
    return lambda *at: tirx.min(integer(*at), tirx.const(0, "int32")), {}


def products(integer: Integer, xp: te.Tensor) -> tuple[Integer, dict[str, te.Tensor]]:
    """Products of even and odd ones: what `instructions.paired` adds."""
    *outer, _, half = xp.shape

    def component(number: int, at: tuple[Expr, ...]) -> Expr:
        index = *at[:-1], number, at[-1]
        return xp[index].astype("int32")

    # TVM cannot follow a stage that reads xp in two places; steps.pack inlines this one.
    odd = te.compute((*outer, half), lambda *at: component(1, at), "x_odd")
    return lambda *at: component(0, at) * odd[at], {"x_odd": odd}


#: By the names of forms. One without a row reads the integers as they are.
COMPONENTS = {
    SIGNS.name: Components(magnitude_or_sign, negative),
    PAIRED.name: Components(even_or_odd, products),
}
