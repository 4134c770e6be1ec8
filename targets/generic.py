"""The row that every CPU can execute: no special instruction, and still exact."""

from __future__ import annotations

from .target import Instruction, Target

#: Products of bytes widened to int32; LLVM picks whatever the baseline CPU has.
WIDEN = tuple(
    Instruction(
        name="widening multiply-add",
        mnemonic=None,
        x_dtype=x_dtype,
        w_dtype=w_dtype,
        lanes=8,
        depth=1,
    )
    for x_dtype in ("int8", "uint8")
    for w_dtype in ("int8", "uint8")
)

GENERIC = Target(
    name="generic",
    description="any x86-64 or aarch64 CPU, baseline instructions only",
    architecture=None,
    llvm={},
    features=frozenset(),
    instructions=WIDEN,
    vector_bytes=16,
    vector_registers=16,
    cache_bytes=2 << 20,
)
