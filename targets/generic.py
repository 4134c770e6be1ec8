"""The row that every CPU can execute: no special instruction, and still exact."""

from __future__ import annotations

from .target import Instruction, Target

#: int8 x int8 products widened to int32; LLVM picks whatever the baseline CPU has.
WIDEN = Instruction(
    name="widening multiply-add",
    mnemonic=None,
    x_dtype="int8",
    w_dtype="int8",
    lanes=8,
    depth=1,
)

GENERIC = Target(
    name="generic",
    description="any x86-64 or aarch64 CPU, baseline instructions only",
    architecture=None,
    llvm={},
    features=frozenset(),
    instruction=WIDEN,
    vector_bytes=16,
    vector_registers=16,
    cache_bytes=2 << 20,
)
