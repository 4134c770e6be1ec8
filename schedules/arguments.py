"""The arguments of kernels: a table, from which placeholders, checks and strides come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ..formats.checks import takes
from ..formats.spec import MatmulSpec, stored_as
from .plan import Plan

#: What an argument has numbers for: the rows of X; the packed weight; each column and group of the
#: weight, or each column; each k; what an activation scale covers; each row and group; the call;
#: each unit of the work of experts; or the elements of the result.
Of = Literal[
    "x",
    "weight",
    "group",
    "column",
    "k",
    "scale of x",
    "row and group",
    "call",
    "unit",
    "result",
]

AnyPlan = Plan[Any, Any]

#: What the table of units says of each, a column for each name. See `runtime.units`.
UNIT = ("expert", "first_row", "rows", "first_panel", "panels")


@dataclass(frozen=True)
class Argument:
    """An array that a kernel takes.

    Attributes
    ----------
    of : what its numbers are for, which decides its shape.
    dtype : in which a kernel takes it, see `stored_as`.
    when : whether the kernel of a plan takes it.
    """

    name: str
    of: Of
    dtype: Callable[[AnyPlan], str]
    when: Callable[[AnyPlan], bool] = lambda plan: True

    def by_row(self, spec: MatmulSpec) -> bool:
        """Whether it has numbers for each row of X."""
        return self.of in ("x", "row and group", "result") or (
            self.of == "scale of x" and spec.activation_scale != "tensor"
        )


def dtype(name: str) -> Callable[[AnyPlan], str]:
    """The dtype of an argument that has the same one in every plan."""
    return lambda plan: name


def taken(name: str) -> Callable[[AnyPlan], bool]:
    """Whether the caller has to bring a scale or zero point."""
    return lambda plan: takes(name, plan.spec)


#: In the order in which kernels take them. w_extra is what the instruction adds for W alone. x_sum
#: is an argument on GPUs, where another kernel writes it: sums of X as it is stored, or where they
#: are multiplied with offsets, of X without its zero points.
ARGUMENTS = (
    Argument("x", "x", lambda plan: stored_as(plan.spec.x_dtype)),
    Argument("w", "weight", lambda plan: plan.layout.stored_dtype),
    Argument("w_sum", "group", dtype("int32"), lambda plan: plan.needs_w_sum),
    Argument("w_extra", "group", dtype("int32"), lambda plan: plan.needs_w_extra),
    Argument(
        "w_zero_point",
        "group",
        lambda plan: plan.layout.dtype,
        lambda plan: plan.spec.weight_zero_point,
    ),
    Argument("w_scale", "group", dtype("float32"), lambda plan: plan.spec.out != "int32"),
    Argument("w_offset", "group", dtype("float32"), lambda plan: plan.spec.weight_offset),
    Argument("w_order", "k", dtype("int32"), lambda plan: plan.spec.weight_order),
    Argument("x_scale", "scale of x", dtype("float32"), taken("x_scale")),
    Argument("x_zero_point", "scale of x", dtype("int32"), taken("x_zero_point")),
    Argument(
        "x_sum",
        "row and group",
        lambda plan: "float32" if plan.spec.weight_offset else "int32",
        lambda plan: False,
    ),
    Argument("bias", "column", dtype("float32"), lambda plan: plan.spec.bias),
    Argument(
        "residual",
        "result",
        lambda plan: stored_as(plan.spec.residual_dtype),
        lambda plan: plan.spec.residual,
    ),
    Argument("out_scale", "call", dtype("float32"), taken("out_scale")),
    Argument("out_zero_point", "call", dtype("int32"), taken("out_zero_point")),
    Argument("units", "unit", dtype("int32"), lambda plan: plan.spec.experts is not None),
    Argument("y", "result", lambda plan: stored_as(plan.spec.out)),
)


def arguments(plan: AnyPlan) -> tuple[str, ...]:
    """Names of what a kernel's caller brings and binds, in order."""
    return tuple(each.name for each in ARGUMENTS if each.when(plan))


def rows_of_x(spec: MatmulSpec) -> frozenset[str]:
    """Names of the arguments that have numbers for each row of X."""
    return frozenset(each.name for each in ARGUMENTS if each.by_row(spec))
