"""`quantmm verify`: kernels against the reference, and the records of what agreed."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from .. import targets
from ..errors import (
    CudaError,
    EmulationError,
    QuantmmError,
    RecordError,
    TargetError,
    UnsupportedError,
)
from ..files import check_writable
from ..formats.problem import Problem, check, random_spec
from ..formats.spec import MatmulSpec
from ..runtime import devices, driver
from ..runtime.kernel import Kernel
from ..schedules.cpu.plan import plan_for
from ..schedules.cuda import plan as cuda_plan
from ..schedules.cuda.strategies import variants as cuda_variants
from ..targets import CudaTarget, Target, verified
from ..targets.verified import Record
from ..versions import cuda_versions, versions
from .options import SIZE, format_options, make_spec, target_option
from .reports import watched

#: Ends of the random N, K and M of problems: emulated ones of GPUs are slow, and a GPU's largest
#: tile has 128 x 256 results.
SMALL, LARGE = (200, 400, 80), (700, 3000, 300)


@dataclass(frozen=True)
class Check:
    """A problem, and the function of a GPU's kernel that is to compute it; None where M says."""

    problem: Problem
    function: str | None = None

    def line(self, words: str) -> str:
        """The command that repeats it; `words` stand behind --target."""
        return self.problem.line(words) + (f" --function {self.function}" if self.function else "")


@dataclass(frozen=True)
class Way:
    """How kernels for a row are checked here.

    Attributes
    ----------
    words : behind --target, in the line that repeats a check.
    how, chip, versions : for the record, see `verified.Record`.
    sizes : ends of the random N, K and M.
    functions : of the kernel for a spec, of which a random check takes one; refuses as `plan_for`.
    build : a kernel for a spec with an M, and a function's name.
    """

    row: Target | CudaTarget
    words: str
    how: str
    chip: str
    versions: dict[str, str]
    sizes: tuple[int, int, int]
    functions: Callable[[MatmulSpec], Sequence[str | None]]
    build: Callable[[MatmulSpec, str | None], Kernel]


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
@click.option("--function", help="The function of a GPU's kernel; by default the one for M.")
@click.option("--time-limit", type=float, help="Seconds after which no further problem begins.")
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
    function: str | None,
    time_limit: float | None,
    record_file: str | None,
    **formats: Any,
) -> None:
    """Compare kernels with the reference: one problem, or --random many.

    Integers must be equal, floats within one unit in the last place. The line that a failure
    prints repeats it. A GPU's kernels are checked on a GPU; with --emulated their CUDA C++ runs on
    the CPU, which needs a C++ compiler or pip install 'quantmm[link]'.

    What --time-limit ends is gone on with by the line that it prints, and then a record counts the
    problems of both.
    """
    way = way_for(target, emulated)
    if time_limit is not None and time_limit <= 0:
        raise click.UsageError(f"--time-limit is {time_limit}; expected more than 0 seconds")
    if count is None:
        if n is None or k is None:
            raise click.UsageError("give --n and --k, or --random COUNT")
        spec = make_spec(n, k, formats)
        if function is not None and function not in way.functions(spec):
            known = ", ".join(map(str, filter(None, way.functions(spec)))) or "none to choose"
            raise click.UsageError(f"--function {function}: {way.row.name} has {known}")
        checks = [Check(Problem(spec, m, seed), function)]
    elif function is not None:
        raise click.UsageError("--function is for one problem; --random ones take any")
    else:
        checks = [random_check(way, seed + i) for i in range(count)]
    path = None if record_file is None else Path(record_file)
    before = 0
    if path is not None:
        if count is None:
            raise click.UsageError("--record is for --random COUNT problems")
        # Before the work rather than after it.
        check_writable(path, RecordError)
        before = agreed_before(verified.read(path), new_record(way, 0), seed)
    done = verify(checks, way, time_limit)
    click.echo(f"{done} of {len(checks)} problems agree with the reference")
    if path is not None and done:
        record = new_record(way, before + done)
        verified.write(record, path)
        click.echo(f"{path}: {record.to_json()}")
    if done < len(checks):
        more = f"--random {len(checks) - done} --seed {seed + done}"
        click.echo(f"the time was over; go on with {more}")


