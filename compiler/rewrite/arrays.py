"""From tiles to the caller's arrays: the last rewrite before code generation.

A schedule computes whole tiles. Here the stores of tiles become stores into an (M, n) array with
any row stride, made only where the row and the column exist; the residual is read likewise; and the
activations get a row stride too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tvm
import tvm_ffi
from tvm import tirx

#: An element of an (M, n) array: row and column.
Element = tuple[tirx.Expr, tirx.Expr]


@dataclass(frozen=True)
class Tiles:
    """How the tiles of a function lie in the (M, n) arrays of its caller.

    Attributes
    ----------
    place : the element that an index into the tiles stands for.
    guarded : a store of the element (row, column) of the result, from an index into the tiles, made
        only where the column exists.
    read : the element of the residual that is read for one of the result.
    alignment : in bytes, of arrays with numbers of a dtype; 0 leaves it to TVM.
    more : arguments behind those of `func`.
    """

    place: Callable[[Sequence[tirx.Expr]], Element]
    guarded: Callable[[tirx.BufferStore, Sequence[tirx.Expr]], tirx.Stmt]
    read: Callable[[Element], Element] = lambda element: element
    alignment: Callable[[str], int] = lambda dtype: 0
    more: tuple[tirx.Var, ...] = ()


def strided(
    name: str, shape: Sequence[tirx.Expr | int], dtype: str, alignment: int = 0
) -> tirx.Var:
    """A buffer whose rows lie at a distance that only a call knows."""
    within = [shape[-1], 1] if len(shape) == 3 else [1]
    strides = [tirx.Var(f"{name}_stride", "int32"), *within]
    aligned = {"data_alignment": alignment} if alignment else {}
    return tirx.decl_buffer(shape, dtype, name, strides=strides, **aligned)


def read_rows(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """`func`, a scheduled preparation, over an x with a row stride."""
    (x,) = (param for param in func.params if param.name == "x")
    rows = strided("x", x.shape, x.dtype)

    def buffer(var: tvm.ir.Var) -> tvm.ir.Var:
        return rows if var.same_as(x) else var

    body = tvm_ffi.structural_map(func.body, [(tvm.ir.Var, buffer)])
    arguments = [rows if param.same_as(x) else param for param in func.params]
    return tirx.PrimFunc(arguments, body, func.ret_type, func.attrs)


def over_arrays(func: tirx.PrimFunc, n: int, tiles: Tiles) -> tirx.PrimFunc:
    """`func`, a scheduled multiplication in tiles, over x and residual and y (M, n)."""
    params = {param.name: param for param in func.params}
    x, tile, residual = params["x"], params["y"], params.get("residual")
    m = x.shape[0]
    shapes = {"x": x.shape, "y": (m, n)} | ({} if residual is None else {"residual": (m, n)})
    replaced = {
        name: strided(name, shape, params[name].dtype, tiles.alignment(params[name].dtype))
        for name, shape in shapes.items()
    }
    stored = 0

    def store(stmt: tirx.BufferStore) -> tirx.Stmt:
        nonlocal stored
        if not stmt.buffer.same_as(tile):
            return stmt
        stored += 1
        row, column = tiles.place(stmt.indices)
        one = tirx.BufferStore(replaced["y"], stmt.value, [row, column])
        return tirx.IfThenElse(row < m, tiles.guarded(one, stmt.indices), None)

    def load(value: tvm.ir.TensorLoad) -> tvm.ir.TensorLoad:
        if residual is None or not value.source.same_as(residual):
            return value
        element = tiles.read(tiles.place(value.indices))
        return tirx.BufferLoad(replaced["residual"], list(element))

    def region(covered: tvm.ir.TensorRegion) -> tvm.ir.TensorRegion:
        for name, before in (("y", tile), ("residual", residual)):
            if before is not None and covered.source.same_as(before):
                corner = tiles.place([extent.min for extent in covered.region])
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
    return tirx.PrimFunc([*arguments, *tiles.more], body, func.ret_type, func.attrs)
