"""Tensor intrinsics: each module holds one family of instructions as TVM code.

Their meaning, the plain loop, is the same for all and stands in `meaning`; what an intrinsic
replaces is checked against it by TVM whenever a schedule is tensorized.
"""

from __future__ import annotations

from ..target import Instruction
from . import amx, vector
from .intrinsics import Intrinsics

__all__ = ["Intrinsics", "register"]


def register(instruction: Instruction, fragments: int, blocks: int) -> Intrinsics:
    """The names under which TVM knows the instruction.

    A tile is `fragments` x `blocks` fragments, which matters to instructions on registers that the
    compiler does not allocate.
    """
    if instruction.registers is None:
        return Intrinsics(dot=vector.register(instruction))
    return amx.register(instruction, fragments, blocks)
