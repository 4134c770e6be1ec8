"""The multiplication as a TensorExpression, for one strategy's tile of rows.

    xp[mo, mi, kb, r, kk]  = x[row, kb * k_block + kk], as the byte that the instruction reads
    acc[mo, mi, r, nb, l]  = sum over k of xp * w                      the dot products
    y[mo, mi, r, nb, l]    = epilogue(acc)                             one tile of the output

with row = (mo * mi_extent + mi) * rows + r and column = nb * lanes + l. What lies beyond the matrix
(rows of the last tile, blocks of the last panel) is computed from its last row or block and never
stored: `tiles.store_within` maps y to the caller's array. M and the two tile counts are run-time
numbers, so one function serves every M.

An activation byte that the instruction reads with the other sign is xored with 0x80. That adds
`shift` to every x, and so to its zero point: acc - (zx + shift) * sum_k w is the exact result.
"""

from __future__ import annotations

from tvm import te, tirx

from ..schedules.program import Program, Tile
from ..targets import Instruction, Target, WeightLayout
from .spec import MatmulSpec


def shift(spec: MatmulSpec, instruction: Instruction) -> int:
    """What the xor with 0x80 adds to an activation, 0 when the instruction reads it as it is."""
    if spec.activation == instruction.x_dtype:
        return 0
    return 128 if instruction.x_dtype == "uint8" else -128


def arguments(spec: MatmulSpec, instruction: Instruction) -> tuple[str, ...]:
    """Names of a kernel's array arguments in order; two tile counts (mo, mi) follow them."""
    names = ["x", "w"]
    if spec.activation_zero_point or shift(spec, instruction):
        names.append("w_sum")
    if spec.out != "int32":
        names += ["w_scale", "x_scale"]
    if spec.activation_zero_point:
        names.append("x_zero_point")
    if spec.bias:
        names.append("bias")
    return (*names, "y")


def program(spec: MatmulSpec, layout: WeightLayout, target: Target, tile: Tile) -> Program:
    """The TensorExpression of `spec` in tiles of `tile.rows` x `tile.blocks * lanes`.

    Shapes of the arguments: x (M, k), w `layout.shape` int8, w_sum, w_scale and bias
    (n_blocks * lanes,), x_scale and x_zero_point (1,) or (M,) as `spec.activation_scale` says.
    """
    instruction = target.instruction
    m, mo, mi = (tirx.Var(name, "int32") for name in ("m", "mo", "mi"))
    rows = tile.rows
    columns = layout.n_blocks * layout.lanes
    whole_panels = -(-layout.n_blocks // tile.blocks) * tile.blocks
    per_x = m if spec.activation_scale == "row" else 1
    placeholders = {
        "x": te.placeholder((m, spec.k), spec.activation, "x"),
        "w": te.placeholder(layout.shape, instruction.w_dtype, "w"),
        "w_sum": te.placeholder((columns,), "int32", "w_sum"),
        "w_scale": te.placeholder((columns,), "float32", "w_scale"),
        "x_scale": te.placeholder((per_x,), "float32", "x_scale"),
        "x_zero_point": te.placeholder((per_x,), "int32", "x_zero_point"),
        "bias": te.placeholder((columns,), "float32", "bias"),
    }
    x, w = placeholders["x"], placeholders["w"]
    offset = shift(spec, instruction)

    def row(o: tirx.Var, i: tirx.Var, r: tirx.Var) -> tirx.Var:
        return tirx.min((o * mi + i) * rows + r, m - 1)

    def packed(o: tirx.Var, i: tirx.Var, kb: tirx.Var, r: tirx.Var, kk: tirx.Var) -> tirx.Var:
        byte = x[row(o, i, r), column_of(layout, kb, kk)].astype(instruction.x_dtype)
        return byte ^ tirx.const(offset, instruction.x_dtype) if offset else byte

    def block(nb: tirx.Var) -> tirx.Var:
        return nb if whole_panels == layout.n_blocks else tirx.min(nb, layout.n_blocks - 1)

    xp = te.compute((mo, mi, layout.k_blocks, rows, layout.k_block), packed, "xp")

    k = te.reduce_axis((0, layout.k_padded), "k")
    acc = te.compute(
        (mo, mi, rows, whole_panels, layout.lanes),
        lambda o, i, r, nb, lane: te.sum(
            xp[o, i, k // layout.k_block, r, k % layout.k_block].astype("int32")
            * w[block(nb), k // layout.depth, lane, k % layout.depth].astype("int32"),
            axis=k,
        ),
        "acc",
    )

    def epilogue(o: tirx.Var, i: tirx.Var, r: tirx.Var, nb: tirx.Var, lane: tirx.Var) -> tirx.Var:
        n = block(nb) * layout.lanes + lane
        at = row(o, i, r) if spec.activation_scale == "row" else 0
        value = acc[o, i, r, nb, lane]
        if spec.activation_zero_point:
            zero = placeholders["x_zero_point"][at] + offset
            value = value - zero * placeholders["w_sum"][n]
        elif offset:
            value = value - offset * placeholders["w_sum"][n]
        if spec.out == "int32":
            return value
        value = value.astype("float32") * placeholders["w_scale"][n]
        scale = placeholders["x_scale"][at]
        if spec.bias:
            return multiply_add(target, value, scale, placeholders["bias"][n])
        return value * scale

    shape = (mo, mi, rows, whole_panels, layout.lanes)
    stages: tuple[str, ...] = ("y",)
    if spec.n % layout.lanes:
        # The ragged block is stored one column at a time. From memory: indexed one by one, the
        # accumulators could not stay in registers.
        stages = ("whole", "y")
        whole = te.compute(shape, epilogue, "whole")
        y = te.compute(shape, lambda *at: whole[at], "y")
    else:
        y = te.compute(shape, epilogue, "y")
    inputs = [placeholders[name] for name in arguments(spec, instruction)[:-1]]
    func = te.create_prim_func([*inputs, y, mo, mi])
    return Program(func, stages, tile, layout, instruction)


def multiply_add(target: Target, a: tirx.Var, b: tirx.Var, c: tirx.Var) -> tirx.Var:
    """A * b + c in float32 with one rounding.

    TVM lets LLVM contract the expression to the target's instruction. Without one, float64 holds
    the product exactly, and the sum is rounded there and once more.
    """
    if target.fused_multiply_add:
        return a * b + c
    a, b, c = (value.astype("float64") for value in (a, b, c))
    return (a * b + c).astype("float32")


def column_of(layout: WeightLayout, kb: tirx.Var, kk: tirx.Var) -> tirx.Var:
    """The k of byte `kk` of block `kb`; see `layout` for the last block."""
    if layout.last_start < 0:
        return tirx.min(kk, layout.k - 1)
    if layout.k_padded == layout.k:
        return kb * layout.k_block + kk
    return tirx.min(kb * layout.k_block, layout.last_start) + kk
