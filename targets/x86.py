"""x86-64 rows, best first."""

from __future__ import annotations

from .target import Instruction, Target

#: Features of the x86-64-v4 level (System V psABI, "Micro-Architecture Levels").
X86_64_V4 = frozenset(
    [
        "avx",
        "avx2",
        "avx512f",
        "avx512bw",
        "avx512cd",
        "avx512dq",
        "avx512vl",
        "bmi1",
        "bmi2",
        "f16c",
        "fma",
        "movbe",
    ]
)

VPDPBUSD_ZMM = tuple(
    Instruction(
        name="vpdpbusd zmm",
        mnemonic="vpdpbusd",
        x_dtype=x_dtype,
        w_dtype=w_dtype,
        lanes=16,
        depth=4,
        intrinsic="vpdpbusd_zmm",
    )
    for x_dtype, w_dtype in (("uint8", "int8"), ("int8", "uint8"))
)

X86_TARGETS = (
    Target(
        name="x86-avx512vnni",
        description="AVX512-VNNI: Intel Ice Lake and later, AMD Zen 4 and later",
        architecture="x86_64",
        llvm={"mcpu": "x86-64-v4", "mattr": ["+avx512vnni"]},
        features=X86_64_V4 | {"avx512_vnni"},
        instructions=VPDPBUSD_ZMM,
        vector_bytes=64,
        vector_registers=32,
        cache_bytes=8 << 20,
    ),
)
