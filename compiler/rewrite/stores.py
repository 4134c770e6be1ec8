"""Where the tiles of a CPU's functions and of a GPU's kernels lie in the caller's arrays."""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import tirx

from ...schedules.cpu.program import Program
from ...schedules.cuda.steps import COPY
from ...targets.cuda_layout import COLUMNS
from .arrays import Element, Tiles, over_arrays


def store_cpu_tiles(program: Program, func: tirx.PrimFunc, n: int) -> tirx.PrimFunc:
    """`func`, a schedule of `program`, over arrays that may lie at any address."""
    layout = program.layout
    mi = next(param for param in func.params if param.name == "mi")

    def place(index: Sequence[tirx.Expr]) -> Element:
        o, i, r, nb, lane = index
        column = tirx.min(nb * layout.lanes, layout.last_column) + lane
        return (o * mi + i) * program.tile.rows + r, column

    def guarded(store: tirx.BufferStore, index: Sequence[tirx.Expr]) -> tirx.Stmt:
        if n < layout.lanes:
            return tirx.IfThenElse(store.indices[1] < n, store, None)
        if layout.n_blocks % program.tile.width:
            return tirx.IfThenElse(index[3] < layout.y_blocks, store, None)
        return store

    def alignment(dtype: str) -> int:
        return int(tvm.DataType(dtype).itemsize)

    return over_arrays(func, n, Tiles(place, guarded, alignment=alignment))


def store_gpu_tiles(func: tirx.PrimFunc, n: int, rows: int) -> tirx.PrimFunc:
    """`func`, a scheduled multiplication in tiles of `rows` rows, over the caller's arrays.

    Its arguments become two more: `aligned`, whether rows of y start at multiples of 16 bytes, of
    which stores then are; and n once more as `columns`: a number that is not known here keeps
    single stores from being joined. Of the residual the last row and column are read behind them.
    """
    params = {param.name: param for param in func.params}
    m, vector = params["x"].shape[0], COPY // tvm.DataType(params["y"].dtype).itemsize
    aligned, columns = tirx.Var("aligned", "int32"), tirx.Var("columns", "int32")

    def place(index: Sequence[tirx.Expr]) -> Element:
        _, i, r, *column = index
        return i * rows + r, column[0] if len(column) == 1 else column[0] * COLUMNS + column[1]

    def guarded(store: tirx.BufferStore, index: Sequence[tirx.Expr]) -> tirx.Stmt:
        column = store.indices[1]
        whole = tirx.And(aligned == 1, (column // vector + 1) * vector <= n)
        return tirx.IfThenElse(whole, store, tirx.IfThenElse(column < columns, store, None))

    def read(element: Element) -> Element:
        row, column = element
        return tirx.min(row, m - 1), tirx.min(column, n - 1)

    return over_arrays(func, n, Tiles(place, guarded, read, more=(aligned, columns)))
