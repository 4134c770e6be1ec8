"""`quantmm targets`: what there is, what runs here, and how each row was verified."""

from __future__ import annotations

from collections.abc import Sequence

import click
from rich.table import Table

from .. import targets
from ..runtime.devices import why_no_gpu
from ..runtime.threads import default_threads, pool_name
from ..targets import verified
from ..targets.verified import Record
from ..versions import cuda_versions, versions
from .tables import show

#: What is said of a record that kernels of earlier schedules were verified for.
OLDER = "older schedules"
RENEWAL = (
    f"{OLDER}: the way in which kernels are computed has changed since then. To verify today's:\n"
    "  quantmm verify --target NAME --random 100 --record, with --emulated where NAME does not run"
)


@click.command("targets")
def targets_command() -> None:
    """List the targets, which of them this machine can execute, and how they were verified."""
    table = targets_table(verified.read())
    show(table)
    if any(OLDER in str(cell) for column in table.columns for cell in column.cells):
        click.echo(f"\n{RENEWAL}")
    click.echo(f"\nkernels of this process run on up to {default_threads()} threads: {pool_name()}")


def targets_table(records: Sequence[Record]) -> Table:
    """A row for each target."""
    table = Table(box=None, pad_edge=False)
    for name, width in (("target", 15), ("instruction", 14)):
        table.add_column(name, min_width=width)
    for name in ("chips", "runs here", "verified on"):
        table.add_column(name, ratio=1)
    best = targets.host()
    for target in targets.TARGETS:
        reason = targets.why_not_here(target)
        here = ("yes (host)" if target is best else "yes") if reason is None else f"no: {reason}"
        how = how_verified(target.name, records, versions()["schedule"])
        table.add_row(target.name, target.instruction.name, target.description, here, how)
    for gpu in targets.CUDA_TARGETS:
        reason = why_no_gpu(gpu.capability)
        here = "yes" if reason is None else f"no: {reason.partition(' (')[0]}"
        how = how_verified(gpu.name, records, cuda_versions()["schedule"])
        table.add_row(gpu.name, gpu.instruction.name, gpu.description, here, how)
    return table


def how_verified(target: str, records: Sequence[Record], schedule: str) -> str:
    """What speaks for a target, in words."""
    found = verified.evidence(target, records, schedule)
    return "; ".join(evidence_text(record, schedule) for record in found) or "nothing yet"


def evidence_text(record: Record, schedule: str) -> str:
    """A record in a few words: the chip where it was that itself, else what took its place."""
    what = record.cpu if record.how == verified.NATIVE else record.how
    if record.how == verified.SEMANTICS:
        what += " only"
    old = "" if record.is_current(schedule) else f", {OLDER}"
    return f"{what} ({record.date}{old})"
