"""The first half of the TensorExpression: X becomes the bytes that the instruction reads.

    x_range[mo, mi, r]             the range of a row, as integers that sort like its floats
    x_scale, x_zero_point          what `quantize` makes of that range
    xq[mo, mi, kb, r, kk]          the integers, block after block; see `WeightLayout`
    xp[mo, mi, kb, r, ...]         what the instruction reads: xq itself, or two components,
                                   magnitudes and signs or even and odd k
    x_sum[mo, mi, g, r]            sums of xq over each group
    x_extra[mo, mi, g, r]          sums that the instruction adds for X alone

Only what a spec needs is there: integers that arrive quantized are only copied. Positions of xq
that stand for no k hold 0, so that they add nothing to a product or a sum.

NaN and infinity sort above every finite number, so the range of a row that holds one is not finite.
The scale of such a row is NaN, and so are its float results; other rows never see it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import te, tirx
from tvm.ir import Expr

from ...formats.integers import INTEGERS
from ...formats.spec import MatmulSpec
from ...schedules.cpu.plan import CpuPlan
from ...targets import Chip, Target, WeightLayout
from . import components, functions

#: Sums of activations are formed in vectors of this many int32.
SUM_LANES = 16

#: The bits of float32 numbers.
INFINITY, NAN = 0x7F800000, 0x7FC00000

#: What the multiplication reads of the packed activations. Other stages serve these alone.
RESULTS = ("xp", "x_scale", "x_zero_point", "x_sum", "x_extra")

PerRow = Callable[[Expr, Expr, Expr], Expr]


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
class Packed:
    """The quantized activations.

    Attributes
    ----------
    stages : the tensors that are computed, in order.
    scale, zero_point : of the row (o, i, r); no zero point where the spec has none.
    sums, extra : of the integers of a group, and what the instruction adds for them beside the dot
        product, (o, i, group, r), where the correction needs them.
    """

    stages: dict[str, te.Tensor]
    scale: PerRow
    zero_point: PerRow | None
    sums: Callable[..., Expr] | None
    extra: Callable[..., Expr] | None = None

    @property
    def scratch(self) -> tuple[str, ...]:
        """Names of the stages that only the packing reads."""
        return tuple(name for name in self.stages if name not in RESULTS)


def pack(plan: CpuPlan, rows: Rows, inputs: dict[str, te.Tensor]) -> Packed:
    """X of `inputs` in the order in which a tile reads it."""
    spec, layout, target, one = plan.spec, plan.layout, plan.target, plan.instruction
    stages: dict[str, te.Tensor] = {}
    scale, zero_point = scales(spec, target, rows, inputs, stages)

    def byte(o: Expr, i: Expr, r: Expr, start: Expr, kk: Expr) -> Expr:
        """The integer at position `kk` of the block of K that starts at `start`."""
        row, dtype = rows.at(o, i, r), one.x_dtype
        x = inputs["x"]
        if spec.packed_activation:
            half = layout.k_block // 2
            nibble = x[row, start // 2 + kk % half].astype("int32") >> (kk // half * 4) & 15
            return ((nibble ^ 8) + (plan.x_offset - 8)).astype(dtype)
        value = x[row, start + kk]
        if spec.input is None:
            # The other sign of a byte is its upper bit.
            value = value.astype(dtype)
            return (
                value ^ tirx.const(-128 if dtype == "int8" else 128, dtype)
                if plan.x_offset
                else value
            )
        zero = None if zero_point is None else zero_point(o, i, r)
        return quantized(spec, target, value, scale(o, i, r), zero, plan.x_offset).astype(dtype)

    def at_position(o: Expr, i: Expr, kb: Expr, r: Expr, kk: Expr) -> Expr:
        return in_blocks(layout, kb, kk, lambda start, at: byte(o, i, r, start, at), one.x_dtype)

    def in_steps(o: Expr, i: Expr, kb: Expr, r: Expr, step: Expr, d: Expr) -> Expr:
        return at_position(o, i, kb, r, step * one.depth + d)

    outer = rows.mo, rows.mi, layout.k_blocks, rows.per_tile
    in_components = one.form.x_components > 1
    if in_components:
        shape = *outer, layout.k_block // one.depth, one.depth
        stages["xq"] = xq = te.compute(shape, in_steps, "xq")
        stages["xp"] = components.both(xq, one)
    else:
        stages["xp"] = xq = te.compute((*outer, layout.k_block), at_position, "xp")

    def integer(*at: Expr) -> Expr:
        *place, kk = at
        index = (*place, kk // one.depth, kk % one.depth) if in_components else at
        return xq[index].astype("int32")

    if plan.needs_x_sum:
        # With zero points the weight's part of the correction differs from column to column;
        # without, these are the correction.
        factor = 1 if spec.weight_zero_point else -plan.w_offset
        # A matrix instruction's activations lie in pieces of its depth.
        piece = layout.k_block if one.rows == 1 else one.depth
        stages |= group_sums(layout, layout.k_block, piece, rows, integer, "x_sum", factor)
    if plan.needs_x_extra:
        term, before = components.extra(one.form, integer, stages["xp"])
        terms = layout.k_block // one.form.k_per_product
        stages |= before | group_sums(layout, terms, terms, rows, term, "x_extra")

    def sums(name: str) -> Callable[..., Expr] | None:
        stage = stages.get(name)
        return None if stage is None else lambda *at: stage[at]

    return Packed(stages, scale, zero_point, sums("x_sum"), sums("x_extra"))


def scales(
    spec: MatmulSpec,
    target: Chip,
    rows: Rows,
    inputs: dict[str, te.Tensor],
    stages: dict[str, te.Tensor],
) -> tuple[PerRow, PerRow | None]:
    """Scale and zero point of every row: given, or from its range by `stages` that this adds."""
    if spec.dynamic:
        return own_range(spec, target, rows, inputs["x"], stages)
    zero_point = None
    if spec.activation_zero_point:
        zero_point = given(spec, rows, inputs["x_zero_point"])
    return given(spec, rows, inputs["x_scale"]), zero_point


def quantized(
    spec: MatmulSpec, target: Chip, value: Expr, scale: Expr, zero: Expr | None, offset: int = 0
) -> Expr:
    """A float of X as an integer plus `offset`, in the lower byte of an int32."""
    assert spec.input is not None
    zero = tirx.const(0, "int32") if zero is None else zero
    quotient = functions.widen(value, spec.input, target) / scale
    return functions.to_integer(quotient, zero, spec.activation, offset)


def in_blocks(
    layout: WeightLayout, kb: Expr, kk: Expr, byte: Callable[[Expr, Expr], Expr], dtype: str
) -> Expr:
    """What stands at position `kk` of block `kb`: `byte(start, kk)`, or 0 where there is no k."""
    whole = layout.k // layout.k_block
    start = kb * layout.k_block
    if whole == layout.k_blocks:
        return byte(start, kk)
    column = position(layout, kk)
    if layout.last_start >= 0:
        first = whole * layout.k_block - layout.last_start  # the first that is not a repetition
        last, own = byte(tirx.const(layout.last_start, "int32"), kk), column >= first
        if layout.k_even > layout.k:
            own = tirx.And(own, column < layout.k_block - 1)
    else:
        last, own = byte(tirx.const(0, "int32"), within(layout, kk)), column < layout.k
    nothing = tirx.const(0, dtype)
    result = tirx.Select(own, last, nothing)
    if whole + 1 < layout.k_blocks:
        result = tirx.if_then_else(kb == whole, result, nothing)
    return result if whole == 0 else tirx.if_then_else(kb < whole, byte(start, kk), result)


def group_sums(
    layout: WeightLayout,
    terms: int,
    piece: int,
    rows: Rows,
    term: Callable[..., Expr],
    name: str,
    factor: int = 1,
) -> dict[str, te.Tensor]:
    """`factor` times the sum of every group of every row, first in lanes and then across them.

    A block of K has as many `terms`, `term(o, i, kb, r, kk)`, of which each `piece` lies together.
    """
    per_group = layout.k_blocks // layout.groups
    lanes = min(SUM_LANES, piece)
    kb, step = te.reduce_axis((0, per_group), "kb"), te.reduce_axis((0, terms // lanes), "step")
    across = te.reduce_axis((0, lanes), "l")

    def partial(o: Expr, i: Expr, g: Expr, r: Expr, lane: Expr) -> Expr:
        return te.sum(term(o, i, g * per_group + kb, r, step * lanes + lane), axis=[kb, step])

    shape = rows.mo, rows.mi, layout.groups, rows.per_tile
    in_lanes = te.compute((*shape, lanes), partial, f"{name}_lanes")
    sums = te.compute(
        shape,
        lambda o, i, g, r: te.sum(in_lanes[o, i, g, r, across] * factor, axis=across),
        name,
    )
    return {f"{name}_lanes": in_lanes, name: sums}


def position(layout: WeightLayout, kk: Expr) -> Expr:
    """How far behind its block's start the k at position `kk` lies."""
    half = layout.k_block // 2
    return kk % half * 2 + kk // half if layout.pairs else kk


