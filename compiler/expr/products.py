"""What an instruction adds to a sum, as a term of a TensorExpression's reduction."""

from __future__ import annotations

from collections.abc import Callable

from tvm.ir import Expr

from ...targets.forms import Form

#: Gives a number of X or of W: of which of the components that the instruction reads, and at which
#: position.
Component = Callable[[int, Expr], Expr]


def product(form: Form, x: Component, w: Component, at: Expr) -> Expr:
    """Term number `at`; see `forms`."""
    result: Expr = form.product(
        [x(number, at) for number in range(form.x_components)],
        [w(number, at) for number in range(form.w_components)],
    )
    return result
