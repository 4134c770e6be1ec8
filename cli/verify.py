"""`quantmm verify`: kernels against the reference, and the records of what agreed."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.progress import track

from .. import targets
from ..errors import QuantmmError, RecordError, TargetError, UnsupportedError
from ..files import check_writable
from ..formats.problem import Problem, check, random_spec
from ..schedules.cpu.plan import plan_for
from ..targets import verified
from ..targets.verified import Record
from ..versions import versions
from .options import SIZE, format_options, make_spec, target_option


@click.command("verify")
@click.option("--m", type=SIZE, default=16, show_default=True, help="Rows of X.")
@click.option("--n", type=SIZE, help="Rows of W.")
@click.option("--k", type=SIZE, help="Columns of X and W.")
@format_options
@target_option
@click.option(
    "--emulated",
    is_flag=True,
    help="Plain loops in the place of the target's instruction; runs on any machine.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Decides every number."
)
@click.option("--random", "count", type=click.IntRange(1), help="Check this many random problems.")
@click.option(
    "--record",
    "record_file",
    is_flag=False,
    flag_value=str(verified.PATH),
    type=click.Path(),
    metavar="[FILE]",
    help="Record that --random problems agreed, for `quantmm targets` or in a FILE.",
)
def verify_command(
    m: int,
    n: int | None,
    k: int | None,
    target: str,
    emulated: bool,
    seed: int,
    count: int | None,
    record_file: str | None,
    **formats: Any,
) -> None:
    """Compare kernels with the reference: one problem, or --random many.

    Integers must be equal, floats within one unit in the last place. The line that a failure
    prints repeats it.
    """
    row = targets.find_cpu(target)
    reason = targets.why_not_here(row)
    if reason and not emulated:
        raise TargetError(
            f"target {row.name} cannot run here: {reason}; with --emulated it is verified with "
            f"plain loops in the place of {row.instruction.name}"
        )
    if count is None:
        if n is None or k is None:
            raise click.UsageError("give --n and --k, or --random COUNT")
        problems = [Problem(make_spec(n, k, formats), m, seed)]
    else:
        problems = [random_problem(row, seed + i) for i in range(count)]
    path = None if record_file is None else Path(record_file)
    if path is not None:
        if count is None:
            raise click.UsageError("--record is for --random COUNT problems")
        # Before the work rather than after it.
        check_writable(path, RecordError)
        verified.read(path)
    if emulated:
        verify(problems, targets.emulated(row), f"{row.name} --emulated")
    else:
        verify(problems, row, row.name)
    click.echo(f"{len(problems)} of {len(problems)} problems agree with the reference")
    if path is not None:
        record = new_record(row.name, emulated, len(problems))
        verified.write(record, path)
        click.echo(f"{path}: {record.to_json()}")


def verify(problems: list[Problem], row: targets.Target, words: str) -> None:
    """Check every problem; `words` stand behind --target in the line that repeats a failure."""
    # Not from the cache: what is judged is what this compiler builds now.
    from ..compiler.cpu import build

    for problem in track(problems, "verify", transient=True, disable=len(problems) == 1):
        # For the one M of the problem: a kernel for every M takes several times as long to compile.
        kernel = build(dataclasses.replace(problem.spec, m=problem.m), row)
        if wrong := check(problem, kernel):
            click.echo(problem.line(words))
            raise QuantmmError(wrong)


def random_problem(row: targets.Target, seed: int) -> Problem:
    """A problem of any format that a row has, small and mostly ragged."""
    rng = np.random.default_rng(seed)
    n, k, m = (int(rng.integers(1, end)) for end in (200, 400, 80))

    def pick(choices: Sequence[Any]) -> Any:
        return choices[int(rng.integers(len(choices)))]

    while True:
        spec = random_spec(pick, n, k, (None, None, None, 1, 5))
        with contextlib.suppress(UnsupportedError):
            plan_for(spec, row)
            return Problem(spec, m, seed)


def new_record(target: str, emulated: bool, problems: int) -> Record:
    """The record of a run on this machine, today."""
    return Record(
        target=target,
        how=verified.SEMANTICS if emulated else verified.NATIVE,
        cpu=targets.cpu_name(),
        problems=problems,
        date=datetime.date.today().isoformat(),
        versions=versions(),
    )
