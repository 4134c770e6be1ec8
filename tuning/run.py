"""`tune`: try parameters for some M of a spec, and write down what was faster than the default.

For each M the search proposes batches of choices. They are built in child processes, checked
against the reference and timed in another, in turns with the default and with the best so far, and
written to the log before the next batch. `verdict` then decides what the kernel is made of.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import targets
from ..bench.rotation import COLD_ROWS
from ..compiler import records
from ..compiler.linker import command as linker_command
from ..compiler.records import FAILURES, TRIALS
from ..compiler.runtime import default_threads, without_torch
from ..compiler.spec import MatmulSpec
from ..errors import SpecError, TuningError
from ..targets import Target, machine
from .candidate import Choice, default_choice, layout_of
from .log import Database, database_for, failure_line
from .stage import DEFAULT, Session, Stage, difference
from .state import Problem, Tuning, Watch
from .verdict import conclude

if TYPE_CHECKING:
    from ..bench.roofline import Limits
    from .search import Search

#: Choices that are built, then measured, together.
BATCH = 8
#: Rounds in which a batch takes turns, and further ones for those that may be the best.
ROUNDS, MORE_ROUNDS, CHALLENGERS = 5, 7, 3


def tune(
    spec: MatmulSpec,
    target: str | Target = "host",
    m: Sequence[int] = (1, 16, 512),
    *,
    trials: int = 64,
    time_limit: float | None = None,
    seed: int = 0,
    threads: int | None = None,
    log: str | os.PathLike[str] | None = None,
    watch: Watch | None = None,
    session: Session | None = None,
) -> Tuning:
    """Search parameters for `spec` that are faster than the default ones, and keep them in a log.

    `compile` finds what was kept, on the machine where it was measured. What was tried before, with
    the same log, is not tried again: a run that was ended goes on where it was.

    Parameters
    ----------
    m : numbers of rows to tune for; those between profit where it was seen that they do.
    trials : choices to try for each M, those counted that the log already has.
    time_limit : seconds after which no further trial begins.
    seed : of the search and of the numbers that are multiplied.
    threads : of every call; None is one per physical core. A record is used for this number.
    log : a folder; None is the user's own, where `compile` looks too.
    watch : is called with a `Progress` after every step.
    session : child processes to use; None starts some, and ends them.

    Raises
    ------
    TargetError
        This machine cannot execute the target's code.
    TuningError
        The default kernel does not work, so that there is nothing to compare with.
    RecordError
        The log cannot be written.
    """
    row = targets.find_cpu(target)
    machine.require(row.name, row.architecture, row.features)
    linker_command(row.architecture or machine.architecture())
    check_numbers(m, trials)
    if spec.m is not None:
        raise SpecError(f"the spec has m={spec.m}; give the rows to tune for as m=[...]")
    with without_torch():
        from tvm.target import codegen
    count = threads or default_threads()
    path = records.default_folder() if log is None else Path(log)
    header = {**records.header(row, count), "llvm": codegen.llvm_version_major()}
    database = database_for(path, header)
    begun = time.monotonic()
    deadline = begun + (time_limit if time_limit is not None else float("inf"))
    own = Session() if session is None else None
    active = session or own
    assert active is not None
    limit = active.limits(row, count)
    active.start()
    try:
        problems = [
            Problem(
                spec,
                row,
                rows,
                seed,
                count,
                database,
                floor_of(spec, row, rows, limit),
                default_choice(spec, row, rows),
            )
            for rows in sorted({*m, *concluded(database, spec)})
        ]
        for problem in problems:
            wanted = trials if problem.m in m else 1
            explore(active, problem, wanted, deadline, watch or (lambda _: None))
        return conclude(active, problems, watch or (lambda _: None), begun)
    finally:
        if own is not None:
            own.__exit__()


def check_numbers(m: Sequence[int], trials: int) -> None:
    """Refuse what no run can be made of."""
    if not m or any(type(rows) is not int or rows < 1 for rows in m):
        raise SpecError(f"m={list(m)!r}; expected whole numbers of at least 1")
    if type(trials) is not int or trials < 1:
        raise SpecError(f"trials={trials!r}; expected a whole number of at least 1")


def floor_of(spec: MatmulSpec, row: Target, m: int, limit: Limits) -> float:
    """Seconds that the machine's limits allow for `m` rows."""
    layout = layout_of(spec, row)
    scales = 4 * layout.n_blocks * layout.lanes * layout.groups
    weight_bytes = math.prod(layout.shape) + scales
    return limit.floor(m, spec.n, spec.k, weight_bytes, m <= COLD_ROWS)


def concluded(database: Database, spec: MatmulSpec) -> list[int]:
    """The M for which the spec was tuned before: one record has to speak for all of them."""
    lines = list(records.kernel_lines(database.path, spec))
    if not lines:
        return []
    try:
        return [int(each["m"]) for each in json.loads(lines[-1][1])["measured"]]
    except (ValueError, KeyError, TypeError):
        return []


def search_for(problem: Problem) -> Search:
    """The search for a problem; it imports TVM."""
    from .search import Search

    return Search(problem.spec, problem.row, problem.m, problem.seed, BATCH)


