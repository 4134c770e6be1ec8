"""The first half of the TensorExpression: X becomes the bytes that the instruction reads.

    x_range[mo, mi, r]             the range of a row, as integers that sort like its floats; of a
                                   group first in lanes, then across them
    x_scale, x_zero_point          what `quantize` makes of that range, or what is given
    xq[mo, mi, kb, r, kk]          the integers, block after block; see `WeightLayout`
    xp[mo, mi, kb, r, ...]         what the instruction reads: xq itself, or two components,
                                   magnitudes and signs or even and odd k
    x_sum[mo, mi, g, r]            sums of xq over each group, as they correct sums of products
    x_part, x_exact                the same as they are, and of X itself in float32: with offsets
    x_extra[mo, mi, g, r]          sums that the instruction adds for X alone

Only what a spec needs is there: integers that arrive quantized are only copied. Positions of xq
that stand for no k hold 0, so that they add nothing to a product or a sum. Where groups have scales
of their own, the first two lines have an axis more, [mo, mi, g, r] (`Spans`), and scales that are
given are brought into that order, in which the end of a group reads them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tvm import te, tirx
from tvm.ir import Expr

from ...formats.spec import MatmulSpec
from ...schedules.cpu.plan import CpuPlan
from ...targets import WeightLayout
from . import components
from .scales import PerScale, Rows, Spans, exact_sum, in_tiles, quantized, scales

#: Sums of activations are formed in vectors of this many int32.
SUM_LANES = 16
#: Ranges of groups in vectors of this many float32, or fewer where a group is no multiple of it.
RANGE_LANES = 16

#: What the multiplication reads of the packed activations. Other stages serve these alone.
RESULTS = ("xp", "x_scale", "x_zero_point", "x_sum", "x_exact", "x_extra")


@dataclass(frozen=True)
class Packed:
    """The quantized activations.

    Attributes
    ----------
    stages : the tensors that are computed, in order.
    scale, zero_point : of a group of a row; no zero point where the spec has none.
    sums, extra : of the integers of a group, and what the instruction adds for them beside the dot
        product, (o, i, group, r), where the correction needs them.
    exact_sums : of X without its zero points, float32, where offsets are multiplied with them; in
        units of the group's scale where that has its own.
    """

    stages: dict[str, te.Tensor]
    scale: PerScale
    zero_point: PerScale | None
    sums: Callable[..., Expr] | None
    extra: Callable[..., Expr] | None = None
    exact_sums: Callable[..., Expr] | None = None

    @property
    def scratch(self) -> tuple[str, ...]:
        """Names of the stages that only the packing reads."""
        return tuple(name for name in self.stages if name not in RESULTS)


def pack(plan: CpuPlan, rows: Rows, inputs: dict[str, te.Tensor]) -> Packed:
    """X of `inputs` in the order in which a tile reads it."""
    spec, layout, target, one = plan.spec, plan.layout, plan.target, plan.instruction
    stages: dict[str, te.Tensor] = {}
    spans = Spans(spec, rows, spec.x_groups, range_lanes(spec))
    scale, zero_point = scales(spans, target, inputs, stages)
    if spec.x_groups > 1 and not spec.dynamic:
        scale, zero_point = in_tiles(spans, scale, zero_point, stages)

    def byte(o: Expr, i: Expr, g: Expr, r: Expr, start: Expr, kk: Expr) -> Expr:
        """The integer at position `kk` of the block of K that starts at `start`, of group `g`."""
        row, dtype = rows.at(o, i, r), one.x_dtype
        x = inputs["x"]
        if spec.packed_activation:
            half = layout.k_block // 2
            nibble = x[row, start // 2 + kk % half].astype("int32") >> (kk // half * 4) & 15
            return ((nibble ^ 8) + (plan.x_shift - 8)).astype(dtype)
        value = x[row, column_of(spec, inputs, start + kk)]
        if spec.input is None:
            # The other sign of a byte is its upper bit.
            value = value.astype(dtype)
            return (
                value ^ tirx.const(-128 if dtype == "int8" else 128, dtype)
                if plan.x_shift
                else value
            )
        zero = None if zero_point is None else zero_point(o, i, g, r)
        return quantized(spec, target, value, scale(o, i, g, r), zero, plan.x_shift).astype(dtype)

    def at_position(o: Expr, i: Expr, kb: Expr, r: Expr, kk: Expr) -> Expr:
        g = kb // (layout.k_blocks // layout.groups)
        return in_blocks(layout, kb, kk, lambda start, at: byte(o, i, g, r, start, at), one.x_dtype)

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

    # With zero points the weight's part of the correction differs from column to column; without,
    # these are the correction.
    factor = 1 if spec.weight_zero_point else -plan.w_shift
    # A matrix instruction's activations lie in pieces of its depth.
    piece = layout.k_block if one.rows == 1 else one.depth
    if spec.weight_offset:
        stages |= group_sums(layout, layout.k_block, piece, rows, integer, "x_part")
        stages["x_exact"] = exact_sums(plan, stages["x_part"], scale, zero_point)
        if plan.corrects_with_x_sum:
            part = stages["x_part"]
            stages["x_sum"] = te.compute(part.shape, lambda *at: part[at] * factor, "x_sum")
    elif plan.corrects_with_x_sum:
        stages |= group_sums(layout, layout.k_block, piece, rows, integer, "x_sum", factor)
    if plan.needs_x_extra:
        term, before = components.extra(one.form, integer, stages["xp"])
        terms = layout.k_block // one.form.k_per_product
        stages |= before | group_sums(layout, terms, terms, rows, term, "x_extra")

    def sums(name: str) -> Callable[..., Expr] | None:
        stage = stages.get(name)
        return None if stage is None else lambda *at: stage[at]

    return Packed(stages, scale, zero_point, sums("x_sum"), sums("x_extra"), sums("x_exact"))


def column_of(spec: MatmulSpec, inputs: dict[str, te.Tensor], k: Expr) -> Expr:
    """The column of X that the weight's column `k`, as it is stored, is multiplied with."""
    return inputs["w_order"][k] if spec.weight_order else k


def range_lanes(spec: MatmulSpec) -> int:
    """Lanes in which the range of a group is found; of a row LLVM makes vectors itself."""
    return 1 if spec.x_groups == 1 else math.gcd(spec.k_of_group, RANGE_LANES)


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


def exact_sums(
    plan: CpuPlan, sums: te.Tensor, scale: PerScale, zero_point: PerScale | None
) -> te.Tensor:
    """What offsets are multiplied with, from the sums of what the instruction reads."""

    def exact(o: Expr, i: Expr, g: Expr, r: Expr) -> Expr:
        shift = tirx.const(plan.x_shift, "int32")
        if zero_point is not None:
            shift = shift + zero_point(o, i, g, r)
        value = exact_sum(plan.spec, sums[o, i, g, r], shift, g)
        return value * scale(o, i, g, r) if plan.spec.x_groups > 1 else value

    return te.compute(sums.shape, exact, "x_exact")


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
