"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from ..bench.columns import Column


def lined(columns: Mapping[str, Column], *numbers: str) -> Table:
    """A table without lines yet, with columns of these headings and then `numbers`."""
    table = Table(box=None, pad_edge=False)
    for i, (name, column) in enumerate(columns.items()):
        table.add_column(name, justify="left" if column.words else "right", no_wrap=i == 0)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def show(table: Table) -> None:
    """Print a table as wide as it needs to be when nobody watches a terminal.

    Where a terminal is too narrow it breaks the lines itself, and no column is lost.
    """
    console = Console()
    width = console.width if console.is_terminal else 140
    Console(width=max(width, needed(table))).print(table)


def needed(table: Table) -> int:
    """Columns without which a table has no room for its longest words."""
    wide = Console(width=1000)
    return table.__rich_measure__(wide, wide.options).minimum
