"""`quantmm bench --inside`: calls among a host's own parallel operations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import click
from rich.table import Table

from ..bench.columns import cells
from ..bench.contenders import Job
from ..bench.environment import describe
from ..bench.export import to_json
from ..bench.inside import encoders, export, page
from ..bench.inside.compare import compare
from ..bench.inside.encoder import OUR_VARIANTS
from ..bench.inside.encoders import EncoderRow
from ..bench.inside.hosts import find_host, require
from ..bench.inside.row import InsideRow
from .reports import STDOUT, check_files, require_ours, watched, write_report
from .tables import lined, show


@dataclass
class InsideRun:
    """Rows as they are measured inside a host, and the file they go to, if any.

    What an interrupted run has is written too.
    """

    host: str
    against: Collection[str] | None
    rounds: int
    json_file: str | None
    rows: list[InsideRow] = field(default_factory=list)
    encoders: list[EncoderRow] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=describe)

    def check(self) -> None:
        """Find out before the work what would fail in it or after it."""
        require(find_host(self.host), self.against or ())
        check_files([self.json_file] if self.json_file else [])

    def say(self, text: str) -> None:
        """Print it, unless something else is printed."""
        if self.json_file != STDOUT:
            click.echo(text)

    def measure(self, jobs: Sequence[Job]) -> Iterator[InsideRow]:
        """Measure one shape after the other."""
        for job in watched(jobs, lambda job: f"{job.title}, {job.threads} threads"):
            self.rows.append(compare(job, self.host, self.against, self.rounds))
            yield self.rows[-1]

    def measure_encoder(self, inputs: Sequence[tuple[int, int, int]]) -> Iterator[EncoderRow]:
        """Measure the page's model, for each batch, tokens and threads."""
        described: Callable[[tuple[int, int, int]], str] = "encoder, {0[0]} x {0[1]}".format
        for batch, tokens, threads in watched(inputs, described):
            row = encoders.compare(page.SIZE, batch, tokens, threads, self.rounds)
            self.encoders.append(row)
            yield row

    def finish(self) -> None:
        """Write what there is."""
        if self.json_file and (self.rows or self.encoders):
            text = to_json(self.rows, self.environment, encoders=self.encoders)
            write_report(self.json_file, text)

    def require_ours(self) -> None:
        """Fail where quantmm took no part."""
        require_ours(self.rows)
        require_ours(self.encoders, OUR_VARIANTS)


def measure_inside(run: InsideRun, jobs: Sequence[Job]) -> None:
    """Measure, and print a table unless something else is printed."""
    run.check()
    try:
        for _ in run.measure(jobs):
            pass
        if run.json_file != STDOUT:
            click.echo(f"{run.rows[0].target} inside {run.host} on {run.environment['cpu']}")
            show(inside_table(run.rows))
        for text in export.closing(run.rows):
            run.say(text)
    finally:
        run.finish()
    run.require_ours()


def check_inside_page(run: InsideRun, threads: list[int]) -> None:
    """Measure the tables of docs/performance.md and print each row once it is there."""
    if run.host != page.HOST:
        raise click.UsageError(
            f"--inside {run.host} --check: the page has tables of {page.HOST} only"
        )
    run.check()
    try:
        run.say(f"{page.CALLS.title}:\n\n{export.HEADER}")
        for row in run.measure([job for count in threads for job in page.CALLS.jobs(count)]):
            run.say(export.markdown(row))
        run.say("\n".join(["", *export.closing(run.rows), ""]))
        run.say(f"{page.ENCODER}:\n\n{export.ENCODER_HEADER}")
        for line in run.measure_encoder([*page.inputs(threads)]):
            run.say(export.encoder_markdown(line))
        run.say("\n".join(["", *export.remarks(run.encoders)]))
    finally:
        run.finish()
    run.require_ours()


def inside_table(rows: Sequence[InsideRow]) -> Table:
    """A line for every contender of every shape and format."""
    table = lined(export.TABLE)
    for row in rows:
        for i, name in enumerate(row.names):
            table.add_row(*cells(export.TABLE, export.Inside(row, name), first=i == 0))
    return table
