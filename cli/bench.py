"""`quantmm bench`: kernels beside the machine's limits and other libraries."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import click
from click.core import ParameterSource
from rich.table import Table

from .. import targets
from ..bench import check as page
from ..bench import export, report
from ..bench.columns import OURS_TABLE, PEER_TABLE, RATIO, Beside, cells
from ..bench.compare import ROUNDS
from ..bench.contenders import GROUPS, OURS, Job, check_words
from ..bench.inside.hosts import HOSTS
from ..bench.machine import Machine
from ..bench.models import MODELS, Layer
from ..bench.rotation import COLD_ROWS
from ..bench.row import Row
from ..errors import BenchError
from ..formats.named import FORMATS, fields_of, name_of
from ..formats.spec import MatmulSpec
from ..runtime import devices
from ..runtime.threads import default_threads
from .inside import InsideRun, check_inside_page, measure_inside
from .models import specs_in
from .options import Names, Whole, format_options, make_spec, rpc_options, target_option
from .reports import STDOUT, check_files, require_ours, watched, write_report
from .tables import lined, show

SPEC_OPTIONS = {each.name for each in dataclasses.fields(MatmulSpec)} - {"n", "k", "m"}
#: What --check decides itself.
CHECKED = SPEC_OPTIONS | {"m", "n", "k", "models", "hot", "format_names", "against", "target"}
#: What goes with processes of their own only.
NOT_INSIDE = {"html_file", "csv_file", "rpc", "key"}


@dataclass
class Run:
    """Rows as they are measured on a machine, and where they go.

    What an interrupted run has is written too.
    """

    machine: Machine
    against: Collection[str]
    rounds: int
    files: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    left: int = 0
    time_limit: float | None = None
    environment: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.environment = self.machine.describe()
        self.deadline = float("inf")
        if self.time_limit is not None:
            self.deadline = time.monotonic() + self.time_limit
            self.rows = export.rows_of(self.files.get("json"), self.environment)

    def check(self) -> None:
        """Find out before the work what would fail after it."""
        check_words(self.against)
        if "html" in self.files:
            report.require_libraries()
        if list(self.files.values()).count(STDOUT) > 1:
            raise click.UsageError("give --json or --csv a FILE; only one can be printed")
        check_files(self.files.values())

    @property
    def prints_table(self) -> bool:
        """Whether the terminal is for people."""
        return STDOUT not in self.files.values()

    def measure(self, jobs: Sequence[Job]) -> Iterator[Row]:
        """Measure one after the other."""
        known = {row.job: row for row in self.rows}
        for job in watched(jobs, lambda job: f"{job.title}, {job.threads} threads"):
            if job in known:
                yield known[job]
                continue
            if time.monotonic() >= self.deadline:
                self.left += 1
                continue
            self.rows.append(self.machine.compare(job, self.against, self.rounds))
            yield self.rows[-1]

    def write(self) -> None:
        """Write the reports."""
        writers: dict[str, Callable[[Sequence[Row], dict[str, Any]], str]] = {
            "json": export.to_json,
            "csv": export.to_csv,
            "html": report.to_html,
        }
        for kind, name in self.files.items():
            write_report(name, writers[kind](self.rows, self.environment))


def report_option(kind: str, text: str) -> Callable[..., Any]:
    """An option that names a file, or none for the terminal."""
    return click.option(
        f"--{kind}",
        f"{kind}_file",
        is_flag=False,
        flag_value=STDOUT,
        type=click.Path(),
        metavar="[FILE]",
        help=text,
    )


@click.command("bench")
@click.option("--m", type=Whole(), default="1,16,128,512", show_default=True, help="Rows of X.")
@click.option("--n", type=Whole(), default="4096", show_default=True, help="Rows of W.")
@click.option("--k", type=Whole(), default="4096", show_default=True, help="Columns of X and W.")
@click.option(
    "--model",
    "models",
    type=Names(),
    help=f"N and K of the layers of {', '.join(MODELS)}; or a model's file or folder, whose "
    "quantized layers have formats of their own.",
)
@click.option("--hot", is_flag=True, help="Weights that stay in the caches for small M too.")
@click.option(
    "--format",
    "format_names",
    type=Names(),
    help=f"Formats side by side: {', '.join(FORMATS)}. Each name stands for some of the options "
    "that follow; other combinations of them have no peers.",
)
@functools.partial(format_options, unsaid=("activation_scale",))
@click.option(
    "--against",
    type=Names(),
    default="numpy",
    show_default=True,
    help=f"Who else: {', '.join(GROUPS)}. Who is not installed is listed as absent. With --inside "
    "those on the host's threads, by default all of them.",
)
@click.option(
    "--inside",
    metavar="HOST",
    help=f"Time calls right after parallel operations of {' or '.join(each.name for each in HOSTS)}"
    " in the same process, beside their time alone.",
)
@target_option
@click.option(
    "--threads", type=Whole(), help="Threads, each in turn; by default one per physical core."
)
@rpc_options
@click.option(
    "--rounds", type=click.IntRange(1), default=ROUNDS, show_default=True, help="Turns of everyone."
)
@click.option(
    "--time-limit",
    type=float,
    help="Seconds after which nothing further is measured; with --json FILE the same command goes "
    "on where it was.",
)
@click.option(
    "--check",
    is_flag=True,
    help="Repeat every comparison that docs/performance.md quotes, in the form of that page; "
    "without --threads for one thread and for one per physical core. With --inside torch, its "
    "tables of calls and of a model inside torch, for one thread per physical core. With --target "
    "cuda, the tables of docs/gpu.md.",
)
@report_option("json", "Everything that was measured, in a FILE or instead of the table.")
@report_option("csv", "A line for every contender, in a FILE or instead of the table.")
@click.option("--html", "html_file", type=click.Path(), help="A report with figures, in one file.")
@click.pass_context
def bench_command(
    context: click.Context,
    /,
    target: str,
    against: list[str],
    inside: str | None,
    threads: list[int] | None,
    rpc: str | None,
    key: str | None,
    rounds: int,
    time_limit: float | None,
    check: bool,
    json_file: str | None,
    csv_file: str | None,
    html_file: str | None,
    **shape_words: Any,
) -> None:
    """Time kernels beside this machine's measured limits and other libraries.

    Every contender lives in a process of its own and all take turns; what they compute is checked
    before. For M up to 16 the weights are rotated through more memory than the caches hold. The
    share is that of the limit: operations at the measured rate of the dot-product instruction, or
    bytes at the measured read bandwidth, whichever takes longer. A ratio is a contender's time
    over quantmm's; ~ says that it is within what the rounds differ. X that is not quantized row by
    row has one scale in all unless --activation-scale says otherwise, as other libraries have it.
    With --rpc all of that happens on a server's machine; with --inside in one process, that of a
    host whose threads are at work.
    """
    from ..tuning.rpc import machine_for

    given = {
        name
        for name in context.params
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    if inside is not None:
        targets.find_cpu(target)
        refuse(
            given & NOT_INSIDE, "--inside measures in a process of this machine, and writes --json"
        )
        run_inside = InsideRun(inside, against if "against" in given else None, rounds, json_file)
        counts = threads or [default_threads()]
        if check:
            refuse(given & CHECKED, "--check decides this itself")
            check_inside_page(run_inside, counts)
        else:
            measure_inside(run_inside, jobs_for(given, target, counts, **shape_words))
        return
    if time_limit is not None and time_limit <= 0:
        raise click.UsageError(f"--time-limit is {time_limit}; expected more than 0 seconds")
    on_gpu = devices.find(target).device == "cuda"
    if on_gpu:
        refuse(given & {"threads"}, "a GPU has none")
    named = {"json": json_file, "csv": csv_file, "html": html_file}
    files = {kind: name for kind, name in named.items() if name is not None}
    with machine_for(rpc, key) as machine:
        if on_gpu and "against" not in given:
            against = ["torch"]
        if check and not on_gpu:
            against = [*page.AGAINST]
        run = Run(machine, against, rounds, files, time_limit=time_limit)
        cores = 1 if on_gpu else machine.default_threads()
        try:
            if check:
                decided = CHECKED - ({"target", "against"} if on_gpu else set())
                refuse(given & decided, "--check decides this itself")
                run.check()
                pages = page.CUDA_SECTIONS if on_gpu else page.SECTIONS
                check_page(run, threads or sorted({1, cores}), pages)
            else:
                jobs = jobs_for(given, target, threads or [cores], **shape_words)
                run.check()
                measure(run, jobs)
        finally:
            if run.rows:
                run.write()
    if run.left:
        click.echo(f"the time was over; {run.left} shapes are left")
    require_ours(run.rows)


def refuse(options: Collection[str], reason: str) -> None:
    """Refuse options that would mean nothing."""
    if options:
        names = {
            "models": "model",
            "format_names": "format",
            "html_file": "html",
            "csv_file": "csv",
        }
        words = sorted("--" + names.get(name, name).replace("_", "-") for name in options)
        raise click.UsageError(f"{', '.join(words)}: {reason}")


def jobs_for(
    given: Collection[str],
    target: str,
    threads: list[int],
    m: list[int],
    n: list[int],
    k: list[int],
    models: list[str] | None,
    hot: bool,
    format_names: list[str] | None,
    activation_scale: str | None,
    **spec_fields: Any,
) -> list[Job]:
    """What a command line asks for: a shape's formats side by side."""
    on_gpu = devices.find(target).device == "cuda"
    if format_names is not None:
        refuse({*given} & SPEC_OPTIONS, "--format decides this")
    if models is not None:
        refuse({*given} & {"n", "k"}, "--model decides this")
    usual = "row" if spec_fields["dynamic"] else "tensor"
    spec_fields["activation_scale"] = activation_scale or usual
    formats = [fields_of(name) for name in format_names] if format_names else [spec_fields]
    files = [model for model in models or () if model not in MODELS and os.path.exists(model)]
    names = [model for model in models or () if model not in files]
    layers = [Layer("", rows, depth) for rows in n for depth in k] if not models else []
    layers = layers_of(names) if names else layers
    work = [
        [(make_spec(layer.n, layer.k, fields), layer.name) for fields in formats]
        for layer in layers
    ]
    work += [specs for file in files for specs in specs_in(file, formats)]
    return [
        Job(spec, rows, count, (on_gpu or rows <= COLD_ROWS) and not hot, target, title)
        for count in threads
        for specs in work
        for rows in m
        for spec, title in specs
    ]


