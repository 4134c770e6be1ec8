"""Tables on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


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
