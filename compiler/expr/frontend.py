"""The multiplication as a TensorExpression, for one strategy's tile of rows.

    xp[mo, mi, kb, r, kk]          the activations in blocks; `activations` has the way there
    wu[nb, step, l, d]             weights as the instruction reads them      4 bits, or even and
                                                                              odd ones, widened
    acc[mo, mi, p, r, nb, l]       sum over the k of part p of xp * w         the dot products
    sums[mo, mi, p, r, nb, l]      acc, where no vector can hold it           matrix tiles
    total[mo, mi, r, nb, l]        sum over p of acc, for groups times scale  where K is in parts
    y[mo, mi, r, nb, l]            epilogue(total or acc)                     one tile of the output

with row = (mo * mi_extent + mi) * rows + r; `fragments` says how (r, nb, l) of acc and sums lie.
What lies beyond the matrix (rows of the last tile, blocks of the last panel) is computed from its
last row or block and never stored: `rewrite.stores` maps y to the caller's array. M and the two
tile counts are run-time numbers, so one function serves every M.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from ...schedules import fragments
from ...schedules.arguments import ARGUMENTS, UNIT, Of, arguments
from ...schedules.cpu.plan import CpuPlan
from ...schedules.cpu.program import Parameters, Program, fitted, parts_of, x_steps
from ...schedules.plan import MAX_ELEMENTS, Plan
from ...targets import Instruction, WeightLayout
from .activations import Packed, pack
from .epilogue import Epilogue
from .products import product
from .scales import Rows

#: Names of the axes of a tile, by which steps of schedules find their loops; see `fragments` too.
TILE = ["o", "i", "r", "nb", "lane"]


def program(plan: CpuPlan, parameters: Parameters, instruction: Instruction) -> Program:
    """The TensorExpression of a plan in tiles of `rows` x `blocks * lanes`, by `instruction`.

    Shapes of the arguments: x (M, k), or (M, ceil(k / 2)) for packed int4; w `layout.shape`; w_sum,
    w_extra (int32), w_zero_point, w_scale and w_offset (n_blocks, groups, lanes); w_order (k,);
    bias (n_blocks, 1, lanes); x_scale and x_zero_point (1,), (M,) or (M, groups) as
    `spec.activation_scale` says; out_scale and out_zero_point (1,); residual and y in tiles.
    """
    spec, layout, tile = plan.spec, plan.layout, parameters.tile
    names = arguments(plan)
    instruction = fitted(instruction, layout, tile)
    plan = dataclasses.replace(plan, instruction=instruction)
    m, mo, mi = (tirx.Var(name, "int32") for name in ("m", "mo", "mi"))
    rows = Rows(m, mo, mi, tile.rows)
    tasks = -(-layout.n_blocks // tile.width)
    shape = (*rows.shape, tasks * tile.width, layout.lanes)
    y_shape = (*rows.shape, tasks * tile.width // layout.matrices, layout.lanes)
    inputs = placeholders(plan, rows, y_shape)
    packed = pack(plan, rows, inputs)

    block = last_again(shape[3], layout.n_blocks)
    parts = parts_of(layout, instruction, parameters)
    sums = dot_products(layout, instruction, parts, packed, inputs["w"], shape, block)
    part = te.reduce_axis((0, parts), "part")
    ending = Epilogue(plan, packed, inputs, block)

    def dots(p: Expr | int, at: tuple[Expr, ...]) -> Expr:
        o, i, *place = at
        index = o, i, p, *fragments.sums_at(instruction, layout.lanes, *place)
        return sums[index]

    def term(*at: Expr) -> Expr:
        return te.sum(ending.of_part(dots(part, at), part, at), axis=part)

    if parts > 1:
        total = te.compute(shape, term, "total", varargs_names=TILE)

    def value(*at: Expr) -> Expr:
        """Everything of the epilogue that needs no array of the output's shape."""
        return ending.whole(total[at] if parts > 1 else dots(0, at), at)

    stages: tuple[str, ...] = ("y",)
    if spec.n < layout.lanes:
        # The only block is stored one column at a time. From memory: indexed one by one, the
        # accumulators could not stay in registers.
        stages = ("whole", "y")
        whole = te.compute(shape, value, "whole", varargs_names=TILE)

    def result(*at: Expr) -> Expr:
        found = (lambda *at: whole[at]) if "whole" in stages else value
        return ending.stored(ending.of_matrices(found, at), at)

    y = te.compute(y_shape, result, "y", varargs_names=TILE)
    ordered = [inputs[name] for name in names[:-1]]
    func = te.create_prim_func([*ordered, y, rows.mo, rows.mi])
    return Program(
        func,
        tuple(packed.stages),
        packed.scratch,
        stages,
        parts,
        parameters,
        layout,
        instruction,
        in_units=spec.experts is not None,
    )


