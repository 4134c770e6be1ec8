"""`quantmm cache`: the kernels that `compile` keeps for the next process."""

from __future__ import annotations

import dataclasses
import datetime

import click
from rich.table import Table

from ..compiler import cache
from ..compiler.cache import Entry
from ..errors import QuantmmError
from ..formats.spec import MatmulSpec
from .tables import show


@click.command("cache")
@click.option("--clear", is_flag=True, help="Remove the kernels; other files stay.")
def cache_command(clear: bool) -> None:
    """Show the kernels that `quantmm.compile` keeps in the user's cache folder, or remove them.

    They are used while spec, target, versions and quantmm's source are the same. Beyond 512 MiB
    the least recently used ones go by themselves.
    """
    if clear:
        click.echo(f"{cache.folder()}: removed {counted(cache.clear())}")
        return
    entries = cache.entries()
    click.echo(f"{cache.folder()}: {counted(entries)} of at most {cache.LIMIT:,}")
    if entries:
        show(entries_table(entries))


def counted(entries: list[Entry]) -> str:
    """How many, and how large in all."""
    kernels = "1 kernel" if len(entries) == 1 else f"{len(entries)} kernels"
    return f"{kernels}, {sum(entry.size for entry in entries):,} bytes"


def entries_table(entries: list[Entry]) -> Table:
    """A row for each entry."""
    table = Table(box=None, pad_edge=False)
    table.add_column("target")
    table.add_column("spec", ratio=1)
    table.add_column("bytes", justify="right")
    table.add_column("last use", min_width=16)
    for entry in entries:
        used = datetime.datetime.fromtimestamp(entry.used).isoformat(" ", "minutes")
        table.add_row(*described(entry), f"{entry.size:,}", used)
    return table


def described(entry: Entry) -> tuple[str, str]:
    """The target and spec of an entry, or why it is as good as none."""
    try:
        (stored,) = cache.stored_in(entry.path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if not isinstance(error, QuantmmError):
            return "(unused)", "is not an entry of this version"
        return "(unused)", str(error).removeprefix(f"{entry.path} ")
    return stored.info.target, in_short(stored.info.spec)


def in_short(spec: MatmulSpec) -> str:
    """A spec's sizes, and what is not as usual."""
    words = [f"{spec.n} x {spec.k}"]
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if field.name not in ("n", "k") and value != field.default:
            words.append(field.name if value is True else f"{field.name}={value}")
    return " ".join(words)
