"""From tiles to the caller's arrays: the last rewrite before code generation.

A schedule computes whole tiles. Here the stores of tiles become stores into an (M, n) array with
any row stride, made only where the row and the column exist; the residual is read likewise; and the
activations get a row stride too. These arrays may lie at any address.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import tirx

from ...schedules.cpu.program import Program


def store_within(program: Program, func: tirx.PrimFunc, n: int) -> tirx.PrimFunc:
    """`func`, a schedule of `program`, over x (M, k) and y (M, n) with row strides."""
    params = {param.name: param for param in func.params}
    x, tile, mi = params["x"], params["y"], params["mi"]
    residual = params.get("residual")
    layout = program.layout
    m = x.shape[0]

    def strided(name: str, shape: tuple[tirx.Expr | int, ...], dtype: str) -> tirx.Var:
        strides = [tirx.Var(f"{name}_stride", "int32"), 1]
        alignment = tvm.DataType(dtype).itemsize
        return tirx.decl_buffer(shape, dtype, name, strides=strides, data_alignment=alignment)

    strided_x, y = strided("x", x.shape, x.dtype), strided("y", (m, n), tile.dtype)
    added = None if residual is None else strided("residual", (m, n), residual.dtype)

    def place(tile_index: list[tirx.Var]) -> list[tirx.Var]:
        o, i, r, nb, lane = tile_index
        column = tirx.min(nb * layout.lanes, layout.last_column) + lane
        return [(o * mi + i) * program.tile.rows + r, column]

    stored = 0

    def store(stmt: tirx.BufferStore) -> tirx.Stmt:
        nonlocal stored
        if not stmt.buffer.same_as(tile):
            return stmt
        stored += 1
        row, column = place(list(stmt.indices))
        value = stmt.value
        if added is not None:
            value = tvm_ffi.structural_map(value, [(tvm.ir.TensorLoad, load)])
        body: tirx.Stmt = tirx.BufferStore(y, value, [row, column])
        if n < layout.lanes:
            body = tirx.IfThenElse(column < n, body, None)
        elif layout.n_blocks % program.tile.width:
            body = tirx.IfThenElse(stmt.indices[3] < layout.n_blocks, body, None)
        return tirx.IfThenElse(row < m, body, None)

    def load(value: tvm.ir.TensorLoad) -> tvm.ir.TensorLoad:
        if not value.source.same_as(residual):
            return value
        return tirx.BufferLoad(added, place(list(value.indices)))

    def region(written: tvm.ir.TensorRegion) -> tvm.ir.TensorRegion:
        if written.source.same_as(tile):
            array = y
        elif residual is not None and written.source.same_as(residual):
            array = added
        else:
            return written
        corner = place([extent.min for extent in written.region])
        return tirx.BufferRegion(array, [tvm.ir.Range.from_min_extent(at, 1) for at in corner])

    def buffer(var: tvm.ir.Var) -> tvm.ir.Var:
        return strided_x if var.same_as(x) else var

    body = tvm_ffi.structural_map(
        func.body,
        [(tirx.BufferStore, store), (tvm.ir.TensorRegion, region), (tvm.ir.Var, buffer)],
    )
    assert stored, "a schedule stores its tiles"
    replaced = {"x": strided_x, "y": y, "residual": added}
    return tirx.PrimFunc(
        [replaced.get(param.name, param) for param in func.params], body, func.ret_type, func.attrs
    )
