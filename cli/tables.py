"""Tables on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def show(table: Table) -> None:
    """Print a table as wide as it needs to be when nobody watches a terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print(table)
