"""Winograd's inner product by paddw and pmaddwd (Intel SDM vol. 2), for bytes widened to int16.

    (x + w') (x' + w) + ... = x w + x' w' + x x' + w w' + ...

so the sum of these products is the dot product plus a sum that depends on X alone and one that
depends on W alone: half the multiplications (S. Winograd, "A New Algorithm for Inner Product", IEEE
Transactions on Computers C-17(7), 1968). x' and w' lie `apart` behind x and w, in the other half of
a block of K.

pmaddwd on the bytes themselves takes two multiplications and two additions for four products, this
one multiplication and three additions, which any port of a core does.

Exact: a sum of two bytes of any sign lies in [-256, 510], far within int16; two products of such
sums are at most 2 * 510 * 510 < 2**20, far within int32; and their sum, like the corrections, is
exact modulo 2**32.
"""

from __future__ import annotations

from tvm.ir import Expr

from ..target import Instruction
from .pmaddwd import NAMES
from .vector import broadcast, call


def dot(instruction: Instruction, acc: Expr, x: tuple[Expr, Expr], w: tuple[Expr, Expr]) -> Expr:
    """Add two products of sums to each lane; x and w are each a piece and the one `apart`."""
    lanes = instruction.lanes
    dtype = f"int16x{2 * lanes}"
    sums = (broadcast(x[0], dtype, lanes) + w[1], broadcast(x[1], dtype, lanes) + w[0])
    return acc + call(NAMES[lanes], f"int32x{lanes}", *sums)
