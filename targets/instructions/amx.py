"""AMX-INT8 (Intel SDM vol. 2, "TDPBSSD/TDPBSUD/TDPBUSD/TDPBUUD"): tiles of 16 x 16 sums.

The letters are the signs of activations and weights.

A tile register holds up to 16 rows of 64 bytes. tdp* multiplies a tile of X (rows x depth bytes) by
one of W (depth / 4 rows of 16 columns x 4 bytes, as the weight's layout has them) into one of sums
(rows x 16 int32). The shape of each register is set by ldtilecfg, once per thread before the first
use; `with_tiles` does that around a task.

Registers are numbers in the code, not allocated by LLVM. A register tile of R x B fragments takes

    tmm0 ...                        the sums, fragment (r, b) in number r * B + b
    tmm(R * B) ... + B - 1          the B fragments of W, loaded with the first row of fragments
    tmm(R * B + B)                  the fragment of X, loaded with the first fragment of a row

The number of a fragment comes from the offset of its sums in their buffer, whose memory is never
touched.
"""

from __future__ import annotations

import functools

import tvm_ffi
from tvm import tirx
from tvm.ir import Expr
from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

from ..target import Instruction
from .intrinsics import Intrinsics, intrinsic_name
from .meaning import meaning

#: Bytes of a row of a tile register.
ROW_BYTES = 64
#: Where a configuration has the palette, the bytes per row and the rows of each register.
PALETTE, BYTES_PER_ROW, ROWS, CONFIG_BYTES = 0, 16, 48, 64


def run(name: str, *arguments: Expr | int) -> Expr:
    """A call of the LLVM intrinsic `name` for its effect on registers or memory."""
    return T.call_llvm_intrin("void", f"llvm.x86.{name}", *arguments)


def register_number(number: Expr) -> Expr:
    """A register's number as LLVM wants it."""
    return T.cast(number, "int8")


@functools.cache
def register(instruction: Instruction, fragments: int, blocks: int) -> Intrinsics:
    """Make known to TVM what a tile of `fragments` x `blocks` fragments needs."""
    rows, lanes, depth = instruction.rows, instruction.lanes, instruction.depth
    inner, steps = instruction.block_depth, instruction.depth // instruction.block_depth
    x_dtype, w_dtype = instruction.x_dtype, instruction.w_dtype
    size, first_w = rows * lanes, fragments * blocks
    tdp = instruction.mnemonic
    name = intrinsic_name(instruction, fragments, blocks)

    @T.prim_func(s_tir=True)
    def dot(
        X: T.Buffer((rows, depth), x_dtype, offset_factor=1),
        W: T.Buffer((steps, lanes, inner), w_dtype, offset_factor=1),
        C: T.Buffer((rows, lanes), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:rows, 0:lanes], X[0:rows, 0:depth], W[0:steps, 0:lanes, 0:inner])
            T.writes(C[0:rows, 0:lanes])
            if T.floormod(T.floordiv(C.elem_offset, size), blocks) == 0:
                T.evaluate(
                    run(
                        "tileloadd64",
                        register_number(first_w + blocks),
                        T.address_of(X[0, 0]),
                        T.int64(depth),
                    )
                )
            if T.floordiv(C.elem_offset, size) < blocks:
                T.evaluate(
                    run(
                        "tileloadd64",
                        register_number(first_w + T.floordiv(C.elem_offset, size)),
                        T.address_of(W[0, 0, 0]),
                        T.int64(ROW_BYTES),
                    )
                )
            T.evaluate(
                run(
                    tdp,
                    register_number(T.floordiv(C.elem_offset, size)),
                    register_number(first_w + blocks),
                    register_number(first_w + T.floormod(T.floordiv(C.elem_offset, size), blocks)),
                )
            )

    @T.prim_func(s_tir=True)
    def zero_meaning(C: T.Buffer((rows, lanes), "int32", offset_factor=1)) -> None:
        with T.sblock("root"):
            T.reads()
            T.writes(C[0:rows, 0:lanes])
            for row in T.serial(0, rows):
                for lane in T.serial(0, lanes):
                    with T.sblock("zero"):
                        vr, vl = T.axis.remap("SS", [row, lane])
                        C[vr, vl] = 0

    @T.prim_func(s_tir=True)
    def zero(C: T.Buffer((rows, lanes), "int32", offset_factor=1)) -> None:
        with T.sblock("root"):
            T.reads()
            T.writes(C[0:rows, 0:lanes])
            T.evaluate(run("tilezero", register_number(T.floordiv(C.elem_offset, size))))

    @T.prim_func(s_tir=True)
    def store_meaning(
        C: T.Buffer((rows, lanes), "int32", offset_factor=1),
        S: T.Buffer((rows, lanes), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:rows, 0:lanes])
            T.writes(S[0:rows, 0:lanes])
            for row in T.serial(0, rows):
                for lane in T.serial(0, lanes):
                    with T.sblock("store"):
                        vr, vl = T.axis.remap("SS", [row, lane])
                        S[vr, vl] = C[vr, vl]

    @T.prim_func(s_tir=True)
    def store(
        C: T.Buffer((rows, lanes), "int32", offset_factor=1),
        S: T.Buffer((rows, lanes), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:rows, 0:lanes])
            T.writes(S[0:rows, 0:lanes])
            T.evaluate(
                run(
                    "tilestored64",
                    register_number(T.floordiv(C.elem_offset, size)),
                    T.address_of(S[0, 0]),
                    T.int64(ROW_BYTES),
                )
            )

    TensorIntrin.register(name, meaning(instruction), dot)
    TensorIntrin.register(f"{name}_zero", zero_meaning, zero)
    TensorIntrin.register(f"{name}_store", store_meaning, store)
    setup = functools.partial(
        with_tiles, instruction=instruction, fragments=fragments, blocks=blocks
    )
    return Intrinsics(name, f"{name}_zero", f"{name}_store", setup)


def with_tiles(
    func: tirx.PrimFunc, task: tirx.For, instruction: Instruction, fragments: int, blocks: int
) -> tirx.PrimFunc:
    """The scheduled `func` with tile registers configured at the start of every task.

    And released at its end, so that the thread's next switch need not save them.
    """
    config = tirx.decl_buffer((CONFIG_BYTES,), "uint8", "tile_config")
    sums, rows = fragments * blocks, instruction.rows
    w_registers, x_register = range(sums, sums + blocks), sums + blocks
    values = {PALETTE: 1}
    for number in range(x_register + 1):
        values[BYTES_PER_ROW + 2 * number] = ROW_BYTES
        values[ROWS + number] = rows
    for number in w_registers:
        values[ROWS + number] = instruction.depth // instruction.block_depth
    values[BYTES_PER_ROW + 2 * x_register] = instruction.depth

    def fill(place: int) -> tirx.Stmt:
        return tirx.BufferStore(config, tirx.const(values.get(place, 0), "uint8"), [place])

    address = tirx.address_of(tirx.BufferLoad(config, [0]))
    before = [tirx.AllocBuffer(config), *map(fill, range(CONFIG_BYTES))]
    before.append(tirx.Evaluate(run("ldtilecfg", address)))

    def configured(loop: tirx.For) -> tirx.For:
        if not loop.loop_var.same_as(task.loop_var):
            return loop
        body = tirx.SeqStmt([*before, loop.body, tirx.Evaluate(run("tilerelease"))])
        return tirx.For(
            loop.loop_var, loop.min, loop.extent, loop.kind, body, annotations=loop.annotations
        )

    return func.with_body(tvm_ffi.structural_map(func.body, [(tirx.For, configured)]))