def within(layout: WeightLayout, kk: Expr) -> Expr:
    """`kk`, or where X is shorter than a block and ends before it, a position that X has."""
    if not layout.pairs:
        return tirx.min(kk, layout.k - 1)
    half = layout.k_block // 2
    return tirx.min(kk % half, layout.k_even // 2 - 1) + kk // half * half


def own_range(
    spec: MatmulSpec, target: Chip, rows: Rows, x: te.Tensor, stages: dict[str, te.Tensor]
) -> tuple[PerRow, PerRow | None]:
    """Scale and zero point of every row from its own range, as `quantize` finds them."""
    given_as = spec.input
    assert given_as is not None
    least, greatest = INTEGERS[spec.activation].range
    k = te.reduce_axis((0, spec.k), "k")

    def raw(o: Expr, i: Expr, r: Expr, at: Expr) -> Expr:
        return functions.bits(functions.widen(x[rows.at(o, i, r), at], given_as, target))

    def scale_stage(width: PerRow, steps: int) -> te.Tensor:
        def scale(o: Expr, i: Expr, r: Expr) -> Expr:
            wide = width(o, i, r)
            value = wide / tirx.const(steps, "float32")
            one = tirx.const(1, "float32")
            scale = tirx.Select(value == tirx.const(0, "float32"), one, value)
            # An infinite scale would not do: relu makes numbers of infinities that have the wrong
            # sign, and those depend on integers that mean nothing.
            infinite = (functions.bits(wide) & 0x7FFFFFFF) >= INFINITY
            return tirx.Select(infinite, functions.from_bits(tirx.const(NAN, "int32")), scale)

        stages["x_scale"] = te.compute(rows.shape, scale, "x_scale")
        return stages["x_scale"]

    if not spec.activation_zero_point:
        stages["x_range"] = magnitude = te.compute(
            rows.shape,
            lambda o, i, r: te.max(raw(o, i, r, k) & 0x7FFFFFFF, axis=k),
            "x_range",
        )
        scale = scale_stage(lambda *at: functions.from_bits(magnitude[at]), greatest)
        return lambda *at: scale[at], None

    def keys(o: Expr, i: Expr, r: Expr) -> Expr:
        return ordered(raw(o, i, r, k))

    def end(key: PerRow, bound: Callable[[Expr, Expr], Expr]) -> PerRow:
        return lambda *at: functions.from_bits(ordered(bound(key(*at), tirx.const(0, "int32"))))

    high, low = both_ends(rows, keys, k, stages, at_once=isinstance(target, Target))
    top, bottom = end(high, tirx.max), end(low, tirx.min)
    scale = scale_stage(lambda *at: top(*at) - bottom(*at), greatest - least)

    def zero(o: Expr, i: Expr, r: Expr) -> Expr:
        value = tirx.const(least, "float32") - bottom(o, i, r) / scale[o, i, r]
        return functions.to_integer(value, tirx.const(0, "int32"), spec.activation) & 0xFF

    def signed(o: Expr, i: Expr, r: Expr) -> Expr:
        low_byte = zero(o, i, r)
        return low_byte if least == 0 else (low_byte ^ 128) - 128

    stages["x_zero_point"] = zero_point = te.compute(rows.shape, signed, "x_zero_point")
    return lambda *at: scale[at], lambda *at: zero_point[at]


def both_ends(
    rows: Rows, keys: PerRow, k: te.IterVar, stages: dict[str, te.Tensor], *, at_once: bool
) -> tuple[PerRow, PerRow]:
    """The greatest and the least key of every row, found in one pass or in two.

    TVM shares out among the threads of a GPU only reductions to one number; the least key is then
    the complement of the greatest complement.
    """
    if not at_once:
        greatest = te.compute(rows.shape, lambda *at: te.max(keys(*at), axis=k), "x_range")
        least = te.compute(rows.shape, lambda *at: te.max(~keys(*at), axis=k), "x_range_low")
        stages |= {"x_range": greatest, "x_range_low": least}
        return lambda *at: greatest[at], lambda *at: ~least[at]
    both = te.comm_reducer(
        lambda a, b: (tirx.max(a[0], b[0]), tirx.min(a[1], b[1])),
        lambda *dtypes: (tirx.min_value("int32"), tirx.max_value("int32")),
    )
    high, low = te.compute(
        rows.shape,
        lambda o, i, r: both((keys(o, i, r), keys(o, i, r)), axis=k),
        "x_range",
    )
    stages["x_range"] = high
    return lambda *at: high[at], lambda *at: low[at]


def ordered(raw: Expr) -> Expr:
    """The bits of a float32 as an int32 that sorts like it, and back: its own inverse."""
    return raw ^ ((raw >> 31) & 0x7FFFFFFF)


def given(spec: MatmulSpec, rows: Rows, values: te.Tensor) -> PerRow:
    """An argument of one number, or one per row."""
    if spec.activation_scale == "row":
        return lambda o, i, r: values[rows.at(o, i, r)]
    return lambda o, i, r: values[0]
