"""smmla, ummla, usmmla (Arm A64 instruction set, "SMMLA (vector)"): 2 x 8 times 8 x 2 bytes.

usmmla takes the unsigned side first, which is X here; its mirror image would transpose the sums.
"""

from __future__ import annotations

from tvm.ir import Expr

from ..target import Instruction
from .vector import call


def dot(instruction: Instruction, acc: Expr, x: Expr, w: Expr) -> Expr:
    """Add the products of two rows of X with two columns of W."""
    name = f"llvm.aarch64.neon.{instruction.mnemonic}.v4i32.v16i8"
    return call(name, "int32x4", acc, x, w)
