"""Scales and zero points of X: given, or found in X itself.

NaN and infinity sort above every finite number, so the range of a row that holds one is not finite.
The scale of such a row is NaN, and so are its float results; other rows never see it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from ...formats.integers import INTEGERS
from ...formats.spec import MatmulSpec
from ...targets import Chip
from . import functions

#: The bits of float32 numbers.
INFINITY, NAN = 0x7F800000, 0x7FC00000

#: A number of the group g of a row, (o, i, g, r); of the whole row where that has one scale.
PerScale = Callable[[Expr, Expr, Expr | int, Expr], Expr]
#: A number at an index of a stage of `Spans`; of a reduction to two numbers both.
Stage = Callable[..., Any]


@dataclass(frozen=True)
class Rows:
    """The run-time numbers of one function, and where its tiles lie in X."""

    m: tirx.Var
    mo: tirx.Var
    mi: tirx.Var
    per_tile: int

    @property
    def shape(self) -> tuple[Expr, Expr, int]:
        """One number per row of every tile."""
        return self.mo, self.mi, self.per_tile

    def at(self, o: Expr, i: Expr, r: Expr) -> Expr:
        """The row of X that row `r` of tile (o, i) computes."""
        return tirx.min((o * self.mi + i) * self.per_tile + r, self.m - 1)


@dataclass(frozen=True)
class Spans:
    """The parts of X that have a scale each, rows or groups of rows, and stages of a number each.

    Attributes
    ----------
    groups : scales of a row; those behind the last group of a spec are that group's.
    lanes : numbers of a group whose range is found in a vector of so many; 1 for one by one.
    """

    spec: MatmulSpec
    rows: Rows
    groups: int
    lanes: int = 1

    def stage(self, number: Stage, name: str) -> te.Tensor:
        """A stage of `number(o, i, r)`, or `number(o, i, g, r)` where there are several groups."""
        o, i, r = self.rows.shape
        shape = (o, i, r) if self.groups == 1 else (o, i, self.groups, r)
        axes = ["o", "i", "r"] if self.groups == 1 else ["o", "i", "g", "r"]
        return te.compute(shape, number, name, varargs_names=axes)

    def of(self, stage: te.Tensor) -> PerScale:
        """The numbers of a stage."""
        if self.groups == 1:
            return lambda o, i, g, r: stage[o, i, r]
        return lambda o, i, g, r: stage[o, i, g, r]

    @property
    def size(self) -> int:
        """Numbers that a scale covers, or fewer in the last group."""
        return self.spec.k if self.groups == 1 else self.spec.k_of_group

    def number(self, x: te.Tensor, at: tuple[Expr, ...], k: Expr, lane: Expr | int = 0) -> Expr:
        """Number `k` + `lane` of what a scale covers; in a short group some that are there again.

        Those of a vector lie together wherever the group has as many.
        """
        o, i, *group, r = at
        row = self.rows.at(o, i, r)
        if not group:
            return x[row, k]
        last = self.spec.groups - 1
        within = x[row, group[0] * self.size + k + lane]
        short = self.spec.k - last * self.size
        if short == self.size and self.groups == self.spec.groups:
            return within
        start = tirx.min(k, max(0, short - self.lanes))
        behind = x[row, last * self.size + start + tirx.min(lane, short - 1)]
        return tirx.if_then_else(group[0] < last, within, behind)

    def greatest(
        self, x: te.Tensor, key: Callable[[Expr], Expr], name: str, stages: dict[str, te.Tensor]
    ) -> te.Tensor:
        """The stage `name`, the greatest key of what each scale covers; in lanes before it."""
        if self.lanes == 1:
            k = te.reduce_axis((0, self.size), "k")
            stages[name] = self.stage(lambda *at: te.max(key(self.number(x, at, k)), axis=k), name)
            return stages[name]
        step = te.reduce_axis((0, self.size // self.lanes), "step")
        across = te.reduce_axis((0, self.lanes), "l")

        def in_lane(*at: Expr) -> Expr:
            *place, lane = at
            number = self.number(x, tuple(place), step * self.lanes, lane)
            return te.max(key(number), axis=step)

        o, i, r = self.rows.shape
        axes, shape = ["o", "i", "g", "r", "lane"], (o, i, self.groups, r, self.lanes)
        lanes = te.compute(shape, in_lane, f"{name}_lanes", varargs_names=axes)
        stages[f"{name}_lanes"] = lanes

        def across_lanes(*at: Expr) -> Expr:
            index = *at, across
            return te.max(lanes[index], axis=across)

        stages[name] = self.stage(across_lanes, name)
        return stages[name]


def scales(
    spans: Spans, target: Chip, inputs: dict[str, te.Tensor], stages: dict[str, te.Tensor]
) -> tuple[PerScale, PerScale | None]:
    """Scales and zero points of X: given, or from its ranges by `stages` that this adds."""
    if spans.spec.dynamic:
        return own_range(spans, target, inputs["x"], stages)
    zero_point = None
    if spans.spec.activation_zero_point:
        zero_point = given(spans, inputs["x_zero_point"])
    return given(spans, inputs["x_scale"]), zero_point


def in_tiles(
    spans: Spans, scale: PerScale, zero_point: PerScale | None, stages: dict[str, te.Tensor]
) -> tuple[PerScale, PerScale | None]:
    """Given scales and zero points as stages: those of a tile's rows side by side in each group."""
    stages["x_scale"] = spans.stage(scale, "x_scale")
    if zero_point is not None:
        stages["x_zero_point"] = spans.stage(zero_point, "x_zero_point")
        zero_point = spans.of(stages["x_zero_point"])
    return spans.of(stages["x_scale"]), zero_point


