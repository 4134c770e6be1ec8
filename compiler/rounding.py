"""a * b + c with one rounding, on every chip.

The reference rounds once per multiply-add, as a chip's fused instruction does. TVM lets LLVM
contract a product and a sum to that instruction. On a chip without it float64 holds the product
exactly, and the sum is rounded there and once more to float32.
"""

from __future__ import annotations

import tvm_ffi
from tvm import tirx
from tvm.ir import Expr

from ..targets import Target


def multiply_add(target: Target, a: Expr, b: Expr, c: Expr) -> Expr:
    """A * b + c in float32."""
    return a * b + c if target.fused_multiply_add else through_double(a, b, c)


def through_double(a: Expr, b: Expr, c: Expr) -> Expr:
    """A * b + c in float64, rounded to float32."""
    a, b, c = (value.astype("float64") for value in (a, b, c))
    return (a * b + c).astype("float32")


def sum_groups_through_double(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """A scheduled function whose block "total" adds scaled sums through float64.

    A reduction cannot say this by itself: its combiner only sees the finished product.
    """

    def once(stmt: tirx.BufferStore) -> tirx.BufferStore:
        value = stmt.value
        if stmt.buffer.name != "total" or not isinstance(value, tirx.Add):
            return stmt
        return tirx.BufferStore(
            stmt.buffer, through_double(value.b.a, value.b.b, value.a), stmt.indices
        )

    return func.with_body(tvm_ffi.structural_map(func.body, [(tirx.BufferStore, once)]))
