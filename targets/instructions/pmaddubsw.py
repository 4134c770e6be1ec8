"""pmaddubsw and pmaddwd (Intel SDM vol. 2): u8 x s8 by twos into int16, then by fours into int32.

pmaddubsw saturates to int16, and with two bytes of 8 bits it does: 2 * 255 * 127 = 64770. It cannot
where the stored weight has 7 bits or fewer:

    0 to 127 as the unsigned side:   |w x + w' x'| <= 2 * 127 * 128 = 32512 < 32767
    -64 to 64 as the signed side:    |x w + x' w'| <= 2 * 255 *  64 = 32640 < 32767

and the two int16 that pmaddwd adds (times one) are within int32. So this pair is exact for such
weights, int7 and those of 4 bits, which are stored as 0 to 15: `weights` of the instruction says
so. `signs` makes it exact for weights of 8 bits.
"""

from __future__ import annotations

from tvm.ir import Expr

from ..target import Instruction
from .pmaddwd import sums_of_two
from .vector import broadcast, call

NAMES = {8: "llvm.x86.avx2.pmadd.ub.sw", 16: "llvm.x86.avx512.pmaddubs.w.512"}


def dot(instruction: Instruction, acc: Expr, x: Expr, w: Expr) -> Expr:
    """Add the sums of four products to each lane."""
    lanes, x_dtype = instruction.lanes, instruction.x_dtype
    broad = broadcast(x, f"{x_dtype}x{4 * lanes}", lanes)
    operands = (broad, w) if x_dtype == "uint8" else (w, broad)
    return acc + fours(*operands, lanes)


def fours(unsigned: Expr, signed: Expr, lanes: int) -> Expr:
    """Sums of four products, where no two of them leave int16."""
    return sums_of_two(call(NAMES[lanes], f"int16x{2 * lanes}", unsigned, signed), lanes)
