"""pmaddubsw for bytes of 8 bits, exact: magnitudes of X, signs moved to W by pxor.

With s = -1 for a negative x and 0 for others, w ^ s is -w - 1 or w, so that

    |x| (w ^ s) = x w - |x|  for x < 0,   x w  for others

and the sum of these is the dot product and a sum that depends on X alone. Taking the complement
where psignb would negate has three uses: any port does it, it has no exception (psignb leaves -128
as it is), and pmaddubsw cannot saturate:

    -32768 = 2 * 128 * -128 <= |x| (w ^ s) + |x'| (w' ^ s') <= 2 * 128 * 127 = 32512
"""

from __future__ import annotations

from tvm.ir import Expr

from ..target import Instruction
from .pmaddubsw import fours
from .vector import broadcast


def dot(instruction: Instruction, acc: Expr, x: tuple[Expr, Expr], w: Expr) -> Expr:
    """Add four products to each lane; x is magnitudes and signs."""
    lanes = instruction.lanes
    magnitudes = broadcast(x[0], f"uint8x{4 * lanes}", lanes)
    signs = broadcast(x[1], f"int8x{4 * lanes}", lanes)
    return acc + fours(magnitudes, w ^ signs, lanes)