def layers_of(models: Sequence[str]) -> list[Layer]:
    """The layers of models, each shape once.

    Raises
    ------
    BenchError
        No such model.
    """
    names: dict[tuple[int, int], list[str]] = {}
    for model in models:
        if model not in MODELS:
            raise BenchError(
                f"no model {model!r}; expected a file, a folder or some of {', '.join(MODELS)}"
            )
        for layer in MODELS[model]:
            names.setdefault((layer.n, layer.k), []).append(f"{model} {layer.name}")
    return [Layer("; ".join(words), n, k) for (n, k), words in names.items()]


def measure(run: Run, jobs: Sequence[Job]) -> None:
    """Measure, and print a table unless something else is printed."""
    for _ in run.measure(jobs):
        pass
    if run.prints_table:
        chip = "gpu" if run.rows[0].job.row.device == "cuda" else "cpu"
        click.echo(f"{run.rows[0].target} on {run.environment[chip]}")
        show(results_table(run.rows))
        for text in [*origins(jobs), *closing(run.rows)]:
            click.echo(text)


def origins(jobs: Sequence[Job]) -> list[str]:
    """The layers that shapes are of."""
    named = [job for job in jobs if job.layer]
    lines = [f"{job.spec.n} x {job.spec.k} {name_of(job.spec)}: {job.layer}" for job in named]
    return [*dict.fromkeys(lines)]