def quantized(
    spec: MatmulSpec, target: Chip, value: Expr, scale: Expr, zero: Expr | None, offset: int = 0
) -> Expr:
    """A float of X as an integer plus `offset`, in the lower byte of an int32."""
    assert spec.input is not None
    zero = tirx.const(0, "int32") if zero is None else zero
    quotient = functions.widen(value, spec.input, target) / scale
    return functions.to_integer(quotient, zero, spec.activation, offset)


def own_range(
    spans: Spans, target: Chip, x: te.Tensor, stages: dict[str, te.Tensor]
) -> tuple[PerScale, PerScale | None]:
    """Scales and zero points of X from its own ranges, as `quantize` finds them."""
    spec = spans.spec
    given_as = spec.input
    assert given_as is not None
    least, greatest = INTEGERS[spec.activation].range

    def raw(number: Expr) -> Expr:
        return functions.bits(functions.widen(number, given_as, target))

    def scale_stage(width: Stage, steps: int) -> te.Tensor:
        def scale(*at: Expr) -> Expr:
            wide = width(*at)
            value = wide / tirx.const(steps, "float32")
            one = tirx.const(1, "float32")
            scale = tirx.Select(value == tirx.const(0, "float32"), one, value)
            # An infinite scale would not do: relu makes numbers of infinities that have the wrong
            # sign, and those depend on integers that mean nothing.
            infinite = (functions.bits(wide) & 0x7FFFFFFF) >= INFINITY
            return tirx.Select(infinite, functions.from_bits(tirx.const(NAN, "int32")), scale)

        stages["x_scale"] = spans.stage(scale, "x_scale")
        return stages["x_scale"]

    if not spec.activation_zero_point:
        magnitude = spans.greatest(x, lambda number: raw(number) & 0x7FFFFFFF, "x_range", stages)
        scale = scale_stage(lambda *at: functions.from_bits(magnitude[at]), greatest)
        return spans.of(scale), None

    def end(key: Stage, bound: Callable[[Expr, Expr], Expr]) -> Stage:
        return lambda *at: functions.from_bits(ordered(bound(key(*at), tirx.const(0, "int32"))))

    at_once = target.device == "cpu" and spans.lanes == 1
    high, low = both_ends(spans, x, lambda each: ordered(raw(each)), stages, at_once=at_once)
    top, bottom = end(high, tirx.max), end(low, tirx.min)
    scale = scale_stage(lambda *at: top(*at) - bottom(*at), greatest - least)

    def zero(*at: Expr) -> Expr:
        value = tirx.const(least, "float32") - bottom(*at) / scale[at]
        return functions.to_integer(value, tirx.const(0, "int32"), spec.activation) & 0xFF

    def signed(*at: Expr) -> Expr:
        low_byte = zero(*at)
        return low_byte if least == 0 else (low_byte ^ 128) - 128

    stages["x_zero_point"] = zero_point = spans.stage(signed, "x_zero_point")
    return spans.of(scale), spans.of(zero_point)


def both_ends(
    spans: Spans,
    x: te.Tensor,
    key: Callable[[Expr], Expr],
    stages: dict[str, te.Tensor],
    *,
    at_once: bool,
) -> tuple[Stage, Stage]:
    """The greatest and the least key of what a scale covers, found in one pass or in two.

    TVM shares out among the threads of a GPU only reductions to one number; the least key is then
    the complement of the greatest complement.
    """
    if not at_once:
        greatest = spans.greatest(x, key, "x_range", stages)
        least = spans.greatest(x, lambda number: ~key(number), "x_range_low", stages)
        return lambda *at: greatest[at], lambda *at: ~least[at]
    k = te.reduce_axis((0, spans.size), "k")
    both = te.comm_reducer(
        lambda a, b: (tirx.max(a[0], b[0]), tirx.min(a[1], b[1])),
        lambda *dtypes: (tirx.min_value("int32"), tirx.max_value("int32")),
    )

    def ends(*at: Expr) -> Any:
        keys = key(spans.number(x, at, k)), key(spans.number(x, at, k))
        return both(keys, axis=k)

    high, low = spans.stage(ends, "x_range")
    stages["x_range"] = high
    return lambda *at: high[at], lambda *at: low[at]


def exact_sum(spec: MatmulSpec, value: Expr, shift: Expr, group: Expr) -> Expr:
    """A sum over a group of numbers to which `shift` was added, in float32 and without that."""
    last = spec.groups - 1
    size = tirx.const(spec.k_of_group, "int32")
    short = tirx.const(spec.k - last * spec.k_of_group, "int32")
    return (value - shift * tirx.Select(group == last, short, size)).astype("float32")


def ordered(raw: Expr) -> Expr:
    """The bits of a float32 as an int32 that sorts like it, and back: its own inverse."""
    return raw ^ ((raw >> 31) & 0x7FFFFFFF)


def given(spans: Spans, values: te.Tensor) -> PerScale:
    """An argument of one number, of one per row, or of one per row and group."""
    at, last = spans.rows.at, spans.spec.groups - 1
    if spans.spec.activation_scale == "tensor":
        return lambda o, i, g, r: values[0]
    if spans.spec.activation_scale == "row":
        return lambda o, i, g, r: values[at(o, i, r)]
    if spans.groups <= last + 1:
        return lambda o, i, g, r: values[at(o, i, r), g]
    return lambda o, i, g, r: values[at(o, i, r), tirx.min(g, last)]
