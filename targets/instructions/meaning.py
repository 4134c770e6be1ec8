"""The loops that an instruction stands for, as TVM wants them to replace them.

X is what the instruction reads of the packed activations, W of the packed weight (a block of its
layout), C the fragment of sums.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from ..target import Instruction


def meaning(instruction: Instruction) -> tirx.PrimFunc:
    """What `Instruction` says that it adds, in the shape in which the operands lie."""
    if instruction.form.x_components > 1:
        return paired(instruction) if instruction.form.w_components > 1 else signed(instruction)
    if instruction.block_depth < instruction.depth:
        return interleaved(instruction)
    return one_row(instruction) if instruction.rows == 1 else several_rows(instruction)


def one_row(instruction: Instruction) -> tirx.PrimFunc:
    """X is the same for every lane."""
    lanes, depth = instruction.lanes, instruction.depth
    x_dtype, w_dtype = instruction.x_dtype, instruction.w_dtype

    @T.prim_func(s_tir=True)
    def loops(
        X: T.Buffer((depth,), x_dtype, offset_factor=1),
        W: T.Buffer((lanes, depth), w_dtype, offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], X[0:depth], W[0:lanes, 0:depth])
            T.writes(C[0:lanes])
            for lane in T.serial(0, lanes):
                for d in T.serial(0, depth):
                    with T.sblock("dot"):
                        vl, vd = T.axis.remap("SR", [lane, d])
                        C[vl] = C[vl] + T.cast(X[vd], "int32") * T.cast(W[vl, vd], "int32")

    return loops


def signed(instruction: Instruction) -> tirx.PrimFunc:
    """The loop of an instruction that reads magnitudes and signs of X."""
    lanes, depth = instruction.lanes, instruction.depth
    x_dtype, w_dtype = instruction.read_dtypes

    @T.prim_func(s_tir=True)
    def loops(
        X: T.Buffer((2, depth), x_dtype, offset_factor=1),
        W: T.Buffer((lanes, depth), w_dtype, offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], X[0:2, 0:depth], W[0:lanes, 0:depth])
            T.writes(C[0:lanes])
            for lane in T.serial(0, lanes):
                for d in T.serial(0, depth):
                    with T.sblock("dot"):
                        vl, vd = T.axis.remap("SR", [lane, d])
                        C[vl] = C[vl] + T.cast(X[0, vd], "int32") * T.cast(
                            W[vl, vd] ^ T.cast(X[1, vd], w_dtype), "int32"
                        )

    return loops


def paired(instruction: Instruction) -> tirx.PrimFunc:
    """The loop of an instruction that reads even and odd k of both sides."""
    lanes, inner = instruction.lanes, instruction.products
    x_dtype, w_dtype = instruction.read_dtypes

    @T.prim_func(s_tir=True)
    def loops(
        X: T.Buffer((2, inner), x_dtype, offset_factor=1),
        W: T.Buffer((2, lanes * inner), w_dtype, offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], X[0:2, 0:inner], W[0:2, 0 : lanes * inner])
            T.writes(C[0:lanes])
            for lane in T.serial(0, lanes):
                for d in T.serial(0, inner):
                    with T.sblock("dot"):
                        vl, vd = T.axis.remap("SR", [lane, d])
                        C[vl] = C[vl] + (
                            T.cast(X[0, vd], "int32") + T.cast(W[1, vl * inner + vd], "int32")
                        ) * (T.cast(X[1, vd], "int32") + T.cast(W[0, vl * inner + vd], "int32"))

    return loops


def several_rows(instruction: Instruction) -> tirx.PrimFunc:
    """Every row of X with every column of W."""
    rows, lanes, depth = instruction.rows, instruction.lanes, instruction.depth
    x_dtype, w_dtype = instruction.x_dtype, instruction.w_dtype

    @T.prim_func(s_tir=True)
    def loops(
        X: T.Buffer((rows, depth), x_dtype, offset_factor=1),
        W: T.Buffer((lanes, depth), w_dtype, offset_factor=1),
        C: T.Buffer((rows, lanes), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:rows, 0:lanes], X[0:rows, 0:depth], W[0:lanes, 0:depth])
            T.writes(C[0:rows, 0:lanes])
            for row in T.serial(0, rows):
                for lane in T.serial(0, lanes):
                    for d in T.serial(0, depth):
                        with T.sblock("dot"):
                            vr, vl, vd = T.axis.remap("SSR", [row, lane, d])
                            C[vr, vl] = C[vr, vl] + T.cast(X[vr, vd], "int32") * T.cast(
                                W[vl, vd], "int32"
                            )

    return loops


def interleaved(instruction: Instruction) -> tirx.PrimFunc:
    """As several rows, with W in blocks of `block_depth` consecutive k of every column."""
    rows, lanes, depth = instruction.rows, instruction.lanes, instruction.depth
    inner, steps = instruction.block_depth, instruction.depth // instruction.block_depth
    x_dtype, w_dtype = instruction.x_dtype, instruction.w_dtype

    @T.prim_func(s_tir=True)
    def loops(
        X: T.Buffer((rows, depth), x_dtype, offset_factor=1),
        W: T.Buffer((steps, lanes, inner), w_dtype, offset_factor=1),
        C: T.Buffer((rows, lanes), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:rows, 0:lanes], X[0:rows, 0:depth], W[0:steps, 0:lanes, 0:inner])
            T.writes(C[0:rows, 0:lanes])
            for row in T.serial(0, rows):
                for lane in T.serial(0, lanes):
                    for d in T.serial(0, depth):
                        with T.sblock("dot"):
                            vr, vl, vd = T.axis.remap("SSR", [row, lane, d])
                            C[vr, vl] = C[vr, vl] + T.cast(X[vr, vd], "int32") * T.cast(
                                W[vd // inner, vl, vd % inner], "int32"
                            )

    return loops
