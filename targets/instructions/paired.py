"""Paired products by paddw and pmaddwd (Intel SDM vol. 2), for bytes widened to int16.

    (x + w') (x' + w) + ... = x w + x' w' + x x' + w w' + ...

so the sum of these products is the dot product plus a sum that depends on X alone and one that
depends on W alone: half the multiplications (S. Winograd, "A New Algorithm for Inner Product", IEEE
Transactions on Computers C-17(7), 1968). x and w stand at even k, x' and w' at the odd ones behind.

`signs` takes two multiplications and two other operations for four products, this one
multiplication and three additions, which any port of a core does.

Exact: a sum of two bytes of any sign lies in [-256, 510], far within int16; two products of such
sums are at most 2 * 510 * 510 < 2**20, far within int32; and their sum, like the corrections, is
exact modulo 2**32.
"""

from __future__ import annotations

from tvm.ir import Expr

from ..target import Instruction
from .pmaddwd import twos
from .vector import broadcast


def dot(instruction: Instruction, acc: Expr, x: tuple[Expr, Expr], w: tuple[Expr, Expr]) -> Expr:
    """Add two paired products to each lane; x and w are even and odd ones."""
    lanes = instruction.lanes
    even, odd = (broadcast(each, f"int16x{2 * lanes}", lanes) for each in x)
    return acc + twos(even + w[1], odd + w[0], lanes)