def placeholders(
    plan: Plan[Any, Any],
    rows: Rows,
    tiles: tuple[Expr | int, ...],
    own: Mapping[str, tuple[tuple[Expr | int, ...], str]] | None = None,
) -> dict[str, te.Tensor]:
    """Every array that a kernel may take, by name.

    Parameters
    ----------
    own : shapes and dtypes of those that are not read as the caller brings them.
    """
    spec, layout = plan.spec, plan.layout
    scales = {"tensor": (1,), "row": (rows.m,), "group": (rows.m, spec.groups)}
    shapes: dict[Of, tuple[Expr | int, ...]] = {
        "x": (rows.m, spec.x_columns),
        "weight": counted(layout.shape),
        "group": (layout.n_blocks, layout.groups, layout.lanes),
        "column": (layout.n_blocks, 1, layout.lanes),
        "k": (spec.k,),
        "scale of x": scales[spec.activation_scale],
        "row and group": (rows.m, layout.groups),
        "call": (1,),
        "unit": (tirx.Var("units", "int32"), len(UNIT)),
        "result": tiles,
    }
    found = {
        each.name: (shapes[each.of], each.dtype(plan)) for each in ARGUMENTS if each.name != "y"
    }
    return {
        name: te.placeholder(shape, dtype, name)
        for name, (shape, dtype) in {**found, **(own or {})}.items()
    }


def last_again(blocks: int, there: int) -> Callable[[Expr], Expr]:
    """Maps blocks of a tile, which may lie behind the last one that is there, to ones that are."""
    return lambda nb: nb if blocks == there else tirx.min(nb, there - 1)


def counted(shape: tuple[int, ...]) -> tuple[tirx.IntImm, ...]:
    """The shape of a packed weight, whose last offset is in int32.

    The number of its elements may be one too many for that, and then has 64 bits.
    """
    counts = "int64" if math.prod(shape) > MAX_ELEMENTS else "int32"
    return tuple(tirx.IntImm(counts, size) for size in shape)


def dot_products(
    layout: WeightLayout,
    instruction: Instruction,
    parts: int,
    packed: Packed,
    w: te.Tensor,
    tiles: tuple[Expr | int, ...],
    block: Callable[[Expr], Expr],
) -> te.Tensor:
    """The block "acc", before it "wu" where weights are not multiplied as they are stored.

    Behind it "sums" where the instruction keeps its sums in registers of its own.
    """
    mo, mi, rows, n_blocks, lanes = tiles
    depth = layout.depth
    form = instruction.form
    in_components = form.w_components > 1
    # Terms of a step and of a block of K; a step is what a piece of the layout holds.
    step, k_block = depth // form.k_per_product, layout.k_block // form.k_per_product

    def even_or_odd(nb: Expr, at: Expr, component: Expr, column: Expr) -> Expr:
        return w[block(nb), at, column // step, column % step * 2 + component].astype("int16")

    def nibble(nb: Expr, step: Expr, lane: Expr, d: Expr) -> Expr:
        both = w[block(nb), step // 2, lane, d] >> (step % 2 * 4).astype("uint8")
        return (both & tirx.const(15, "uint8")).astype(layout.dtype)

    steps = layout.k_padded // depth
    if in_components:
        wu = te.compute((n_blocks, steps, 2, lanes * step), even_or_odd, "wu")
    elif layout.unpacked:
        wu = te.compute((n_blocks, steps, lanes, depth), nibble, "wu")

    def weight(nb: Expr, lane: Expr, component: int, at: Expr) -> Expr:
        if in_components:
            return wu[nb, at // step, component, lane * step + at % step]
        if layout.unpacked:
            return wu[nb, at // step, lane, at % step]
        return w[block(nb), at // step, lane, at % step]

    x = packed.stages["xp"]
    if x_steps(layout, instruction) > 1:
        xp = x
        x = te.compute(xp.shape, lambda o, i, kb, r, kk: xp[o, i, kb, r, kk], "xv")

    def activation(o: Expr, i: Expr, r: Expr, component: int, at: Expr) -> Expr:
        components = (component,) if form.x_components > 1 else ()
        index = o, i, at // k_block, r, *components, at % k_block
        return x[index]

    per_part = layout.k_blocks * k_block // parts
    kk = te.reduce_axis((0, per_part), "kk")

    def dot(o: Expr, i: Expr, part: Expr, *at: Expr) -> Expr:
        r, nb, lane = fragments.sums_of(instruction, layout.lanes, at)
        term = product(
            form,
            lambda component, k: activation(o, i, r, component, k),
            lambda component, k: weight(nb, lane, component, k),
            part * per_part + kk,
        )
        return te.sum(term, axis=kk)

    shape = mo, mi, parts, *fragments.sums_shape(instruction, rows, n_blocks, lanes)
    axes = [*fragments.axes_over(instruction, lanes), *fragments.axes_within(instruction)]
    acc = te.compute(shape, dot, "acc", varargs_names=axes)
    if instruction.registers is None:
        return acc
    whole = ["o", "i", "part", *axes]
    return te.compute(shape, lambda *at: acc[at], "sums", varargs_names=whole)
