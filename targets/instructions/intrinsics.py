"""What an instruction needs of TVM."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from ..target import Instruction


@dataclass(frozen=True)
class Intrinsics:
    """Names to tensorize with: the dot product, and where vectors are not what holds the sums,
    what zeroes a fragment and what stores it.
    """

    dot: str
    zero: str | None = None
    store: str | None = None


def intrinsic_name(instruction: Instruction, *more: int) -> str:
    """The name of an intrinsic for TVM, which has one table of them for the whole process.

    All fields of the instruction count: rows may show two of them under one name.
    """
    digest = hashlib.sha256(repr((instruction, more)).encode()).hexdigest()[:12]
    return "_".join(["quantmm", *instruction.name.split(), digest])
