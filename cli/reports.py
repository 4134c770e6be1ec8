"""What commands that measure have in common: progress, files, and failing without quantmm."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import click
from rich.console import Console
from rich.progress import Progress

from ..bench.contenders import OURS
from ..bench.row import Measured
from ..compiler import linker
from ..errors import BenchError, ReportError
from ..files import check_writable, write_whole
from ..runtime import devices
from ..targets import CudaTarget, Target, machine

#: The file name that stands for the terminal.
STDOUT = "-"

T = TypeVar("T")


def check_files(names: Collection[str]) -> None:
    """Find out before the work whether its results can be written.

    Raises
    ------
    ReportError
        They cannot.
    """
    for name in names:
        if name != STDOUT:
            check_writable(Path(name), ReportError)


def write_report(name: str, text: str) -> None:
    """Write to a file, or print."""
    if name == STDOUT:
        click.echo(text)
    else:
        write_whole(Path(name), text.encode(), ReportError)


def watched(items: Sequence[T], described: Callable[[T], str]) -> Iterator[T]:
    """One item after the other, with a bar on the terminal that says which one it is."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(items))
        for item in items:
            progress.update(task, description=described(item))
            yield item
            progress.advance(task)


@contextmanager
def working(text: str) -> Iterator[None]:
    """Say on the terminal what is done meanwhile, of which nobody knows how long it takes."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(text):
        yield


def rows_to_save(names: Sequence[str]) -> list[Target | CudaTarget]:
    """The rows of targets for which kernels can be linked here.

    Asked before the work, in which every kernel would say that it is not kept.

    Raises
    ------
    TargetError
        No such target.
    ToolError
        No linker for one of them.
    """
    rows = [devices.find(name) for name in names]
    for row in rows:
        if row.device == "cpu":
            linker.command(row.architecture or machine.architecture())
    return rows


def require_ours(rows: Sequence[Measured], names: Collection[str] = (OURS.name,)) -> None:
    """Fail where quantmm itself took no part.

    Raises
    ------
    BenchError
        One of `names` is absent from a row.
    """
    without = [(row, name) for row in rows for name in names if name in row.absent]
    if without:
        row, name = without[0]
        raise BenchError(
            f"{name} took no part in {len(without)} of {len(rows)} rows, the first "
            f"{row.format} {row.title}: {row.absent[name]}"
        )
