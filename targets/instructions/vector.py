"""Intrinsics whose fragment is one vector register of sums.

A family's module has a function `dot(instruction, acc, x, w)` that turns the fragment `acc` (a
vector of int32) and the operands (vectors as they lie in memory; a pair of them where the
instruction reads two components of a side) into the new fragment.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.ir import Expr
from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

from ..target import Instruction
from .intrinsics import intrinsic_name
from .meaning import meaning

#: The function `dot` of a family's module.
Dot = Callable[[Instruction, Expr, Any, Any], Expr]


@functools.cache
def register(instruction: Instruction, dot: Dot) -> str:
    """Make the instruction known to TVM; returns the name to tensorize with."""
    name = intrinsic_name(instruction)
    if instruction.form.x_components > 1:
        replacement = two_components
    else:
        replacement = one_row if instruction.rows == 1 else several_rows
    TensorIntrin.register(name, meaning(instruction), replacement(instruction, dot))
    return name


def one_row(instruction: Instruction, dot: Dot) -> tirx.PrimFunc:
    """X is a broadcast of `depth` numbers."""
    lanes, depth = instruction.lanes, instruction.depth
    x_dtype, w_dtype = instruction.x_dtype, instruction.w_dtype
    sums, few, vector = f"int32x{lanes}", f"{x_dtype}x{depth}", f"{w_dtype}x{lanes * depth}"

    @T.prim_func(s_tir=True)
    def code(
        X: T.Buffer((depth,), x_dtype, offset_factor=1),
        W: T.Buffer((lanes, depth), w_dtype, offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], X[0:depth], W[0:lanes, 0:depth])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = dot(
                instruction,
                C.vload([0], dtype=sums),
                X.vload([0], dtype=few),
                W.vload([0, 0], dtype=vector),
            )

    return code


def two_components(instruction: Instruction, dot: Dot) -> tirx.PrimFunc:
    """X is a broadcast of each of two components; W is one vector, or two one after the other."""
    lanes, products = instruction.lanes, instruction.products
    x_dtype, w_dtype = instruction.read_dtypes
    sums, few, vector = f"int32x{lanes}", f"{x_dtype}x{products}", f"{w_dtype}x{lanes * products}"
    both = instruction.form.w_components > 1
    w_shape = (2, lanes * products) if both else (lanes, products)

    @T.prim_func(s_tir=True)
    def code(
        x: T.handle,
        W: T.Buffer(w_shape, w_dtype, offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        apart = T.int32()
        X = T.match_buffer(x, (2, products), x_dtype, strides=[apart, 1], offset_factor=1)
        with T.sblock("root"):
            T.reads(C[0:lanes], X[0:2, 0:products], W[0 : w_shape[0], 0 : w_shape[1]])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = dot(
                instruction,
                C.vload([0], dtype=sums),
                (X.vload([0, 0], dtype=few), X.vload([1, 0], dtype=few)),
                (W.vload([0, 0], dtype=vector), W.vload([1, 0], dtype=vector))
                if both
                else W.vload([0, 0], dtype=vector),
            )

    return code


def several_rows(instruction: Instruction, dot: Dot) -> tirx.PrimFunc:
    """X and W are whole vectors."""
    rows, lanes, depth = instruction.rows, instruction.lanes, instruction.depth
    x_dtype, w_dtype = instruction.x_dtype, instruction.w_dtype
    sums = f"int32x{rows * lanes}"
    x_vector, w_vector = f"{x_dtype}x{rows * depth}", f"{w_dtype}x{lanes * depth}"

    @T.prim_func(s_tir=True)
    def code(
        X: T.Buffer((rows, depth), x_dtype, offset_factor=1),
        W: T.Buffer((lanes, depth), w_dtype, offset_factor=1),
        C: T.Buffer((rows, lanes), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:rows, 0:lanes], X[0:rows, 0:depth], W[0:lanes, 0:depth])
            T.writes(C[0:rows, 0:lanes])
            C[0, T.ramp(T.int32(0), 1, rows * lanes)] = dot(
                instruction,
                C.vload([0, 0], dtype=sums),
                X.vload([0, 0], dtype=x_vector),
                W.vload([0, 0], dtype=w_vector),
            )

    return code


def call(name: str, dtype: str, *arguments: Expr) -> Expr:
    """A call of the LLVM intrinsic `name`, which depends on nothing but its arguments."""
    index = T.llvm_lookup_intrinsic_id(name)
    return T.call_llvm_pure_intrin(index, *arguments, dtype=dtype)


def broadcast(x: Expr, dtype: str, lanes: int) -> Expr:
    """The 4 bytes of `x` in every one of `lanes` int32, as a vector of `dtype`."""
    return T.reinterpret(T.broadcast(T.reinterpret(x, dtype="int32"), lanes), dtype=dtype)
