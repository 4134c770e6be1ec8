"""vpdpbusd on 512-bit registers (Intel SDM vol. 2, "VPDPBUSD"): u8 x s8, no saturation."""

from __future__ import annotations

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

NAME = "quantmm_vpdpbusd_zmm"


@T.prim_func(s_tir=True)
def meaning(
    X: T.Buffer((4,), "uint8", offset_factor=1),
    W: T.Buffer((16, 4), "int8", offset_factor=1),
    C: T.Buffer((16,), "int32", offset_factor=1),
) -> None:
    with T.sblock("root"):
        T.reads(C[0:16], X[0:4], W[0:16, 0:4])
        T.writes(C[0:16])
        for lane in T.serial(0, 16):
            for d in T.serial(0, 4):
                with T.sblock("dot"):
                    vl, vd = T.axis.remap("SR", [lane, d])
                    C[vl] = C[vl] + T.cast(X[vd], "int32") * T.cast(W[vl, vd], "int32")


@T.prim_func(s_tir=True)
def instruction(
    X: T.Buffer((4,), "uint8", offset_factor=1),
    W: T.Buffer((16, 4), "int8", offset_factor=1),
    C: T.Buffer((16,), "int32", offset_factor=1),
) -> None:
    with T.sblock("root"):
        T.reads(C[0:16], X[0:4], W[0:16, 0:4])
        T.writes(C[0:16])
        C[T.ramp(T.int32(0), 1, 16)] = T.call_llvm_pure_intrin(
            T.llvm_lookup_intrinsic_id("llvm.x86.avx512.vpdpbusd.512"),
            C.vload([0], dtype="int32x16"),
            T.reinterpret(
                T.broadcast(T.reinterpret(X.vload([0], "uint8x4"), dtype="int32"), 16),
                dtype="uint8x64",
            ),
            W.vload([0, 0], dtype="int8x64"),
            dtype="int32x16",
        )


TensorIntrin.register(NAME, meaning, instruction, override=True)
