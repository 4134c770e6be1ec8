"""One step of a warp by dot products: one row times 8 columns, see `cuda_layout`.

Lane 4 c + t sums the t-th quarter of column c, and the quarters are added in the end.
`cuda_steps.STEPS` has the code that is called.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

from ..target import Instruction
from .cuda_mma import SHORT


@functools.cache
def register(instruction: Instruction, bits: int, piece: int, scope: str) -> tuple[str, str]:
    """Make the product and the sum of quarters known to TVM; returns the names to tensorize with.

    `scope` is where X and W lie: "global", or "shared.dyn".
    """
    x_dtype, w_dtype = instruction.x_dtype, instruction.w_dtype
    where = "stream" if scope == "global" else "dot"
    function = f"qmm_{where}_{bits}_{piece}_{SHORT[x_dtype] + SHORT[w_dtype]}"
    product = bytes_product if bits == 8 else nibbles_product
    code = product(function, x_dtype, w_dtype, piece, scope)
    TensorIntrin.register(function, *code, override=True)
    TensorIntrin.register("qmm_sum_quarters", *sum_quarters(), override=True)
    return function, "qmm_sum_quarters"


def bytes_product(
    function: str, x_dtype: str, w_dtype: str, piece: int, scope: str
) -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    """8-bit weights: one piece of X per step."""
    quarter = piece // 4

    @T.prim_func(s_tir=True)
    def meaning(
        X: T.Buffer((piece,), x_dtype, offset_factor=1, align=16, scope=scope),
        W: T.Buffer((8, piece), w_dtype, offset_factor=1, align=16, scope=scope),
        C: T.Buffer((32,), "int32", offset_factor=1, scope="warp"),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:32], X[0:piece], W[0:8, 0:piece])
            T.writes(C[0:32])
            for c, t, q in T.grid(8, 4, quarter):
                with T.sblock("dot"):
                    vc, vt, vq = T.axis.remap("SSR", [c, t, q])
                    T.reads(C[vc * 4 + vt], X[vt * quarter + vq], W[vc, vt * quarter + vq])
                    T.writes(C[vc * 4 + vt])
                    C[vc * 4 + vt] = C[vc * 4 + vt] + T.cast(
                        X[vt * quarter + vq], "int32"
                    ) * T.cast(W[vc, vt * quarter + vq], "int32")

    @T.prim_func(s_tir=True)
    def code(
        X: T.Buffer((piece,), x_dtype, offset_factor=1, align=16, scope=scope),
        W: T.Buffer((8, piece), w_dtype, offset_factor=1, align=16, scope=scope),
        C: T.Buffer((32,), "int32", offset_factor=1, scope="warp"),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:32], X[0:piece], W[0:8, 0:piece])
            T.writes(C[0:32])
            for lane in T.thread_binding(32, "threadIdx.x"):
                T.evaluate(
                    T.call_extern(
                        "void",
                        function,
                        T.address_of(C[lane]),
                        X.access_ptr("r"),
                        W.access_ptr("r"),
                    )
                )

    return meaning, code


def nibbles_product(
    function: str, x_dtype: str, w_dtype: str, piece: int, scope: str
) -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    """4-bit weights: two pieces of X per step, for the low nibbles and the high ones."""
    quarter = piece // 4

    @T.prim_func(s_tir=True)
    def meaning(
        X: T.Buffer(
            (2, piece), x_dtype, offset_factor=1, align=16, scope=scope, strides=("half", 1)
        ),
        W: T.Buffer((8, piece), "uint8", offset_factor=1, align=16, scope=scope),
        C: T.Buffer((32,), "int32", offset_factor=1, scope="warp"),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:32], X[0:2, 0:piece], W[0:8, 0:piece])
            T.writes(C[0:32])
            for c, t, h, q in T.grid(8, 4, 2, quarter):
                with T.sblock("dot"):
                    vc, vt, vh, vq = T.axis.remap("SSRR", [c, t, h, q])
                    T.reads(C[vc * 4 + vt], X[vh, vt * quarter + vq], W[vc, vt * quarter + vq])
                    T.writes(C[vc * 4 + vt])
                    C[vc * 4 + vt] = C[vc * 4 + vt] + T.cast(
                        X[vh, vt * quarter + vq], "int32"
                    ) * T.cast(
                        T.cast(
                            T.shift_left(
                                T.shift_right(W[vc, vt * quarter + vq], T.cast(vh * 4, "uint8")),
                                T.uint8(4),
                            ),
                            w_dtype,
                        ),
                        "int32",
                    )

    @T.prim_func(s_tir=True)
    def code(
        X: T.Buffer(
            (2, piece), x_dtype, offset_factor=1, align=16, scope=scope, strides=("half", 1)
        ),
        W: T.Buffer((8, piece), "uint8", offset_factor=1, align=16, scope=scope),
        C: T.Buffer((32,), "int32", offset_factor=1, scope="warp"),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:32], X[0:2, 0:piece], W[0:8, 0:piece])
            T.writes(C[0:32])
            for lane in T.thread_binding(32, "threadIdx.x"):
                T.evaluate(
                    T.call_extern(
                        "void",
                        function,
                        T.address_of(C[lane]),
                        X.access_ptr("r"),
                        X.strides[0],
                        W.access_ptr("r"),
                    )
                )

    return meaning, code


def sum_quarters() -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    """The four quarters of every column added, by shuffles."""

    @T.prim_func(s_tir=True)
    def meaning(
        C: T.Buffer((32,), "int32", offset_factor=1, scope="warp"),
        D: T.Buffer((8,), "int32", offset_factor=1, scope="shared.dyn"),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:32])
            T.writes(D[0:8])
            for c in range(8):
                with T.sblock("sum"):
                    vc = T.axis.remap("S", [c])
                    T.reads(C[vc * 4 : vc * 4 + 4])
                    T.writes(D[vc])
                    D[vc] = C[vc * 4] + C[vc * 4 + 1] + C[vc * 4 + 2] + C[vc * 4 + 3]

    @T.prim_func(s_tir=True)
    def code(
        C: T.Buffer((32,), "int32", offset_factor=1, scope="warp"),
        D: T.Buffer((8,), "int32", offset_factor=1, scope="shared.dyn"),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:32])
            T.writes(D[0:8])
            for lane in T.thread_binding(32, "threadIdx.x"):
                D[lane // 4] = T.call_extern("int32", "qmm_sum_quarters", C[lane])

    return meaning, code
