"""vpdpbusd (Intel SDM vol. 2, "VPDPBUSD"): u8 x s8 by fours, no saturation.

Either side may be the unsigned one: the instruction takes it as its second operand, and the signed
one as its third. The 256-bit form is AVX512-VNNI's or, with the same LLVM intrinsic, AVX-VNNI's.
"""

from __future__ import annotations

from tvm.ir import Expr

from ..target import Instruction
from .vector import broadcast, call


def dot(instruction: Instruction, acc: Expr, x: Expr, w: Expr) -> Expr:
    """Add the sums of four products to each lane."""
    lanes, x_dtype = instruction.lanes, instruction.x_dtype
    broad = broadcast(x, f"{x_dtype}x{4 * lanes}", lanes)
    operands = (broad, w) if x_dtype == "uint8" else (w, broad)
    return call(f"llvm.x86.avx512.vpdpbusd.{32 * lanes}", f"int32x{lanes}", acc, *operands)
