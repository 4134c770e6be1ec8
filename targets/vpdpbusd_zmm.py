"""vpdpbusd on 512-bit registers (Intel SDM vol. 2, "VPDPBUSD"): u8 x s8, no saturation.

Either side may be the unsigned one: the instruction takes it as its second operand, and the signed
one as its third.
"""

from __future__ import annotations

from tvm import tirx
from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T


def register(name: str, x_dtype: str, w_dtype: str) -> str:
    """Make the intrinsic for activations of `x_dtype` and weights of `w_dtype` known to TVM."""

    @T.prim_func(s_tir=True)
    def meaning(
        X: T.Buffer((4,), x_dtype, offset_factor=1),
        W: T.Buffer((16, 4), w_dtype, offset_factor=1),
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

    def dot(acc: tirx.Expr, x: tirx.Expr, w: tirx.Expr) -> tirx.Expr:
        broadcast = T.reinterpret(T.broadcast(T.reinterpret(x, dtype="int32"), 16), dtype=w_of_x)
        operands = (broadcast, w) if x_dtype == "uint8" else (w, broadcast)
        index = T.llvm_lookup_intrinsic_id("llvm.x86.avx512.vpdpbusd.512")
        return T.call_llvm_pure_intrin(index, acc, *operands, dtype="int32x16")

    w_of_x, four, vector = f"{x_dtype}x64", f"{x_dtype}x4", f"{w_dtype}x64"

    @T.prim_func(s_tir=True)
    def instruction(
        X: T.Buffer((4,), x_dtype, offset_factor=1),
        W: T.Buffer((16, 4), w_dtype, offset_factor=1),
        C: T.Buffer((16,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:16], X[0:4], W[0:16, 0:4])
            T.writes(C[0:16])
            C[T.ramp(T.int32(0), 1, 16)] = dot(
                C.vload([0], dtype="int32x16"),
                X.vload([0], dtype=four),
                W.vload([0, 0], dtype=vector),
            )

    TensorIntrin.register(name, meaning, instruction, override=True)
    return name


#: The names of the intrinsics by the dtypes of activations and weights.
NAMES = {
    (x, w): register(f"quantmm_vpdpbusd_zmm_{x}_{w}", x, w)
    for x, w in (("uint8", "int8"), ("int8", "uint8"))
}
