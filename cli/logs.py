"""`quantmm logs`: what tuning has found, and looking after it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from ..errors import RecordError
from ..schedules import records
from ..tuning import keeping
from .cache import in_short
from .tables import show

LOG = click.argument("log", required=False, type=click.Path(path_type=Path))


@click.group("logs")
def logs_command() -> None:
    """List, check, merge, prune and export the logs of `quantmm tune`.

    Without a LOG the user's own is meant, and for `list` also those that come with quantmm.
    """


@logs_command.command("list")
@LOG
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def list_command(log: Path | None, as_json: bool) -> None:
    """Show the record of every spec: times in ms for each M, and whether it is used here."""
    logs = [log] if log else [records.default_folder(), records.SHIPPED]
    found = [
        kernel
        for each in logs
        if log or records.databases(each)
        for kernel in keeping.kernels(each)
    ]
    if as_json:
        rows = [{**each.header, **each.fields, "database": str(each.database)} for each in found]
        click.echo(json.dumps(rows, indent=1))
        return
    table = Table(box=None, pad_edge=False)
    for name in ("record", "target", "spec", "M: default, tuned", "used here"):
        table.add_column(name, overflow="fold")
    for each in found:
        table.add_row(
            f"{each.database}:{each.number}",
            str(each.header["target"]),
            in_short(each.spec),
            "\n".join(map(measured_text, each.measured)),
            used_text(each),
        )
    show(table)


def used_text(kernel: keeping.Kernel) -> str:
    """Whether a record is used here, and on what condition."""
    if reason := kernel.why_not_here():
        return f"no: {reason}"
    threads = kernel.with_threads()
    used = "yes" if threads is None else f"yes, with threads={threads}"
    return used if kernel.fields.get("tuned") else f"{used}: the defaults"


def measured_text(measured: dict[str, Any]) -> str:
    """The times of one M."""
    times = f"{measured['default'] * 1e3:.4f}, {measured['tuned'] * 1e3:.4f}"
    return f"{measured['m']}: {times}"


@logs_command.command("check")
@LOG
def check_command(log: Path | None) -> None:
    """Read every line, and say which are damaged or do not fit."""
    where = log or records.default_folder()
    found = keeping.check(where)
    for line in found:
        click.echo(line)
    if found:
        raise RecordError(f"{where}: {len(found)} records cannot be used")
    click.echo(f"{where}: everything is whole")


@logs_command.command("merge")
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.argument("into", type=click.Path(path_type=Path))
def merge_command(sources: tuple[Path, ...], into: Path) -> None:
    """Add the records of SOURCES to the log INTO."""
    click.echo(f"{into}: {keeping.merge(sources, into)} new lines")


@logs_command.command("prune")
@LOG
def prune_command(log: Path | None) -> None:
    """Keep of every problem the default and the fastest trial, of every spec the latest record."""
    where = log or records.default_folder()
    click.echo(f"{where}: {keeping.prune(where)} lines less")


@logs_command.command("export")
@click.argument("log", type=click.Path(path_type=Path))
@click.argument("into", type=click.Path(path_type=Path))
def export_command(log: Path, into: Path) -> None:
    """Write what is worth sharing of LOG to a new log INTO: pruned, and without damage."""
    if into.exists() and not into.is_dir():
        raise RecordError(f"{into} is a file; expected a new folder")
    if into.is_dir() and any(into.iterdir()):
        raise RecordError(f"{into} is not empty; expected a new folder, or use merge")
    keeping.merge([log], into)
    keeping.prune(into)
    click.echo(f"{into}: {len(keeping.kernels(into))} records")
