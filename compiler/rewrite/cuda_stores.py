"""From tiles to the caller's arrays on a GPU: the last rewrite before code generation.

As `tiles` for CPUs: rows of x, y and the residual get a distance of their own, what lies beyond the
matrix is not stored, and of the residual the last row and column are read instead. Stores are of 16
bytes where the argument `aligned` says that rows of y start at multiples of that.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import tirx

from ...schedules.cuda.steps import COPY
from ...targets.cuda_layout import COLUMNS


def strided(name: str, shape: tuple[tirx.Expr | int, ...], dtype: str) -> tirx.Var:
    """A buffer whose rows lie at a distance that only a call knows."""
    within = [shape[-1], 1] if len(shape) == 3 else [1]
    strides = [tirx.Var(f"{name}_stride", "int32"), *within]
    return tirx.decl_buffer(shape, dtype, name, strides=strides)


def read_rows(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """`func`, a scheduled preparation, over an x with a row stride."""
    (x,) = (param for param in func.params if param.name == "x")
    rows = strided("x", x.shape, x.dtype)

    def buffer(var: tvm.ir.Var) -> tvm.ir.Var:
        return rows if var.same_as(x) else var

    body = tvm_ffi.structural_map(func.body, [(tvm.ir.Var, buffer)])
    arguments = [rows if param.same_as(x) else param for param in func.params]
    return tirx.PrimFunc(arguments, body, func.ret_type, func.attrs)


def store_within(func: tirx.PrimFunc, n: int, rows: int) -> tirx.PrimFunc:
    """`func`, a scheduled multiplication in tiles of `rows` rows, over the caller's arrays.

    Its arguments become x, residual and y (M, n) with row strides; `aligned`, and n
    once more as `columns`: a number that is not known here keeps single stores from being joined.
    """
    params = {param.name: param for param in func.params}
    x, tile, residual = params["x"], params["y"], params.get("residual")
    m = x.shape[0]
    aligned, columns = tirx.Var("aligned", "int32"), tirx.Var("columns", "int32")
    vector = COPY // tvm.DataType(tile.dtype).itemsize

    replaced = {"x": strided("x", x.shape, x.dtype), "y": strided("y", (m, n), tile.dtype)}
    if residual is not None:
        replaced["residual"] = strided("residual", (m, n), residual.dtype)

    def place(index: list[tirx.Expr]) -> tuple[tirx.Expr, tirx.Expr]:
        _, i, r, *column = index
        return i * rows + r, column[0] if len(column) == 1 else column[0] * COLUMNS + column[1]

    stored = 0

    def store(stmt: tirx.BufferStore) -> tirx.Stmt:
        nonlocal stored
        if not stmt.buffer.same_as(tile):
            return stmt
        stored += 1
        row, column = place(list(stmt.indices))
        one = tirx.BufferStore(replaced["y"], stmt.value, [row, column])
        whole = tirx.And(aligned == 1, (column // vector + 1) * vector <= n)
        body = tirx.IfThenElse(whole, one, tirx.IfThenElse(column < columns, one, None))
        return tirx.IfThenElse(row < m, body, None)

    def load(value: tvm.ir.TensorLoad) -> tvm.ir.TensorLoad:
        if residual is None or not value.source.same_as(residual):
            return value
        row, column = place(list(value.indices))
        within = [tirx.min(row, m - 1), tirx.min(column, n - 1)]
        return tirx.BufferLoad(replaced["residual"], within)

    def region(covered: tvm.ir.TensorRegion) -> tvm.ir.TensorRegion:
        for name, before in (("y", tile), ("residual", residual)):
            if before is not None and covered.source.same_as(before):
                corner = place([extent.min for extent in covered.region])
                ranges = [tvm.ir.Range.from_min_extent(at, 1) for at in corner]
                return tirx.BufferRegion(replaced[name], ranges)
        return covered

    def buffer(var: tvm.ir.Var) -> tvm.ir.Var:
        return replaced["x"] if var.same_as(x) else var

    body = tvm_ffi.structural_map(
        func.body,
        [
            (tvm.ir.TensorLoad, load),
            (tirx.BufferStore, store),
            (tvm.ir.TensorRegion, region),
            (tvm.ir.Var, buffer),
        ],
    )
    assert stored, "a schedule stores its tiles"
    arguments = [replaced.get(param.name, param) for param in func.params]
    return tirx.PrimFunc([*arguments, aligned, columns], body, func.ret_type, func.attrs)
