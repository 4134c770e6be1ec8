"""From sums of products to results: corrections, scales, bias, activation function, residual.

`at` is a place in the tiles, (o, i, r, nb, lane); see `frontend`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import te
from tvm.ir import Expr

from ...formats.spec import MatmulSpec
from ...schedules.plan import Plan
from ...targets import Chip
from ..rewrite.rounding import add_product, multiply_add
from . import functions
from .activations import Packed
from .smooth import activation

Place = tuple[Expr, ...]


@dataclass(frozen=True)
class Epilogue:
    """What the steps from a sum to a result read.

    Attributes
    ----------
    inputs : the arrays that the kernel takes, by name.
    block : maps a block of a tile, which may lie behind the last one, to a block that exists.
    """

    plan: Plan[Any, Any]
    packed: Packed
    inputs: dict[str, te.Tensor]
    block: Callable[[Expr], Expr]

    @property
    def spec(self) -> MatmulSpec:
        """What is computed."""
        return self.plan.spec

    @property
    def target(self) -> Chip:
        """What computes it."""
        return self.plan.target

    @property
    def residual_is_addend(self) -> bool:
        """Nothing lies between the product with X's scale and the residual: one operation."""
        spec = self.spec
        bare = not (spec.bias or spec.gated or spec.activation_fn) and spec.x_groups == 1
        return spec.residual and bare

    def per_column(self, name: str, group: Expr | int, at: Place) -> Expr:
        """The number of the array `name` for the column and group."""
        return self.inputs[name][self.block(at[3]), group, at[4]]

    def x_scale(self, group: Expr | int, at: Place) -> Expr:
        """The scale of X in a row and group."""
        o, i, r, *_ = at
        return self.packed.scale(o, i, group, r)

    def exact(self, value: Expr, group: Expr | int, at: Place) -> Expr:
        """`value`, the sum of products over a group, with the corrections of `schedules.plan`."""
        o, i, r, *_ = at
        if self.plan.needs_x_extra:
            assert self.packed.extra is not None
            value = value - self.packed.extra(o, i, group, r)
        if self.plan.needs_w_extra:
            value = value - self.per_column("w_extra", group, at)
        if self.plan.needs_w_sum:
            w_sum = self.per_column("w_sum", group, at)
            if self.packed.zero_point is not None:
                w_sum = (self.packed.zero_point(o, i, group, r) + self.plan.x_shift) * w_sum
            value = value - w_sum
        if self.plan.corrects_with_x_sum:
            assert self.packed.sums is not None
            x_sum = self.packed.sums(o, i, group, r)
            if self.spec.weight_zero_point:
                zero_point = self.per_column("w_zero_point", group, at).astype("int32")
                return value - x_sum * zero_point
            return value + x_sum
        return value

    def scaled(self, value: Expr, group: Expr | int, at: Place) -> Expr:
        """The exact sum over a group times its scales, in float32.

        X's scale is one of them where groups have their own.
        """
        scale = self.per_column("w_scale", group, at)
        result = self.exact(value, group, at).astype("float32") * scale
        return result * self.x_scale(group, at) if self.spec.x_groups > 1 else result

    def offset_terms(self, group: Expr | int, at: Place) -> tuple[Expr, Expr] | None:
        """The sum of X over a group in float32, and the offset that it is multiplied with."""
        if not self.spec.weight_offset:
            return None
        assert self.packed.exact_sums is not None
        o, i, r, *_ = at
        return self.packed.exact_sums(o, i, group, r), self.per_column("w_offset", group, at)

    def of_part(self, value: Expr, part: Expr | int, at: Place) -> Expr:
        """The sum of products over a part of K as it is added to the others'.

        With offsets it is two products, which `rounding.fuse_group_sums` adds one after the other.
        """
        if self.plan.layout.groups == 1:
            return value
        scaled, terms = self.scaled(value, part, at), self.offset_terms(part, at)
        return scaled if terms is None else scaled + terms[0] * terms[1]

    def whole(self, value: Expr, at: Place) -> Expr:
        """What all parts of K gave together as the result before residual and format."""
        if self.spec.out == "int32":
            return self.exact(value, 0, at)
        if self.plan.layout.groups == 1:
            value, terms = self.scaled(value, 0, at), self.offset_terms(0, at)
            if terms is not None:
                value = add_product(self.target, *terms, value)
        return self.finished(value, at)

    def finished(self, value: Expr, at: Place) -> Expr:
        """`value` in units of a row's scale, if it has one, as the result before the residual."""
        if self.residual_is_addend:
            return value
        if self.spec.x_groups > 1:
            result = value + self.per_column("bias", 0, at) if self.spec.bias else value
        elif self.spec.bias:
            bias = self.per_column("bias", 0, at)
            result = multiply_add(self.target, value, self.x_scale(0, at), bias)
        else:
            result = value * self.x_scale(0, at)
        if self.spec.gated:
            return result
        return activation(self.spec.activation_fn, result, self.target)

    def of_matrices(self, value: Callable[..., Expr], at: Place) -> tuple[Expr, ...]:
        """`value` of the same column of each of the weight's matrices, whose blocks alternate."""
        o, i, r, nb, lane = at
        count = self.spec.matrices
        return tuple(value(o, i, r, nb * count + matrix, lane) for matrix in range(count))

    def stored(self, values: tuple[Expr, ...], at: Place) -> Expr:
        """What `finished` gave for each matrix, with the residual, in the output's format."""
        value, *up = values
        if self.spec.gated:
            value = activation(self.spec.activation_fn, value, self.target)
        if self.spec.out == "int32":
            return value
        return functions.beneath(value, lambda result: self.in_format(result, up, at))

    def in_format(self, value: Expr, up: list[Expr], at: Place) -> Expr:
        """As `stored`, of a result in float32, or of a gate's and of `up`."""
        spec, target = self.spec, self.target
        if up and not spec.residual:
            value = value * up[0]
        if spec.residual:
            added = functions.widen(self.inputs["residual"][at], spec.residual_dtype, target)
            if up:
                value = multiply_add(target, value, up[0], added)
            elif self.residual_is_addend:
                value = multiply_add(target, value, self.x_scale(0, at), added)
            else:
                value = value + added
        if not spec.requantized:
            return functions.narrow(value, spec.out, target)
        quotient = value / self.inputs["out_scale"][0]
        zero_point = self.inputs["out_zero_point"][0]
        return functions.to_integer(quotient, zero_point, spec.out).astype(spec.out)
