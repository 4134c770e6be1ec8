"""pmaddwd (Intel SDM vol. 2, "PMADDWD"): s16 x s16 by twos, for bytes widened to int16.

Two products of bytes of any sign are at most 2 * 255 * 255 in magnitude, far within int32.
"""

from __future__ import annotations

from tvm.ir import Expr

from ..target import Instruction
from .vector import broadcast, call

NAMES = {8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}


def dot(instruction: Instruction, acc: Expr, x: Expr, w: Expr) -> Expr:
    """Add the sums of two products to each lane."""
    lanes = instruction.lanes
    broad = broadcast(x, f"int16x{2 * lanes}", lanes)
    return acc + call(NAMES[lanes], f"int32x{lanes}", broad, w)
