"""What an instruction needs of TVM."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from ..target import Instruction


@dataclass(frozen=True)
class Intrinsics:
    """Names to tensorize with.

    Attributes
    ----------
    dot : the dot product.
    zero, store : what zeroes a fragment and what stores it, where vectors do not hold the sums.
    setup : a scheduled function and its loop over tasks, to the function in which every task has
        what the instruction needs before and after it; None where it needs nothing.
    """

    dot: str
    zero: str | None = None
    store: str | None = None
    setup: Callable[[tirx.PrimFunc, tirx.For], tirx.PrimFunc] | None = None


def intrinsic_name(instruction: Instruction, *more: int) -> str:
    """The name of an intrinsic for TVM, which has one table of them for the whole process.

    All fields of the instruction count: rows may show two of them under one name.
    """
    digest = hashlib.sha256(repr((instruction, more)).encode()).hexdigest()[:12]
    return "_".join(["quantmm", *instruction.name.split(), digest])
