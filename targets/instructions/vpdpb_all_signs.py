"""AVX-VNNI-INT8 (Intel ISE reference, "VPDPB[SU,UU,SS]D[,S]"): bytes of either sign by fours.

vpdpbsud takes the signed side first; vpdpbusd, of AVX-VNNI, is not needed beside it.
"""

from __future__ import annotations

from tvm.ir import Expr

from ..target import Instruction
from .vector import broadcast, call


def dot(instruction: Instruction, acc: Expr, x: Expr, w: Expr) -> Expr:
    """Add the sums of four products to each lane."""
    lanes, x_dtype = instruction.lanes, instruction.x_dtype
    broad = broadcast(x, f"{x_dtype}x{4 * lanes}", lanes)
    signed_last = (x_dtype, instruction.w_dtype) == ("uint8", "int8")
    operands = (w, broad) if signed_last else (broad, w)
    name = f"llvm.x86.avx2.{instruction.mnemonic}.{32 * lanes}"
    return call(name, f"int32x{lanes}", acc, *operands)
