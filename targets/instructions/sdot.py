"""sdot and udot (Arm A64 instruction set, "SDOT (by element)"): bytes of one sign by fours."""

from __future__ import annotations

from tvm.ir import Expr

from ..target import Instruction
from .vector import broadcast, call


def dot(instruction: Instruction, acc: Expr, x: Expr, w: Expr) -> Expr:
    """Add the sums of four products to each lane; the lane of a vector may only come last."""
    x_dtype = instruction.x_dtype
    name = f"llvm.aarch64.neon.{instruction.mnemonic}.v4i32.v16i8"
    return call(name, "int32x4", acc, w, broadcast(x, f"{x_dtype}x16", 4))
