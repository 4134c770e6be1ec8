"""From tiles to the caller's arrays: the last rewrite before code generation.

A schedule computes whole tiles. Here the stores of tiles become stores into an (M, n) array with
any row stride, made only where the row and the column exist; and the activations get a row stride
too. Both arrays may lie at any address.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import tirx

from ..schedules.program import Program


def store_within(program: Program, func: tirx.PrimFunc, n: int) -> tirx.PrimFunc:
    """`func`, a schedule of `program`, over x (M, k) and y (M, n) with row strides."""
    params = {param.name: param for param in func.params}
    x, tile, mi = params["x"], params["y"], params["mi"]
    lanes = program.layout.lanes
    m = x.shape[0]
    strided_x, y = (
        tirx.decl_buffer(
            shape,
            dtype,
            name,
            strides=[tirx.Var(f"{name}_stride", "int32"), 1],
            data_alignment=tvm.DataType(dtype).itemsize,
        )
        for name, shape, dtype in (("x", x.shape, x.dtype), ("y", (m, n), tile.dtype))
    )

    def place(tile_index: list[tirx.Var]) -> list[tirx.Var]:
        o, i, r, nb, lane = tile_index
        return [(o * mi + i) * program.tile.rows + r, nb * lanes + lane]

    def store(stmt: tirx.BufferStore) -> tirx.Stmt:
        if not stmt.buffer.same_as(tile):
            return stmt
        row, column = place(list(stmt.indices))
        body: tirx.Stmt = tirx.BufferStore(y, stmt.value, [row, column])
        nb = stmt.indices[3]
        if n % lanes:
            # Whole blocks are stored as vectors, the columns of the last one singly.
            single = tirx.IfThenElse(column < n, body, None)
            body = tirx.IfThenElse((nb + 1) * lanes <= n, body, single)
        elif program.layout.n_blocks % program.tile.blocks:
            body = tirx.IfThenElse(nb < program.layout.n_blocks, body, None)
        return tirx.IfThenElse(row < m, body, None)

    def region(written: tvm.ir.TensorRegion) -> tvm.ir.TensorRegion:
        if not written.source.same_as(tile):
            return written
        corner = place([extent.min for extent in written.region])
        return tirx.BufferRegion(y, [tvm.ir.Range.from_min_extent(at, 1) for at in corner])

    def buffer(var: tvm.ir.Var) -> tvm.ir.Var:
        return strided_x if var.same_as(x) else var

    body = tvm_ffi.structural_map(
        func.body,
        [(tirx.BufferStore, store), (tvm.ir.TensorRegion, region), (tvm.ir.Var, buffer)],
    )
    replaced = {"x": strided_x, "y": y}
    return tirx.PrimFunc(
        [replaced.get(param.name, param) for param in func.params], body, func.ret_type, func.attrs
    )
