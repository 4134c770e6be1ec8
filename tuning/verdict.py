"""The end of a run: the best choices against the default once more, and the record that follows.

All functions of a kernel read one layout of the weight, so the layout is chosen first, for all M
together; then for each M what beats the default; then how far from its M it still does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import TuningError
from ..runtime.kernel_file import parsed
from ..schedules import records
from ..schedules.plan import MAX_ELEMENTS
from ..schedules.records import DAMAGE, KERNELS, Record, Tuned
from .choice import Choice
from .devices import device_of
from .joining import joined
from .stage import DEFAULT, Board, Session, Stage, difference
from .staging import built, built_default, check_default, stage_with
from .state import Outcome, Problem, Tuning, Watch

#: How many of the fastest choices are measured again, and in how many rounds.
FINALISTS, FINAL_ROUNDS = 3, 25
#: A layout other than the default must save this share, in the geometric mean over all M.
LAYOUT_GAIN = 0.01
#: How far from its M a choice may be used, as factors of M, nearest first; and the rounds in which
#: it must not lose to the default there.
STEPS, PROBE_ROUNDS = (2, 4), 7
TUNED = "tuned"
#: Operations of a problem beyond which a probe is not compared with the reference again.
CHECKED_OPERATIONS = 4e10


def conclude(session: Session, problems: Sequence[Problem], watch: Watch, begun: float) -> Tuning:
    """Decide, write the record, and say what came out."""
    first = problems[0]
    device = device_of(first.row)
    usual = first.default.k_block
    k_block = best_layout(problems, usual)
    outcomes = finals(session, problems, k_block, usual, watch)
    if outcomes is None:  # the other layout is not better for every M
        k_block = usual
        outcomes = finals(session, problems, k_block, usual, watch)
        assert outcomes is not None
    tuned = tuple(tuned_of(outcome) for outcome in outcomes if outcome.choice)
    if tuned:
        outcomes = reaches(session, problems, outcomes, k_block, watch)
        tuned = tuple(tuned_of(outcome) for outcome in outcomes if outcome.choice)
    record = Record("", k_block, tuned)
    line = device.as_line(
        device.plan_for(first.spec, first.row),
        record,
        date=datetime.date.today().isoformat(),
        measured=[
            {
                "m": each.m,
                "default": each.default,
                "tuned": each.tuned,
                "noise": each.noise,
                "floor": each.floor,
                "trials": len(each.times),
            }
            for each in outcomes
        ],
    )
    name = write(first, json.loads(line))
    return Tuning(
        first.spec,
        first.row.name,
        first.threads,
        tuple(outcomes),
        name,
        time.monotonic() - begun,
    )


def write(problem: Problem, fields: dict[str, Any]) -> str | None:
    """Write a record, with what others have written meanwhile for other M.

    Returns its name if it has anything but the defaults.
    """
    database, written = problem.database, fields

    def with_others() -> list[dict[str, Any]]:
        nonlocal written
        lines = list(records.kernel_lines(database.path, problem.spec))
        with contextlib.suppress(*DAMAGE):
            written = joined(fields, json.loads(lines[-1][1]), problem.row)
        return [written]

    _, number = database.extend(KERNELS, with_others)
    return f"{database.path}:{number}" if written["tuned"] else None


def best_layout(problems: Sequence[Problem], usual: int | None) -> int | None:
    """The block of K with which the kernel is fastest over all M; the usual one unless it pays."""

    def log_ratio(problem: Problem, k_block: int | None) -> float:
        assert problem.clock is not None
        least = problem.clock if k_block == usual else math.inf
        for choice in problem.best(1, k_block):
            least = min(least, problem.median(choice))
        return math.log(least / problem.clock)

    sizes = {choice.k_block for problem in problems for choice in problem.best(10**6)} | {usual}
    mean = {
        size: statistics.mean(log_ratio(problem, size) for problem in problems) for size in sizes
    }
    best = min(sizes, key=lambda size: (mean[size], size != usual))
    return best if mean[best] < mean[usual] - LAYOUT_GAIN else usual


def finals(
    session: Session,
    problems: Sequence[Problem],
    k_block: int | None,
    usual: int | None,
    watch: Watch,
) -> list[Outcome] | None:
    """The fastest choices of each M against the default, in one layout.

    None where the layout is not the usual one and nothing in it is as fast as the default.
    """
    outcomes = []
    for problem in problems:
        watch(problem.progress(len(problem.times), "measuring the best again"))
        outcome = final(session, problem, k_block)
        if outcome.choice is None and k_block != usual:
            return None
        outcomes.append(outcome)
    return outcomes


def final(session: Session, problem: Problem, k_block: int | None) -> Outcome:
    """The fastest choices of one M against the default."""
    default_content = built_default(session, problem)
    contents = built(session, problem, problem.best(FINALISTS, k_block))

    def raced(board: Board) -> tuple[dict[str, Choice], dict[str, list[float]], dict[str, str]]:
        stage = stage_with(board, problem, default_content)
        names: dict[str, Choice] = {}
        for choice, content in contents.items():
            if not isinstance(content, str) and stage.load(choice.name, content) is None:
                names[choice.name] = choice
        return names, *stage.race([DEFAULT, *names], FINAL_ROUNDS)

    names, times, failed = session.on_any(raced)
    check_default(problem, failed)
    against = {
        name: difference(times[name], times[DEFAULT])
        for name in names
        if len(times.get(name, ())) == FINAL_ROUNDS
    }
    default = statistics.median(times[DEFAULT])
    winner = min(against, key=lambda name: against[name].log, default=None)
    won = winner is not None and against[winner].faster
    found = against[winner] if winner is not None and won else difference([1.0], [1.0])
    return Outcome(
        problem.m,
        tuple(statistics.median(each) if each else None for each in problem.times.values()),
        problem.floor,
        names[winner] if winner is not None and won else None,
        default,
        default * found.ratio,
        found.noise,
        problem.m,
        problem.m,
    )


def tuned_of(outcome: Outcome) -> Tuned:
    """The part of a record that an outcome makes."""
    assert outcome.choice is not None
    return Tuned(
        outcome.m,
        outcome.choice.strategy,
        outcome.choice.parameters,
        outcome.tuned / outcome.default,
        outcome.first_m,
        outcome.last_m,
    )


def reaches(
    session: Session,
    problems: Sequence[Problem],
    outcomes: Sequence[Outcome],
    k_block: int | None,
    watch: Watch,
) -> list[Outcome]:
    """How far from its M each choice is used: as far as the kernel is not slower than the default.

    Of a CPU whole kernels are compared, with what each of them uses for an M, as their functions
    share a layout; of a GPU, whose kernels have many functions, the two that are used.
    """
    first = problems[0]
    numbers = [0, *(outcome.m for outcome in outcomes), MAX_ELEMENTS]
    wide = [
        dataclasses.replace(
            outcome,
            first_m=max(before + 1, outcome.m // STEPS[-1]),
            last_m=min(after - 1, outcome.m * STEPS[-1]),
        )
        for before, outcome, after in zip(numbers, outcomes, numbers[2:], strict=False)
    ]
    if device_of(first.row).many_layouts:
        record = Record("tuned", k_block, tuple(tuned_of(each) for each in wide if each.choice))
        whole = whole_kernels(session, first, record)
        pairs = dict.fromkeys((each.m for each in wide), whole)
    else:
        pairs = functions_alone(session, first, wide)
    found = []
    for outcome in wide:
        low = high = outcome.m
        if outcome.choice:
            pair = pairs[outcome.m]
            watch(problem_of(problems, outcome.m).progress(len(outcome.times), "trying other M"))
            for step in STEPS:
                if outcome.m // step < outcome.first_m or not pair.as_fast(outcome.m // step):
                    break
                low = outcome.m // step
            for step in STEPS:
                if outcome.m * step > outcome.last_m or not pair.as_fast(outcome.m * step):
                    break
                high = outcome.m * step
        found.append(dataclasses.replace(outcome, first_m=low, last_m=high))
    return found


def problem_of(problems: Sequence[Problem], m: int) -> Problem:
    """The one with this M."""
    return next(problem for problem in problems if problem.m == m)


@dataclass
class Pair:
    """Something tuned beside the default.

    Attributes
    ----------
    default, tuned : kernel files for an M; None for one that has none.
    """

    session: Session
    problem: Problem
    default: Callable[[int], bytes | None]
    tuned: Callable[[int], bytes | None]

    def as_fast(self, m: int) -> bool:
        """Whether what is tuned is not slower for `m` rows."""
        problem, spec = self.problem, self.problem.spec
        default, tuned = self.default(m), self.tuned(m)
        if default is None or tuned is None:
            return False
        if default == tuned or same_function(default, tuned, m):
            return True
        check = 2 * m * spec.n * spec.k <= CHECKED_OPERATIONS

        def as_fast(board: Board) -> bool:
            stage = Stage(board.bench, spec, m, problem.seed, problem.threads)
            for name, content in ((DEFAULT, default), (TUNED, tuned)):
                if stage.load(name, content, check) is not None:
                    return False
            times, failed = stage.race([DEFAULT, TUNED], PROBE_ROUNDS)
            return not failed and not difference(times[TUNED], times[DEFAULT]).slower

        return self.session.on_any(as_fast)


def whole_kernels(session: Session, problem: Problem, record: Record) -> Pair:
    """A CPU's tuned kernel beside the default one, each with all of its functions."""
    jobs = [(problem.spec, problem.row, None), (problem.spec, problem.row, record)]
    default, tuned = session.build("kernel", jobs)
    if not isinstance(default, bytes) or not isinstance(tuned, bytes):
        errors = [str(each) for each in (default, tuned) if not isinstance(each, bytes)]
        raise TuningError(f"the tuned kernel cannot be built: {'; '.join(errors)}")
    return Pair(session, problem, lambda m: default, lambda m: tuned)


def functions_alone(
    session: Session, problem: Problem, outcomes: Sequence[Outcome]
) -> dict[int, Pair]:
    """By M, a GPU's tuned function beside the one that the default kernel uses for an M."""
    device = device_of(problem.row)
    plan = device.plan_for(problem.spec, problem.row)

    @functools.cache
    def file_of(choice: Choice) -> bytes | None:
        (content,) = built(session, problem, [choice]).values()
        return content if isinstance(content, bytes) else None

    def pair(choice: Choice) -> Pair:
        default = lambda m: file_of(device.default_choice(plan, m))  # noqa: E731
        return Pair(session, problem, default, lambda m: file_of(choice))

    return {each.m: pair(each.choice) for each in outcomes if each.choice}


def same_function(default: bytes, tuned: bytes, m: int) -> bool:
    """Whether two kernels of CPUs compute `m` rows alike."""
    infos = [stored.info for content in (default, tuned) for stored in parsed(TUNED, content)]
    return all(info.device == "cpu" for info in infos) and len({i.tiling(m) for i in infos}) == 1
