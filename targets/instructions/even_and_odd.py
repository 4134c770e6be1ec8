"""Bytes to int16, even and odd ones apart: the components that `paired` reads.

Seen as int16, a vector of bytes holds the odd ones in its upper halves; a shift there and back
leaves the even ones. That is three operations for two vectors, none of them between lanes.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T


@functools.cache
def register(steps: int) -> str:
    """Make the intrinsic for `steps` steps of four bytes known to TVM; returns its name."""
    name = f"quantmm_even_and_odd_{steps}"
    TensorIntrin.register(name, meaning(steps), code(steps))
    return name


def meaning(steps: int) -> tirx.PrimFunc:
    """The loops."""
    half = 2 * steps

    @T.prim_func(s_tir=True)
    def loops(
        B: T.Buffer((steps, 4), "int8", offset_factor=1),
        P: T.Buffer((2, half), "int16", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(B[0:steps, 0:4])
            T.writes(P[0:2, 0:half])
            for component in T.serial(0, 2):
                for at in T.serial(0, half):
                    with T.sblock("even_and_odd"):
                        vp, va = T.axis.remap("SS", [component, at])
                        P[vp, va] = T.cast(B[va // 2, va % 2 * 2 + vp], "int16")

    return loops


def code(steps: int) -> tirx.PrimFunc:
    """The shifts."""
    half = 2 * steps
    vector, words = f"int8x{4 * steps}", f"int16x{half}"

    @T.prim_func(s_tir=True)
    def shifts(
        B: T.Buffer((steps, 4), "int8", offset_factor=1),
        P: T.Buffer((2, half), "int16", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(B[0:steps, 0:4])
            T.writes(P[0:2, 0:half])
            P[0, T.ramp(T.int32(0), 1, half)] = (
                T.reinterpret(B.vload([0, 0], dtype=vector), dtype=words)
                << T.broadcast(tirx.const(8, "int16"), half)
            ) >> T.broadcast(tirx.const(8, "int16"), half)
            P[1, T.ramp(T.int32(0), 1, half)] = T.reinterpret(
                B.vload([0, 0], dtype=vector), dtype=words
            ) >> T.broadcast(tirx.const(8, "int16"), half)

    return shifts
