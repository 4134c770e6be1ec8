"""pmaddwd (Intel SDM vol. 2, "PMADDWD"): s16 x s16 by twos into int32.

Two products of int16 fit unless all four numbers are -32768.
"""

from __future__ import annotations

from tvm import tirx
from tvm.ir import Expr
from tvm.script import tirx as T

from .vector import call

NAMES = {8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}


def twos(a: Expr, b: Expr, lanes: int) -> Expr:
    """Sums of two products."""
    return call(NAMES[lanes], f"int32x{lanes}", a, b)


def sums_of_two(a: Expr, lanes: int) -> Expr:
    """Sums of two int16: products by one."""
    return twos(a, T.broadcast(tirx.const(1, "int16"), 2 * lanes), lanes)
