"""Tensor intrinsics: each module holds one family of instructions as TVM code.

A module has `dot`, the code for a fragment that is one vector (see `vector`), or `register` where
sums lie elsewhere. Their meaning, the plain loop, is the same for all and stands in `meaning`; what
an intrinsic replaces is checked against it by TVM whenever a schedule is tensorized.
"""

from __future__ import annotations

import importlib

from tvm import tirx

from ..target import Instruction
from . import vector
from .intrinsics import Intrinsics

__all__ = ["Intrinsics", "register", "with_setup"]


def register(instruction: Instruction, fragments: int, blocks: int) -> Intrinsics:
    """The names under which TVM knows the instruction.

    A tile is `fragments` x `blocks` fragments, which matters to instructions on registers that the
    compiler does not allocate.
    """
    family = importlib.import_module(f".{instruction.intrinsic}", __package__)
    if hasattr(family, "dot"):
        return Intrinsics(dot=vector.register(instruction, family.dot))
    intrinsics: Intrinsics = family.register(instruction, fragments, blocks)
    return intrinsics


def with_setup(
    func: tirx.PrimFunc, task: tirx.For, instruction: Instruction, fragments: int, blocks: int
) -> tirx.PrimFunc:
    """The scheduled `func` with what the instruction needs at the start and end of every task."""
    if instruction.intrinsic is None:
        return func
    setup = register(instruction, fragments, blocks).setup
    return setup(func, task) if setup else func