def closing(rows: Sequence[Row]) -> list[str]:
    """What is said below a table."""
    summaries = [each.text() for each in export.summaries(rows) if each.mean is not None]
    return [*summaries, *report.warnings(rows), *export.absences(rows)]


def check_page(run: Run, threads: Sequence[int], pages: Sequence[page.Section]) -> None:
    """Measure the tables of a page of docs/ and print each row once it is there."""
    able, unable = page.sections(run.machine.why_not, pages)
    say: Callable[[str], None] = click.echo if run.prints_table else lambda _: None
    for section in able:
        say(f"{section.title}:\n\n{export.HEADER}")
        rows = []
        for row in run.measure([job for count in threads for job in section.jobs(count)]):
            rows.append(row)
            say(export.markdown(row))
        say("\n".join(["", *closing(rows), ""]))
    for title, reason in unable.items():
        say(f"not measured: {title}: {reason}")


def results_table(rows: Sequence[Row]) -> Table:
    """A line for each shape and format, with columns for what there is."""
    baselines = list(dict.fromkeys(name for row in rows for name in row.baselines))
    peer = PEER_TABLE if any(row.best_peer for row in rows) else {}
    table = lined({**OURS_TABLE, **peer}, *baselines)
    for row in rows:
        table.add_row(
            *cells(OURS_TABLE, Beside(row, OURS.name)),
            *cells(peer, Beside(row, row.best_peer)),
            *(RATIO.cell(Beside(row, name)) for name in baselines),
        )
    return table
