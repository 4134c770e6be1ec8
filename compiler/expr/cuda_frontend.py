"""The multiplication as TensorExpressions for a GPU: what a first kernel makes of X, and the rest.

A kernel multiplies an X of int8 or uint8 with rows of `layout.x_columns` bytes. Where the caller's
X is not of that form, or its rows' scales or sums are to be found, `prepare` writes one that is:

    x_range[row]                    the range of a row, or of each group     dynamic specs
    x_scale[row], x_zero_point[row]
    xq[row, k]                      the integers, groups padded to steps
    x_sum[row, g]                   their sums                               zero points of weights
    x_part, x_sum                   their sums; of X without its zero points offsets of weights

    x_tile[i, kp, r, q]             a piece of K of a tile's rows            in shared memory
    w_tile[nb, s, c, q]             a step of weights                        in shared memory
    acc[i, p, r, nb, c]             sum over the k of part p of x * w        the products; with dp4a
                                    four of them, of a quarter of k each
    sums[i, p, r, nb, c]            acc, for other threads to read           in shared memory
    total[i, r, nb, c]              sum over p, for groups times scale       where K is in parts
    tile[i, r, n]                   total or acc                             in shared memory
    results[i, r, n]                epilogue(tile)
    y[i, r, n]                      the results as the caller's array has them

with row = i * rows + r. Rows behind the last one are computed from the last one and never stored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from tvm import te, tirx
from tvm.ir import Expr

from ...schedules import fragments
from ...schedules.arguments import ARGUMENTS
from ...schedules.cuda.plan import CudaPlan
from ...schedules.cuda.program import FRAGMENT_ROWS, CudaProgram, CudaTile
from ...schedules.plan import x_sign
from ...targets import Instruction
from ...targets.cuda_layout import COLUMNS, QUARTERS, CudaLayout
from .activations import Packed, column_of
from .epilogue import Epilogue
from .frontend import last_again, placeholders
from .scales import PerScale, Rows, Spans, exact_sum, given, quantized, scales

#: A number of an array or of a stage, by its place.
Element = Callable[..., Expr]


def prepared(plan: CudaPlan) -> tuple[str, ...]:
    """What `prepare` writes, in the order of its last arguments."""
    spec = plan.spec
    needed = {
        "xq": True,
        "x_scale": spec.dynamic,
        "x_zero_point": spec.dynamic and spec.activation_zero_point,
        "x_sum": plan.needs_x_sum,
    }
    return tuple(name for name in needed if needed[name])


def arguments(plan: CudaPlan) -> tuple[str, ...]:
    """Names of the multiplication's array arguments in order.

    What is found in X is an argument here, whoever found it.
    """
    found = {
        "w_order": False,
        "x_scale": plan.spec.out != "int32",
        "x_zero_point": plan.spec.activation_zero_point,
        "x_sum": plan.needs_x_sum,
    }
    return tuple(each.name for each in ARGUMENTS if found.get(each.name, each.when(plan)))


def prepare(plan: CudaPlan) -> tirx.PrimFunc:
    """X as the kernels read it, row by row.

    Arguments: x (M, k) as the caller has it; w_order (k,) where the weight has one; x_scale and
    x_zero_point (1,) or (M,) where they are given and X arrives as floats, and x_zero_point where
    offsets are multiplied with sums; then what `prepared` names: xq (M, x_columns), x_scale (M,)
    float32, x_zero_point (M,) int32, x_sum (M, sum_columns) int32, or with offsets float32. Where
    groups have scales of their own, those are given as (M, groups) and written as (M, sum_columns).
    """
    spec, layout, target = plan.spec, plan.layout, plan.target
    m = tirx.Var("m", "int32")
    rows = Rows(m, tirx.const(1, "int32"), m, 1)
    inputs = placeholders(plan, rows, ())
    x = inputs["x"]
    stages: dict[str, te.Tensor] = {}
    scale: PerScale | None = None
    zero_point: PerScale | None = None
    scale_columns = layout.sum_columns if spec.x_groups > 1 else 1
    spans = Spans(spec, rows, scale_columns)
    if spec.input is not None:
        scale, zero_point = scales(spans, target, inputs, stages)
    elif spec.weight_offset and spec.activation_zero_point:
        zero_point = given(spans, inputs["x_zero_point"])
    dtype = x_sign(spec)

    def integer(row: Expr, g: Expr, k: Expr) -> Expr:
        if spec.packed_activation:
            nibble = x[row, k // 2].astype("int32") >> (k % 2 * 4) & 15
            return ((nibble ^ 8) - 8).astype(dtype)
        if spec.input is None:
            return x[row, column_of(spec, inputs, k)]
        assert scale is not None
        at = tirx.const(0, "int32"), row, g, tirx.const(0, "int32")
        zero = None if zero_point is None else zero_point(*at)
        value = x[row, column_of(spec, inputs, k)]
        return quantized(spec, target, value, scale(*at), zero).astype(dtype)

    size, padded = layout.group_size or spec.k, layout.group_steps * layout.depth

    def padded_integer(row: Expr, position: Expr, positions: int) -> Expr:
        """What stands at one of `positions` positions of a row."""
        if layout.group_size is None or size == padded:
            k, there = position, position < spec.k
            everywhere = positions == spec.k
        else:
            within = position % padded
            k = position // padded * size + within
            there, everywhere = tirx.And(within < size, k < spec.k), False
        value = integer(row, position // padded, k if everywhere else tirx.min(k, spec.k - 1))
        return value if everywhere else tirx.Select(there, value, tirx.const(0, dtype))

    columns = layout.x_columns
    xq = te.compute((m, columns), lambda row, at: padded_integer(row, at, columns), "xq")
    outputs = {"xq": xq}
    if spec.dynamic and scale is not None:
        outputs["x_scale"] = written(scale, m, scale_columns, "x_scale")
    if spec.dynamic and zero_point is not None:
        outputs["x_zero_point"] = written(zero_point, m, scale_columns, "x_zero_point")
    if plan.needs_x_sum:
        k = te.reduce_axis((0, padded), "k")

        def sum_of(row: Expr, g: Expr) -> Expr:
            # Not from xq, which other threads are writing.
            value = padded_integer(row, g * padded + k, layout.sum_columns * padded)
            return te.sum(value.astype("int32"), axis=k)

        name = "x_part" if spec.weight_offset else "x_sum"
        outputs["x_sum"] = sums = te.compute((m, layout.sum_columns), sum_of, name)
        if spec.weight_offset:
            none = tirx.const(0, "int32")

            def exact(row: Expr, g: Expr) -> Expr:
                shift = none if zero_point is None else zero_point(none, row, g, none)
                return exact_sum(spec, sums[row, g], shift, g)

            outputs["x_sum"] = te.compute(sums.shape, exact, "x_sum")
    read = [x, inputs["w_order"]] if spec.weight_order else [x]
    if not spec.dynamic:
        if spec.input is not None:
            read.append(inputs["x_scale"])
        if zero_point is not None:
            read.append(inputs["x_zero_point"])
    return te.create_prim_func([*read, *(outputs[name] for name in prepared(plan))])


def written(number: PerScale, m: tirx.Var, columns: int, name: str) -> te.Tensor:
    """Scales or zero points of rows, `columns` of each, as the multiplication reads them."""
    zero = tirx.const(0, "int32")
    if columns == 1:
        return te.compute((m,), lambda row: number(zero, row, zero, zero), name)
    return te.compute((m, columns), lambda row, g: number(zero, row, g, zero), name)


def multiply(plan: CudaPlan, instruction: Instruction, tile: CudaTile) -> CudaProgram:
    """The products and the epilogue in tiles of `tile.rows` x `tile.blocks` * 8.

    Shapes of the arguments: x (M, x_columns / piece, piece); w `layout.shape`; w_sum int32,
    w_zero_point, w_scale and w_offset (n_blocks, groups, 8); bias (n_blocks, 1, 8); x_scale and
    x_zero_point (1,) or (M,), or for groups (M, groups) where they are given, (M, sum_columns)
    where they were found; x_sum (M, sum_columns); out_scale and out_zero_point (1,); residual and y
    in tiles.
    """
    layout = plan.layout
    plan = dataclasses.replace(plan, instruction=instruction)
    instruction = of_a_step(instruction)
    m, mi = tirx.Var("m", "int32"), tirx.Var("mi", "int32")
    rows = Rows(m, tirx.const(1, "int32"), mi, tile.rows)
    tasks = -(-layout.n_blocks // tile.blocks)
    shape = (1, mi, tile.rows, tasks * tile.blocks, COLUMNS)
    x_shape = rows.m, layout.x_columns // layout.piece, layout.piece
    own = {
        "x": (x_shape, instruction.x_dtype),
        "x_sum": ((rows.m, layout.sum_columns), "float32" if plan.spec.weight_offset else "int32"),
    }
    if plan.spec.x_groups > 1 and plan.spec.dynamic:
        own["x_scale"] = (rows.m, layout.sum_columns), "float32"
        own["x_zero_point"] = (rows.m, layout.sum_columns), "int32"
    y_blocks = shape[3] // layout.matrices
    inputs = placeholders(plan, rows, (*shape[:3], y_blocks, COLUMNS), own)

    block = last_again(shape[3], layout.n_blocks)
    packed = given_numbers(plan, rows, inputs)
    parts = layout.groups if layout.groups > 1 else tile.warps[2]
    sums = products(layout, instruction, rows, tile, parts, inputs, shape, block)
    part = te.reduce_axis((0, parts), "part")
    ending = Epilogue(plan, packed, inputs, block)

    def exact_products(p: Expr | int, at: tuple[Expr, ...]) -> Expr:
        o, i, *place = at
        index = o, i, p, *fragments.sums_at(instruction, COLUMNS, *place)
        value = sums[index]
        return value >> 4 if layout.factor == 16 else value

    if parts > 1:
        total_shape = 1, mi, *fragments.sums_shape(instruction, tile.rows, shape[3], COLUMNS)

        def total_at(*index: Expr) -> Expr:
            o, i, *rest = index
            at = o, i, *fragments.sums_of(instruction, COLUMNS, tuple(rest))
            return te.sum(ending.of_part(exact_products(part, at), part, at), axis=part)

        total = te.compute(total_shape, total_at, "total")

    def sum_in_columns(o: Expr, i: Expr, r: Expr, column: Expr) -> Expr:
        place = r, column // COLUMNS, column % COLUMNS
        if parts == 1:
            return exact_products(0, (o, i, *place))
        index = o, i, *fragments.sums_at(instruction, COLUMNS, *place)
        return total[index]

    whole = te.compute((*shape[:3], shape[3] * COLUMNS), sum_in_columns, "tile")
    y_shape = (*shape[:3], y_blocks * COLUMNS)

    def finished(o: Expr, i: Expr, r: Expr, nb: Expr, c: Expr) -> Expr:
        return ending.whole(whole[o, i, r, nb * COLUMNS + c], (o, i, r, nb, c))

    def result(o: Expr, i: Expr, r: Expr, column: Expr) -> Expr:
        at = o, i, r, column // COLUMNS, column % COLUMNS
        return ending.stored(ending.of_matrices(finished, at), at)

    results = te.compute(y_shape, result, "results")
    y = te.compute(y_shape, lambda *at: results[at], "y")
    ordered = [inputs[name] for name in arguments(plan)[:-1]]
    func = te.create_prim_func([*ordered, y, mi])
    return CudaProgram(func, layout, instruction, tile, parts)


def of_a_step(instruction: Instruction) -> Instruction:
    """`instruction` with the rows and columns that a warp multiplies by it in one step."""
    rows = FRAGMENT_ROWS if instruction.rows > 1 else 1
    return dataclasses.replace(instruction, rows=rows, lanes=COLUMNS)


def given_numbers(plan: CudaPlan, rows: Rows, inputs: dict[str, te.Tensor]) -> Packed:
    """Scale, zero point and sums of a row of X, which are arguments whatever found them."""
    spec = plan.spec
    zero_point = None
    # What was found has numbers for the groups behind the last one, what a caller gives has not.
    spans = Spans(spec, rows, spec.groups if spec.dynamic else plan.layout.groups)
    if spec.activation_zero_point:
        zero_point = given(spans, inputs["x_zero_point"])
    scale = given(spans, inputs["x_scale"])

    def sums(o: Expr, i: Expr, g: Expr, r: Expr) -> Expr:
        value = inputs["x_sum"][rows.at(o, i, r), g]
        scaled = spec.weight_offset and spec.x_groups > 1
        return value * scale(o, i, g, r) if scaled else value

    if spec.weight_offset:
        return Packed({}, scale, zero_point, None, exact_sums=sums)
    return Packed({}, scale, zero_point, sums if plan.needs_x_sum else None)


def staged_x(
    layout: CudaLayout, instruction: Instruction, rows: Rows, tile: CudaTile, x_piece: Element
) -> Element:
    """A tile's rows of X in shared memory, x_tile.

    The tensor core reads a piece of 16 rows at a time, from consecutive bytes; a dot product all
    pieces of a step of one row.
    """
    pieces = layout.steps * layout.halves
    if instruction.rows == 1:
        shape = 1, rows.mi, tile.rows, pieces, layout.piece
        by_row = te.compute(shape, lambda o, i, r, kp, q: x_piece(o, i, kp, r, q), "x_tile")
        return lambda o, i, kp, r, q: by_row[o, i, r, kp, q]
    shape = 1, rows.mi, pieces, tile.rows, layout.piece
    by_piece = te.compute(shape, x_piece, "x_tile")
    return lambda *at: by_piece[at]


def products(
    layout: CudaLayout,
    instruction: Instruction,
    rows: Rows,
    tile: CudaTile,
    parts: int,
    inputs: dict[str, te.Tensor],
    tiles: tuple[Expr | int, ...],
    block: Callable[[Expr], Expr],
) -> te.Tensor:
    """The block "acc" or "sums", before it the tiles in shared memory if there are any."""
    piece, halves = layout.piece, layout.halves
    x, w = inputs["x"], inputs["w"]

    x_piece: Element = lambda o, i, kp, r, q: x[rows.at(o, i, r), kp, q]  # noqa: E731
    w_step: Element = lambda nb, s, c, q: w[block(nb), s, c, q]  # noqa: E731

    if tile.stages:
        x_piece = staged_x(layout, instruction, rows, tile, x_piece)
        w_tile = te.compute((tiles[3], layout.steps, COLUMNS, piece), w_step, "w_tile")
        w_step = lambda *at: w_tile[at]  # noqa: E731
    per_part = layout.steps // parts
    s, h = te.reduce_axis((0, per_part), "s"), te.reduce_axis((0, halves), "h")

    def dot(place: tuple[Expr, ...], p: Expr, q: te.IterVar, position: Expr) -> Expr:
        """The sum over part `p` and `q`, which is at `position` in a piece."""
        o, i, r, nb, c = place
        step = p * per_part + s if layout.groups > 1 else s * parts + p
        weight = w_step(nb, step, c, position)
        if halves == 1:
            byte = x_piece(o, i, step, r, position)
            return te.sum(byte.astype("int32") * weight.astype("int32"), axis=[s, q])
        byte = x_piece(o, i, step * 2 + h, r, position)
        shifted = (weight >> (h * 4).astype("uint8")) << tirx.const(4, "uint8")
        weight = shifted.astype(layout.dtype)
        return te.sum(byte.astype("int32") * weight.astype("int32"), axis=[s, h, q])

    shape = 1, rows.mi, parts, *fragments.sums_shape(instruction, tile.rows, tiles[3], COLUMNS)
    if instruction.rows == 1:
        quarter = piece // QUARTERS
        q = te.reduce_axis((0, quarter), "q")

        def in_quarters(o: Expr, i: Expr, p: Expr, r: Expr, nb: Expr, c: Expr, t: Expr) -> Expr:
            return dot((o, i, r, nb, c), p, q, t * quarter + q)

        def of_quarters(*at: Expr) -> Expr:
            first, *others = [(*at, t) for t in range(QUARTERS)]
            return sum((acc[index] for index in others), acc[first])

        acc = te.compute((*shape, QUARTERS), in_quarters, "acc")
        return te.compute(shape, of_quarters, "sums")
    q = te.reduce_axis((0, piece), "q")

    def in_fragments(o: Expr, i: Expr, p: Expr, *at: Expr) -> Expr:
        return dot((o, i, *fragments.sums_of(instruction, COLUMNS, at)), p, q, q)

    acc = te.compute(shape, in_fragments, "acc")
    return te.compute(shape, lambda *at: acc[at], "sums") if tile.warps[2] > 1 else acc
