"""One step of a warp on the tensor core: 16 rows times blocks of 8 columns, see `cuda_layout`.

The sums lie as mma.sync leaves them (PTX ISA, "Matrix Fragments for mma.m16n8k32"): lane 4 g + t
holds rows g and g + 8, columns 2 t and 2 t + 1. `cuda_steps.STEPS` has the code that is called.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.ir import Expr
from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

from ..target import Instruction

SHORT = {"int8": "s8", "uint8": "u8"}


def place(r: Expr, c: Expr) -> tuple[Expr, Expr]:
    """Lane and register of the sum in row `r` and column `c` of a 16 x 8 fragment."""
    return r % 8 * 4 + c // 2, r // 8 * 2 + c % 2


def rows(piece: int, dtype: str, halves: int = 1) -> tirx.Buffer:
    """A piece of 16 rows of X, or two where W has low and high nibbles, in shared memory."""
    shape, strides = ((16, piece), None) if halves == 1 else ((2, 16, piece), ("half", piece, 1))
    return in_shared(shape, dtype, strides)


def columns(blocks: int, piece: int, dtype: str) -> tirx.Buffer:
    """A step of blocks of 8 columns of W in shared memory."""
    return in_shared((blocks, 1, 8, piece), dtype, ("apart", "step", piece, 1))


def in_shared(
    shape: tuple[int, ...], dtype: str, strides: tuple[int | str, ...] | None
) -> tirx.Buffer:
    """A piece of shared memory, for loads of 16 bytes."""
    return T.Buffer(shape, dtype, offset_factor=1, align=16, scope="shared.dyn", strides=strides)


def sums(*blocks: int) -> tirx.Buffer:
    """Sums in a warp's registers, for blocks of 8 columns or for one."""
    return T.Buffer((*blocks, 32, 4), "int32", offset_factor=1, scope="warp")


@functools.cache
def register(instruction: Instruction, bits: int, piece: int, blocks: int) -> tuple[str, str]:
    """Make zeroing and product known to TVM; returns the names to tensorize with.

    The product is that of a step with `blocks` blocks of columns: rows of X are loaded once.
    """
    x_dtype, w_dtype = instruction.x_dtype, instruction.w_dtype
    signs = SHORT[x_dtype] + SHORT[w_dtype]
    function = f"qmm_mma_{bits}_{piece}_{signs}"
    product = bytes_product if bits == 8 else nibbles_product
    name = f"{function}_{blocks}"
    TensorIntrin.register(name, *product(function, x_dtype, w_dtype, piece, blocks), override=True)
    TensorIntrin.register("qmm_mma_zero", *zero(), override=True)
    return "qmm_mma_zero", name


def zero() -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    """All sums of a fragment become zero."""

    @T.prim_func(s_tir=True)
    def meaning(C: sums()) -> None:
        with T.sblock("root"):
            T.reads()
            T.writes(C[0:32, 0:4])
            for r in range(16):
                for c in range(8):
                    with T.sblock("zero"):
                        vr, vc = T.axis.remap("SS", [r, c])
                        lane, i = T.meta_var(place(vr, vc))
                        T.reads()
                        T.writes(C[lane, i])
                        C[lane, i] = 0

    @T.prim_func(s_tir=True)
    def code(C: sums()) -> None:
        with T.sblock("root"):
            T.reads()
            T.writes(C[0:32, 0:4])
            for lane in T.thread_binding(32, "threadIdx.x"):
                for i in T.unroll(4):
                    C[lane, i] = 0

    return meaning, code


def bytes_product(
    function: str, x_dtype: str, w_dtype: str, piece: int, blocks: int
) -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    """8-bit weights: one piece of X per step."""

    @T.prim_func(s_tir=True)
    def meaning(
        X: rows(piece, x_dtype),
        W: columns(blocks, piece, w_dtype),
        C: sums(blocks),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:blocks, 0:32, 0:4], X[0:16, 0:piece], W[0:blocks, 0:1, 0:8, 0:piece])
            T.writes(C[0:blocks, 0:32, 0:4])
            for n, r, c, q in T.grid(blocks, 16, 8, piece):
                with T.sblock("dot"):
                    vn, vr, vc, vq = T.axis.remap("SSSR", [n, r, c, q])
                    lane, i = T.meta_var(place(vr, vc))
                    T.reads(C[vn, lane, i], X[vr, vq], W[vn, 0, vc, vq])
                    T.writes(C[vn, lane, i])
                    C[vn, lane, i] = C[vn, lane, i] + T.cast(X[vr, vq], "int32") * T.cast(
                        W[vn, 0, vc, vq], "int32"
                    )

    @T.prim_func(s_tir=True)
    def code(
        X: rows(piece, x_dtype),
        W: columns(blocks, piece, w_dtype),
        C: sums(blocks),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:blocks, 0:32, 0:4], X[0:16, 0:piece], W[0:blocks, 0:1, 0:8, 0:piece])
            T.writes(C[0:blocks, 0:32, 0:4])
            for lane in T.thread_binding(32, "threadIdx.x"):
                T.evaluate(
                    T.call_extern(
                        "void",
                        function,
                        T.address_of(C[0, lane, 0]),
                        X.access_ptr("r"),
                        W.access_ptr("r"),
                        W.strides[0],
                        blocks,
                    )
                )

    return meaning, code


def nibbles_product(
    function: str, x_dtype: str, w_dtype: str, piece: int, blocks: int
) -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    """4-bit weights: two pieces of X per step, for the low nibbles and the high ones."""

    @T.prim_func(s_tir=True)
    def meaning(
        X: rows(piece, x_dtype, 2),
        W: columns(blocks, piece, "uint8"),
        C: sums(blocks),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:blocks, 0:32, 0:4], X[0:2, 0:16, 0:piece], W[0:blocks, 0:1, 0:8, 0:piece])
            T.writes(C[0:blocks, 0:32, 0:4])
            for n, r, c, h, q in T.grid(blocks, 16, 8, 2, piece):
                with T.sblock("dot"):
                    vn, vr, vc, vh, vq = T.axis.remap("SSSRR", [n, r, c, h, q])
                    lane, i = T.meta_var(place(vr, vc))
                    T.reads(C[vn, lane, i], X[vh, vr, vq], W[vn, 0, vc, vq])
                    T.writes(C[vn, lane, i])
                    C[vn, lane, i] = C[vn, lane, i] + T.cast(X[vh, vr, vq], "int32") * T.cast(
                        T.cast(
                            T.shift_left(
                                T.shift_right(W[vn, 0, vc, vq], T.cast(vh * 4, "uint8")), T.uint8(4)
                            ),
                            w_dtype,
                        ),
                        "int32",
                    )

    @T.prim_func(s_tir=True)
    def code(
        X: rows(piece, x_dtype, 2),
        W: columns(blocks, piece, "uint8"),
        C: sums(blocks),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:blocks, 0:32, 0:4], X[0:2, 0:16, 0:piece], W[0:blocks, 0:1, 0:8, 0:piece])
            T.writes(C[0:blocks, 0:32, 0:4])
            for lane in T.thread_binding(32, "threadIdx.x"):
                T.evaluate(
                    T.call_extern(
                        "void",
                        function,
                        T.address_of(C[0, lane, 0]),
                        X.access_ptr("r"),
                        X.strides[0],
                        W.access_ptr("r"),
                        W.strides[0],
                        blocks,
                    )
                )

    return meaning, code
