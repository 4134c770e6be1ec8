"""64-bit Arm rows, best first."""

from __future__ import annotations

import dataclasses

from .target import Instruction, Target

SDOT = tuple(
    Instruction(
        name=name,
        mnemonic=name,
        x_dtype=dtype,
        w_dtype=dtype,
        lanes=4,
        depth=4,
        x_lanes=4,
        intrinsic="sdot",
        llvm_feature="dotprod",
    )
    for name, dtype in (("sdot", "int8"), ("udot", "uint8"))
)
#: Two instructions side by side make a vector of results, four columns.
SMMLA = tuple(
    Instruction(
        name=name,
        mnemonic=name,
        x_dtype=x_dtype,
        w_dtype=w_dtype,
        lanes=2,
        depth=8,
        rows=2,
        columns=4,
        intrinsic="smmla",
        llvm_feature="i8mm",
    )
    for name, x_dtype, w_dtype in (
        ("smmla", "int8", "int8"),
        ("ummla", "uint8", "uint8"),
        ("usmmla", "uint8", "int8"),
    )
)

DOTPROD = Target(
    name="arm-dotprod",
    description="Armv8.2 dot products: Graviton 2, Cortex-A76 and later, Apple A13 and M1",
    architecture="aarch64",
    llvm={"mcpu": "generic", "mattr": ["+v8.2a", "+dotprod"]},
    features=frozenset(["asimd", "asimddp"]),
    instructions=SDOT,
    vector_bytes=16,
    vector_registers=32,
    cache_bytes=4 << 20,
)
I8MM = dataclasses.replace(
    DOTPROD,
    name="arm-i8mm",
    description="Armv8.6 int8 matrix multiply: Graviton 3 and later, Cortex-X2, Apple M2",
    llvm={"mcpu": "generic", "mattr": ["+v8.2a", "+dotprod", "+i8mm"]},
    features=frozenset(["asimd", "asimddp", "i8mm"]),
    instructions=(*SMMLA, *SDOT),  # sdot for groups that are no multiple of 16 4-bit weights
    tile_rows=(2, 4, 6, 8),
)

ARM_TARGETS = (I8MM, DOTPROD)