def explore(session: Session, problem: Problem, trials: int, deadline: float, watch: Watch) -> None:
    """Try choices for one M until there are as many trials, or no time, or nothing new."""
    search = search_for(problem)
    remember(problem, search)
    watch(problem.progress(trials, "building the default"))
    stage = stage_with_default(session, problem)
    if problem.clock is None:
        times, failed = stage.race([DEFAULT], ROUNDS)
        if failed:
            raise TuningError(f"the default kernel failed for m={problem.m}: {failed[DEFAULT]}")
        problem.clock = statistics.median(times[DEFAULT])
        keep(problem, search, {problem.default: times[DEFAULT]})
    best = take_best(session, stage, problem)
    while len(problem.times) < trials and time.monotonic() < deadline:
        choices = [choice for choice, _ in search.propose()][: trials - len(problem.times)]
        if not choices:
            watch(problem.progress(trials, "there is nothing else to try"))
            return
        watch(problem.progress(trials, f"building {len(choices)}"))
        contents = built(session, problem, choices)
        watch(problem.progress(trials, f"measuring {len(choices)}"))
        best, found = try_batch(stage, problem, best, contents)
        keep(problem, search, found)
        watch(problem.progress(trials))


def remember(problem: Problem, search: Search) -> None:
    """Take what the log knows of the problem."""
    problem.workload = problem.database.workload(search.workload_json())
    for trial in problem.database.trials():
        if trial.workload == problem.workload and trial.choice not in problem.times:
            times = None if trial.seconds is None else list(trial.seconds)
            problem.times[trial.choice] = times
            search.tell(trial.choice, times)
    for damage in problem.database.damage:
        warnings.warn(f"skipped {damage}", RuntimeWarning, stacklevel=2)
    known = problem.times.get(problem.default)
    problem.clock = statistics.median(known) if known else None


def stage_with_default(session: Session, problem: Problem) -> Stage:
    """A stage with the default on it.

    Raises
    ------
    TuningError
        The default does not work.
    """
    stage = Stage(session.bench, problem.spec, problem.m, problem.seed, problem.threads)
    (content,) = built(session, problem, [problem.default]).values()
    reason = content if isinstance(content, str) else stage.load(DEFAULT, content)
    if reason is not None:
        raise TuningError(f"the default kernel failed for m={problem.m}: {reason}")
    return stage


def take_best(session: Session, stage: Stage, problem: Problem) -> Choice | None:
    """Put the best choice that the log knows on the stage, if it is better than the default."""
    assert problem.clock is not None
    for choice in problem.best(1):
        if problem.median(choice) < problem.clock:
            (content,) = built(session, problem, [choice]).values()
            if not isinstance(content, str) and stage.load(choice.name, content) is None:
                return choice
    return None


def built(
    session: Session, problem: Problem, choices: Sequence[Choice]
) -> dict[Choice, bytes | str]:
    """The kernel file of each choice, or why there is none."""
    jobs = [(problem.spec, problem.row, choice) for choice in choices]
    contents = session.build("candidate", jobs)
    return {
        choice: content if isinstance(content, bytes) else str(content)
        for choice, content in zip(choices, contents, strict=True)
    }


def try_batch(
    stage: Stage, problem: Problem, best: Choice | None, contents: dict[Choice, bytes | str]
) -> tuple[Choice | None, dict[Choice, list[float] | str]]:
    """Check and time choices. Returns the best one now, and what was found of each.

    That is seconds per call on the problem's clock, or why it failed.
    """
    found: dict[Choice, list[float] | str] = {}
    names: dict[str, Choice] = {}
    for choice, content in contents.items():
        reason = content if isinstance(content, str) else stage.load(choice.name, content)
        if reason is None:
            names[choice.name] = choice
        else:
            found[choice] = reason
    champion = best.name if best else DEFAULT
    racing = [*dict.fromkeys([DEFAULT, champion]), *names]
    times, failed = stage.race(racing, ROUNDS)
    check_default(problem, failed)
    limit = statistics.median(times.get(champion, times[DEFAULT]))
    challengers = sorted(
        (name for name in names if name in times and statistics.median(times[name]) < limit),
        key=lambda name: statistics.median(times[name]),
    )[:CHALLENGERS]
    if challengers:
        again = [name for name in dict.fromkeys([DEFAULT, champion]) if name in times]
        more, also_failed = stage.race([*again, *challengers], MORE_ROUNDS)
        check_default(problem, also_failed)
        failed |= also_failed
        for name in also_failed:
            times.pop(name, None)
        for name in challengers:
            if name in more and difference(more[name], more.get(champion, more[DEFAULT])).faster:
                champion, best = name, names[name]
    for name, choice in names.items():
        if name in failed:
            found[choice] = failed[name]
        else:
            found[choice] = problem.on_clock(times[name], times[DEFAULT])
        if name != champion:
            stage.drop(name)
    return best, found


def check_default(problem: Problem, failed: dict[str, str]) -> None:
    """Refuse to go on without the default."""
    if DEFAULT in failed:
        raise TuningError(f"the default kernel failed for m={problem.m}: {failed[DEFAULT]}")


def keep(problem: Problem, search: Search, found: dict[Choice, list[float] | str]) -> None:
    """Write trials to the log, and learn from them."""
    records_found, failures = [], []
    for choice, result in found.items():
        times = None if isinstance(result, str) else result
        problem.times[choice] = times
        record = search.tell(choice, times)
        if record is not None:
            records_found.append([problem.workload, record.as_json()])
        if isinstance(result, str):
            failures.append(failure_line(problem.workload, choice, result))
    problem.database.add(FAILURES, failures)
    problem.database.add(TRIALS, records_found)
