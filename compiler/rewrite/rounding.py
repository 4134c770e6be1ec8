"""a * b + c with one rounding, on every chip.

The reference rounds once per multiply-add, as a chip's fused instruction does. TVM lets LLVM
contract a product and a sum to that instruction. On a chip without it float64 holds the product
exactly, and the sum is rounded there and once more to float32. In CUDA C++ nothing is contracted,
and the function that is fused is called.
"""

from __future__ import annotations

import tvm_ffi
from tvm import tirx
from tvm.ir import Expr

from ...targets import Chip


def multiply_add(target: Chip, a: Expr, b: Expr, c: Expr) -> Expr:
    """The sum a * b + c in float32, rounded once."""
    if target.multiply_add == "contracted":
        return a * b + c
    if target.multiply_add == "called":
        return tirx.call_pure_extern("float32", "__fmaf_rn", a, b, c)
    a, b, c = (value.astype("float64") for value in (a, b, c))
    return (a * b + c).astype("float32")


def add_product(target: Chip, a: Expr, b: Expr, c: Expr) -> Expr:
    """As `multiply_add`, where `c` is a product itself, or a * b is used a second time.

    LLVM may contract a sum of two products from either side, and contracts none that is used twice;
    so it is told.
    """
    if target.multiply_add == "contracted":
        return tirx.call_llvm_pure_intrin("float32", "llvm.fma", a, b, c)
    return multiply_add(target, a, b, c)


def fuse_group_sums(func: tirx.PrimFunc, target: Chip) -> tirx.PrimFunc:
    """A scheduled function whose block "total" adds products with one rounding each.

    A reduction cannot say this by itself: its combiner only sees the finished term, a product or
    the sum of two, of which the first is added first.
    """

    def chained(total: Expr, term: Expr) -> Expr:
        if isinstance(term, tirx.Add):
            return chained(chained(total, term.a), term.b)
        assert isinstance(term, tirx.Mul), "products are added"
        return multiply_add(target, term.a, term.b, total)

    fused = 0

    def once(stmt: tirx.BufferStore) -> tirx.BufferStore:
        nonlocal fused
        value = stmt.value
        if not stmt.buffer.name.startswith("total") or not isinstance(value, tirx.Add):
            return stmt
        fused += 1
        if target.multiply_add == "contracted" and isinstance(value.b, tirx.Mul):
            return stmt
        return tirx.BufferStore(stmt.buffer, chained(value.a, value.b), stmt.indices)

    body = tvm_ffi.structural_map(func.body, [(tirx.BufferStore, once)])
    assert fused, "a schedule with groups adds their sums up"
    return func.with_body(body)
