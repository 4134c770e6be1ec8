"""x86-64 rows, best first."""

from __future__ import annotations

import dataclasses

from .forms import PAIRED, SIGNS
from .target import GEMV_ROWS, Instruction, Target

#: Features of the x86-64-v3 and v4 levels (System V psABI, "Micro-Architecture Levels").
X86_64_V3 = frozenset(["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"])
X86_64_V4 = X86_64_V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

#: Pairings of signs that vpdpbusd and pmaddubsw multiply: activations, weights.
UNSIGNED_BY_SIGNED = (("uint8", "int8"), ("int8", "uint8"))
#: Stored weights for which pmaddubsw cannot saturate, by their sign; see `instructions.pmaddubsw`.
UNSATURATED = {"int8": (-64, 64), "uint8": (0, 127)}


def fours(
    mnemonics: dict[tuple[str, str], str], lanes: int, family: str, llvm_feature: str
) -> tuple[Instruction, ...]:
    """Dot products of four bytes per lane, one for each pairing of signs."""
    register = {8: "ymm", 16: "zmm"}[lanes]
    return tuple(
        Instruction(
            name=f"{mnemonic} {register}",
            mnemonic=mnemonic,
            x_dtype=x_dtype,
            w_dtype=w_dtype,
            lanes=lanes,
            depth=4,
            intrinsic=family,
            llvm_feature=llvm_feature,
        )
        for (x_dtype, w_dtype), mnemonic in mnemonics.items()
    )


def by_pmaddubsw(lanes: int, llvm_feature: str) -> tuple[Instruction, ...]:
    """What a chip without dot products of bytes has: pmaddubsw, in forms in which it is exact.

    For many rows pmaddwd computes paired products.
    """
    register = {8: "ymm", 16: "zmm"}[lanes]
    pairs = fours(
        dict.fromkeys(reversed(UNSIGNED_BY_SIGNED), "vpmaddubsw"), lanes, "pmaddubsw", llvm_feature
    )
    signs = Instruction(
        name=f"vpxor vpmaddubsw {register}",
        mnemonic="vpmaddubsw",
        x_dtype="int8",
        w_dtype="int8",
        lanes=lanes,
        depth=4,
        form=SIGNS,
        weight_bits=(8,),
        temporaries=2,
        intrinsic="signs",
        llvm_feature=llvm_feature,
    )
    paired = dataclasses.replace(
        signs,
        name=f"vpaddw vpmaddwd {register}",
        mnemonic="vpaddw",
        form=PAIRED,
        slots=0.9,  # 0.67 with one multiplier, 1 on Zen 3: so it begins near 50 rows
        intrinsic="paired",
    )
    return (
        paired,
        signs,
        *(
            dataclasses.replace(pair, weights=UNSATURATED[pair.w_dtype], temporaries=2)
            for pair in pairs
        ),
    )


VPDPBUSD = dict.fromkeys(UNSIGNED_BY_SIGNED, "vpdpbusd")
VPDPBUSD_ZMM = fours(VPDPBUSD, 16, "vpdpbusd", "avx512vnni")

AVX512VNNI = Target(
    name="x86-avx512vnni",
    description="AVX512-VNNI: Intel Ice Lake and later servers, AMD Zen 4 and later",
    architecture="x86_64",
    llvm={"mcpu": "x86-64-v4", "mattr": ["+avx512vnni"]},
    features=X86_64_V4 | {"avx512_vnni"},
    instructions=VPDPBUSD_ZMM,
    vector_bytes=64,
    vector_registers=32,
    cache_bytes=8 << 20,
)
#: A tile of 16 rows takes 16 cycles for 16 of the layout's steps of K, and 32 to load from L2,
#: which gives 32 bytes per cycle (docs/performance.md).
TDP = tuple(
    Instruction(
        name=name,
        mnemonic=name,
        x_dtype=x_dtype,
        w_dtype=w_dtype,
        lanes=16,
        depth=64,
        rows=16,
        interleave=4,
        shapes=True,
        registers=8,
        from_rows=GEMV_ROWS + 1,
        slots=1 / 16,
        load_slots=2,
        intrinsic="amx",
        llvm_feature="amx-int8",
    )
    for name, (x_dtype, w_dtype) in zip(("tdpbusd", "tdpbsud"), UNSIGNED_BY_SIGNED, strict=True)
)
AMX = dataclasses.replace(
    AVX512VNNI,
    name="x86-amx",
    description="AMX-INT8: Intel Sapphire Rapids and later; AVX512-VNNI up to 4 rows",
    llvm={"mcpu": "x86-64-v4", "mattr": ["+avx512vnni", "+amx-tile", "+amx-int8"]},
    features=X86_64_V4 | {"avx512_vnni", "amx_tile", "amx_int8"},
    instructions=(*TDP, *VPDPBUSD_ZMM),
    tile_rows=(1, 2, 3, 4, 8, 12, 16, 24, 32),
    cache_bytes=1 << 20,  # of L2: tiles of sums ask for more than L3 gives (docs/performance.md)
)
AVX512 = dataclasses.replace(
    AVX512VNNI,
    name="x86-avx512",
    description="AVX-512 without VNNI: Intel Skylake servers",
    llvm={"mcpu": "x86-64-v4"},
    features=X86_64_V4,
    instructions=by_pmaddubsw(16, "avx512bw"),
    paired_rows=(7, 8, 9),
)
AVX2 = Target(
    name="x86-avx2",
    description="AVX2: Intel Haswell and later, AMD Zen and later",
    architecture="x86_64",
    llvm={"mcpu": "x86-64-v3"},
    features=X86_64_V3,
    instructions=by_pmaddubsw(8, "avx2"),
    paired_rows=(4,),
    vector_bytes=32,
    vector_registers=16,
    cache_bytes=4 << 20,
)
AVXVNNI = dataclasses.replace(
    AVX2,
    name="x86-avxvnni",
    description="AVX-VNNI: Intel Alder Lake and later, AMD Zen 5",
    llvm={"mcpu": "x86-64-v3", "mattr": ["+avxvnni"]},
    features=X86_64_V3 | {"avx_vnni"},
    instructions=fours(VPDPBUSD, 8, "vpdpbusd", "avxvnni"),
    paired_rows=(),
)
AVXVNNIINT8 = dataclasses.replace(
    AVXVNNI,
    name="x86-avxvnniint8",
    description="AVX-VNNI-INT8: Intel Sierra Forest, Lunar Lake, Arrow Lake",
    llvm={"mcpu": "x86-64-v3", "mattr": ["+avxvnni", "+avxvnniint8"]},
    features=X86_64_V3 | {"avx_vnni", "avx_vnni_int8"},
    instructions=fours(
        {
            ("int8", "int8"): "vpdpbssd",
            ("uint8", "uint8"): "vpdpbuud",
            ("int8", "uint8"): "vpdpbsud",
            ("uint8", "int8"): "vpdpbsud",
        },
        8,
        "vpdpb_all_signs",
        "avxvnniint8",
    ),
)

X86_TARGETS = (AMX, AVX512VNNI, AVX512, AVXVNNIINT8, AVXVNNI, AVX2)
