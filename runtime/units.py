"""The units of work that a call of several weights is cut into.

Rows of X are sorted by the expert that multiplies them, and `offs` has where those of each end. A
unit is a block of rows of one expert, and a share of that expert's panels of columns: a thread
packs the rows and computes the share. There are several units for each thread, all of about the
same work; experts without rows have none.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from ..schedules.arguments import UNIT
from .info import KernelInfo

#: Units that each thread should have, so that none waits long for the last one.
UNITS_PER_THREAD = 8
#: Columns that make packing the rows once more for another unit worth it.
LEAST_COLUMNS = 512

#: What the table says of a unit, by the names of `UNIT`.
Unit = tuple[int, int, int, int, int]
ROWS = UNIT.index("rows")


@dataclass(frozen=True)
class UnitSize:
    """What bounds the units of a function.

    Attributes
    ----------
    tile : rows of a tile.
    rows : that a unit has at most, whole tiles, as they stay in a cache.
    panels : of the columns of an expert.
    least : panels that a unit has at least, where the expert has as many.
    """

    tile: int
    rows: int
    panels: int
    least: int

    def tiles(self, rows: int) -> int:
        """Tiles of so many rows."""
        return -(-rows // self.tile)


def unit_size(info: KernelInfo, name: str) -> UnitSize:
    """The bounds of the function `name`."""
    function = next(each for each in info.functions if each.name == name)
    tile, panels = function.rows, function.panels
    columns = -(-info.layout.n_blocks // panels) * info.layout.lanes
    rows = max(tile, function.block_rows // tile * tile)
    return UnitSize(tile, rows, panels, -(-LEAST_COLUMNS // columns))


def units_of(ends: Sequence[int], size: UnitSize, threads: int) -> list[Unit]:
    """The units of a call on so many threads, where the rows of each expert end at `ends`."""
    blocks: list[tuple[int, int, int]] = []
    start = 0
    for expert, end in enumerate(ends):
        blocks += [(expert, row, min(size.rows, end - row)) for row in range(start, end, size.rows)]
        start = end
    tiles = sum(size.tiles(rows) for _, _, rows in blocks)
    # The tiles over a panel that a unit should have.
    fair = 1 if threads == 1 else UNITS_PER_THREAD * threads
    work = max(1, tiles * size.panels // fair)
    table: list[Unit] = []
    for expert, row, rows in blocks:
        shares = max(1, min(size.tiles(rows) * size.panels // work, size.panels // size.least))
        if shares == 1:
            table.append((expert, row, rows, 0, size.panels))
            continue
        cuts = [share * size.panels // shares for share in range(shares + 1)]
        table += [
            (expert, row, rows, first, last - first) for first, last in itertools.pairwise(cuts)
        ]
    return table