def way_for(target: str, emulated: bool) -> Way:
    """How kernels for a target are checked on this machine.

    Raises
    ------
    TargetError
        No such target, or one that cannot run here, and not `emulated`.
    """
    row = devices.find(target)
    if row.device == "cpu":
        way, reason = cpu_way(row, emulated), targets.why_not_here(row)
        instead = f"plain loops in the place of {row.instruction.name}"
    else:
        way, reason = gpu_way(row, emulated), devices.why_no_gpu(row.capability)
        instead = "its generated code on the CPU"
    if reason and not emulated:
        raise TargetError(
            f"target {row.name} cannot run here: {reason}; with --emulated it is verified with "
            f"{instead}"
        )
    return way


def cpu_way(row: Target, emulated: bool) -> Way:
    """On this CPU, or with plain loops in the place of the row's instruction."""
    run = targets.emulated(row) if emulated else row

    def functions(spec: MatmulSpec) -> Sequence[None]:
        plan_for(spec, row)
        return [None]

    def build(spec: MatmulSpec, function: str | None) -> Kernel:
        # Not from the cache: what is judged is what this compiler builds now.
        from ..compiler import cpu

        return cpu.build(spec, run)

    return Way(
        row,
        f"{row.name} --emulated" if emulated else row.name,
        verified.SEMANTICS if emulated else verified.NATIVE,
        targets.cpu_name(),
        versions(),
        SMALL,
        functions,
        build,
    )


def gpu_way(row: CudaTarget, emulated: bool) -> Way:
    """On this machine's GPU, or its generated code on the CPU."""

    def functions(spec: MatmulSpec) -> Sequence[str]:
        return [variant.name for variant in cuda_variants(cuda_plan.plan_for(spec, row))]

    def build(spec: MatmulSpec, function: str | None) -> Kernel:
        from ..compiler import cuda
        from ..compiler.emulation import kernels

        return (kernels if emulated else cuda).build(spec, row, function=function)

    return Way(
        row,
        f"{row.name} --emulated" if emulated else row.name,
        verified.GENERATED if emulated else verified.NATIVE,
        targets.cpu_name() if emulated else gpu_name(),
        cuda_versions(),
        SMALL if emulated else LARGE,
        functions,
        build,
    )


def gpu_name() -> str:
    """What the driver calls the first GPU; nothing where there is none."""
    try:
        return driver.driver().devices()[0].name
    except (TargetError, IndexError):
        return ""


def verify(checks: Sequence[Check], way: Way, time_limit: float | None = None) -> int:
    """Check every problem until the time is over; how many agree.

    Raises
    ------
    QuantmmError
        One does not, or it fails; the line that repeats it is printed.
    """
    deadline = time.monotonic() + (float("inf") if time_limit is None else time_limit)
    done = 0
    for each in watched(
        checks, lambda each: f"M={each.problem.m} {each.problem.spec.n} x {each.problem.spec.k}"
    ):
        if time.monotonic() >= deadline:
            break
        problem = each.problem
        try:
            # For the one M of the problem: a kernel for every M takes several times as long.
            spec = dataclasses.replace(problem.spec, m=problem.m)
            wrong = check(problem, way.build(spec, each.function))
        except (CudaError, EmulationError):
            click.echo(each.line(way.words))
            raise
        if wrong:
            click.echo(each.line(way.words))
            raise QuantmmError(wrong)
        done += 1
    return done


def random_check(way: Way, seed: int) -> Check:
    """A problem of any format that a row has, small and mostly ragged, and a function for it."""
    rng = np.random.default_rng(seed)
    n, k, m = (int(rng.integers(1, end)) for end in way.sizes)

    def pick(choices: Sequence[Any]) -> Any:
        return choices[int(rng.integers(len(choices)))]

    while True:
        spec = random_spec(pick, n, k, (None, None, None, 1, 5))
        with contextlib.suppress(UnsupportedError):
            return Check(Problem(spec, m, seed), pick(way.functions(spec)))


def random_problem(row: Target, seed: int) -> Problem:
    """The problem of a random check on a CPU."""
    return random_check(cpu_way(row, False), seed).problem


def agreed_before(records: Sequence[Record], mine: Record, seed: int) -> int:
    """How many problems a record has that a run from this seed on continues; 0 for none."""
    known = (
        each.problems
        for each in records
        if (each.target, each.how, each.cpu) == (mine.target, mine.how, mine.cpu)
        and each.versions == mine.versions
        and each.problems == seed
    )
    return next(known, 0)


def new_record(way: Way, problems: int) -> Record:
    """The record of a run on this machine, today."""
    return Record(
        target=way.row.name,
        how=way.how,
        cpu=way.chip,
        problems=problems,
        date=datetime.date.today().isoformat(),
        versions=way.versions,
    )
