"""How a tile's sums lie, so that the fragment that an instruction adds to is contiguous.

With one row per fragment and a block of columns as wide, that is plain [row][block][column].
Matrix instructions write several rows at once, to [R / rows][block][columns / lanes][rows][lanes].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..targets import Instruction

if TYPE_CHECKING:
    from tvm.ir import Expr

    Index = tuple[Expr | int, ...]


def axes_over(instruction: Instruction, columns: int) -> list[str]:
    """Names of the axes along which the fragments of a tile lie."""
    return ["r", "nb", "fragment"] if columns > instruction.lanes else ["r", "nb"]


def axes_within(instruction: Instruction) -> list[str]:
    """Names of the axes of a fragment."""
    return ["row", "lane"] if instruction.rows > 1 else ["lane"]


def sums_shape(instruction: Instruction, rows: int, blocks: Expr | int, columns: int) -> Index:
    """The shape of the sums of `rows` rows and `blocks` blocks of `columns` columns."""
    fragments = (columns // instruction.lanes,) if columns > instruction.lanes else ()
    inner = (instruction.rows,) if instruction.rows > 1 else ()
    return rows // instruction.rows, blocks, *fragments, *inner, instruction.lanes


def sums_at(instruction: Instruction, columns: int, r: Expr, nb: Expr, lane: Expr) -> Index:
    """Where the sum of row `r` and column `lane` of block `nb` lies."""
    rows, lanes = instruction.rows, instruction.lanes
    fragment = (lane // lanes,) if columns > lanes else ()
    inner = (r % rows,) if rows > 1 else ()
    return r // rows if rows > 1 else r, nb, *fragment, *inner, lane % lanes


def sums_of(instruction: Instruction, columns: int, index: Index) -> tuple[Expr, Expr, Expr]:
    """The inverse of `sums_at`: row, block, column within the block."""
    r, nb, *rest = index
    lane = rest.pop()
    if instruction.rows > 1:
        r = r * instruction.rows + rest.pop()
    if columns > instruction.lanes:
        lane = rest.pop() * instruction.lanes + lane
    return r, nb, lane
