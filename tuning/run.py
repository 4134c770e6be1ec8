"""`tune`: try parameters for some M of a spec, and write down what was faster than the default.

For each M the search proposes batches of choices. They are built in child processes, checked
against the reference and timed in another, in turns with the default and with the best so far.
What was found goes to the log at once. Where several machines measure, each has a part of a batch,
and the default and the best beside it. `verdict` then decides what the kernel is made of.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .. import targets
from ..bench.rotation import COLD_ROWS
from ..errors import RecordError, SpecError, TuningError
from ..files import as_path
from ..formats.named import weight_bytes
from ..formats.spec import MatmulSpec, as_size, as_whole, check_spec
from ..schedules import records
from ..schedules.records import FAILURES, TRIALS
from ..targets import CudaTarget, Target
from .choice import Choice
from .devices import device_of
from .joining import is_measured
from .log import Database, database_for, failure_line
from .rpc import session_for
from .stage import DEFAULT, Board, Session, Stage, difference
from .staging import built, built_default, check_default, stage_with
from .state import Problem, Tuning, Watch
from .verdict import conclude

if TYPE_CHECKING:
    from ..bench.roofline import Limits
    from .search import Search

#: Choices that are built, then measured, together on a machine.
BATCH = 8
#: Rounds in which a batch takes turns, and further ones for those that may be the best.
ROUNDS, MORE_ROUNDS, CHALLENGERS = 5, 7, 3


def tune(
    spec: MatmulSpec,
    target: str | Target | CudaTarget = "host",
    m: int | Sequence[int] = (1, 16, 512),
    *,
    trials: int = 64,
    time_limit: float | None = None,
    seed: int = 0,
    threads: int | None = None,
    log: str | os.PathLike[str] | None = None,
    watch: Watch | None = None,
    rpc: str | None = None,
    key: str | None = None,
    session: Session | None = None,
) -> Tuning:
    """Search parameters for `spec` that are faster than the default ones, and keep them in a log.

    On a GPU ("cuda", or its row) the kernels of candidates run in a child process, between events.

    `compile` finds what was kept, on the machine where it was measured. What was tried before, with
    the same log, is not tried again: a run that was ended goes on where it was.

    Parameters
    ----------
    spec : of several experts, what one of them multiplies is tuned, which serves all.
    m : numbers of rows to tune for. What is chosen for one also serves numbers between them, as far
        as measurements say that it is not slower there.
    trials : choices to try for each M, those counted that the log already has.
    time_limit : seconds after which no further trial begins.
    seed : of the search and of the numbers that are multiplied.
    threads : of every call on a CPU; None is one per physical core of the machine that measures. A
        record is used for this number.
    log : a folder; None is the user's own, where `compile` looks too.
    watch : is called with a `Progress` after every step.
    rpc : "HOST:PORT" of a tracker. All servers that are free there under `key` measure, at the same
        time, in place of this machine; "host" is then their best target. See docs/tuning.md.
    session : child processes to use, and boards, in place of `rpc` and `key`; None starts some, and
        ends them.

    Raises
    ------
    SpecError
        A number is none that a run can be made of, or the spec has an m of its own.
    TargetError
        This machine cannot execute the target's code.
    TuningError
        The default kernel does not work, so that there is nothing to compare with; or there is no
        server left.
    RpcError
        The tracker does not answer, or has no server that fits.
    RecordError
        The log cannot be written.
    ToolError
        What compiling needs is missing: a linker, or for GPUs NVRTC.
    """
    m, spec = rows_to_tune(m), check_spec(spec).of_one
    trials, seed = as_size("trials", trials), as_size("seed", seed, least=0)
    threads = None if threads is None else as_size("threads", threads)
    if spec.m is not None:
        raise SpecError(f"the spec has m={spec.m}; give the rows to tune for as m=[...]")
    begun = time.monotonic()
    deadline = begun + (time_limit if time_limit is not None else float("inf"))
    own = session_for(rpc, key) if session is None else None
    active = session or own
    assert active is not None
    try:
        header = active.header(target, threads)
        row = row_of(target, header)
        count = header.get("threads", 1)
        more = active.tools(row)
        path = records.default_folder() if log is None else as_path(log, RecordError)
        database = database_for(path, {**header, **more})
        limit = active.limits(row, count)
        active.start()
        device = device_of(row)
        plan = device.plan_for(spec, row)
        problems = [
            Problem(
                spec,
                row,
                rows,
                seed,
                count,
                database,
                floor_of(spec, rows, limit),
                device.default_choice(plan, rows),
            )
            for rows in sorted({*m, *concluded(database, spec)})
        ]
        say = watch or (lambda _: None)
        for problem in problems:
            wanted = trials if problem.m in m else 1
            try:
                explore(active, problem, wanted, deadline, say)
            except KeyboardInterrupt:
                say(problem.progress(wanted, "interrupted"))
                raise
        return conclude(active, problems, say, begun)
    finally:
        if own is not None:
            own.__exit__()


def row_of(target: str | Target | CudaTarget, header: Mapping[str, Any]) -> Target | CudaTarget:
    """The row of a target that was asked for on the machine that wrote `header`.

    Raises
    ------
    TuningError
        That machine means another one by its name.
    """
    row = targets.find(header["target"] if isinstance(target, str) else target)
    if device_of(row).digest_of(row) != header["target_digest"]:
        raise TuningError(f"the servers have another row for target {row.name} than quantmm here")
    return row


def rows_to_tune(m: int | Sequence[int]) -> list[int]:
    """The M that were asked for, one or several.

    Raises
    ------
    SpecError
        There is none, or one that no call can have.
    """
    given: list[Any] = list(m) if isinstance(m, Iterable) else [m]
    found = [rows for rows in map(as_whole, given) if rows is not None and rows >= 1]
    if not given or len(found) < len(given):
        raise SpecError(f"m={given!r}; expected whole numbers of at least 1")
    return found


def floor_of(spec: MatmulSpec, m: int, limit: Limits) -> float:
    """Seconds that the machine's limits allow for `m` rows."""
    return limit.floor(m, spec.w_rows, spec.k, weight_bytes(spec), m <= COLD_ROWS)


def concluded(database: Database, spec: MatmulSpec) -> list[int]:
    """The M for which the spec was tuned before: one record has to speak for all of them."""
    lines = list(records.kernel_lines(database.path, spec))
    if not lines:
        return []
    try:
        return [each["m"] for each in json.loads(lines[-1][1])["measured"] if is_measured(each)]
    except records.DAMAGE:
        return []


def explore(session: Session, problem: Problem, trials: int, deadline: float, watch: Watch) -> None:
    """Try choices for one M until there are as many trials, or no time, or nothing new."""
    search = session.search(problem, BATCH * len(session.boards))
    tell = functools.partial(keep, problem, search, threading.Lock())
    remember(problem, search)
    watch(problem.progress(trials, "building the default"))
    content = built_default(session, problem)
    stages = session.on_each(lambda board: stage_with(board, problem, content))
    if problem.clock is None:
        raced = session.on_each(lambda board: stages[board].race([DEFAULT], ROUNDS))
        for _, failed in raced.values():
            check_default(problem, failed)
        times = next(iter(raced.values()))[0][DEFAULT]
        problem.clock = statistics.median(times)
        tell({problem.default: times})
    problem.leader = take_best(session, stages, problem)
    waiting: dict[Choice, bytes | str] = {}
    while len(problem.times) < trials and time.monotonic() < deadline:
        if not waiting:
            choices = [choice for choice, _ in search.propose()][: trials - len(problem.times)]
            if not choices:
                watch(problem.progress(trials, "there is nothing else to try"))
                return
            watch(problem.progress(trials, f"building {len(choices)}"))
            waiting = built(session, problem, choices)
        watch(problem.progress(trials, f"measuring {len(waiting)}"))
        problem.leader = try_batch(session, stages, problem, waiting, tell)
        # What was under way on a machine that was lost is measured on another.
        waiting = {choice: waiting[choice] for choice in waiting if choice not in problem.times}
        watch(problem.progress(trials))


def remember(problem: Problem, search: Search) -> None:
    """Take what the log knows of the problem."""
    problem.workload = problem.database.workload(search.workload_json())
    for trial in problem.database.trials():
        if trial.workload != problem.workload:
            continue
        # The default's first time is the clock. What ran and later failed is not to be used.
        if trial.choice not in problem.times or trial.seconds is None:
            times = None if trial.seconds is None else list(trial.seconds)
            problem.times[trial.choice] = times
    for choice, times in problem.times.items():
        search.tell(choice, times)
    for damage in problem.database.damage:
        warnings.warn(f"skipped {damage}", RuntimeWarning, stacklevel=2)
    known = problem.times.get(problem.default)
    problem.clock = statistics.median(known) if known else None


def take_best(session: Session, stages: Mapping[Board, Stage], problem: Problem) -> Choice | None:
    """Put the best choice that the log knows on the stages, if it is better than the default."""
    assert problem.clock is not None
    for choice in problem.best(1):
        if problem.median(choice) < problem.clock:
            (content,) = built(session, problem, [choice]).values()
            if isinstance(content, bytes):
                load = functools.partial(load_on, stages, choice.name, content)
                if not any(session.on_each(load).values()):
                    return choice
    return None


def load_on(stages: Mapping[Board, Stage], name: str, content: bytes, board: Board) -> str | None:
    """Take a contender on a board's stage; why not."""
    return stages[board].load(name, content)


#: Takes for choices seconds per call on the problem's clock, or why they failed.
Tell = Callable[[Mapping[Choice, "list[float] | str"]], None]


def try_batch(
    session: Session,
    stages: Mapping[Board, Stage],
    problem: Problem,
    contents: Mapping[Choice, bytes | str],
    tell: Tell,
) -> Choice | None:
    """Check and time choices, a part on each board. Returns the leader from now on.

    What a board that was lost had under way is not told.
    """
    shares = dealt(contents, session.boards)
    raced = session.on_each(lambda board: try_share(stages[board], problem, shares[board], tell))
    winners = [winner for winner in raced.values() if winner is not None]
    if not winners:
        return problem.leader
    best = min(winners, key=problem.median)
    session.on_each(functools.partial(agree_on, stages, best, contents[best], winners))
    return best


def dealt(
    contents: Mapping[Choice, bytes | str], boards: Sequence[Board]
) -> dict[Board, dict[Choice, bytes | str]]:
    """As many choices for each board, as far as they go."""
    choices = list(contents.items())
    return {board: dict(choices[at :: len(boards)]) for at, board in enumerate(boards)}


def agree_on(
    stages: Mapping[Board, Stage],
    best: Choice,
    content: bytes | str,
    winners: Sequence[Choice],
    board: Board,
) -> None:
    """Have the best of all boards' winners on a board's stage, and no other one."""
    stage = stages[board]
    if not stage.holds(best.name) and isinstance(content, bytes):
        stage.load(best.name, content, check=False)
    for winner in winners:
        if winner != best:
            stage.drop(winner.name)


def try_share(
    stage: Stage,
    problem: Problem,
    contents: Mapping[Choice, bytes | str],
    tell: Tell,
) -> Choice | None:
    """Check and time choices on a stage. Returns the one that beat the leader."""
    names: dict[str, Choice] = {}
    for choice, content in contents.items():
        reason = content if isinstance(content, str) else stage.load(choice.name, content)
        if reason is None:
            names[choice.name] = choice
        else:
            tell({choice: reason})
    if not names:
        return None
    winner = None
    champion = problem.leader.name if problem.leader else DEFAULT
    racing = [*dict.fromkeys([DEFAULT, champion]), *names]
    times, failed = stage.race(racing, ROUNDS)
    check_default(problem, failed)
    timed = {
        choice: problem.on_clock(times[name], times[DEFAULT])
        for name, choice in names.items()
        if name in times
    }
    tell({**timed, **reasons(failed, names)})
    limit = statistics.median(times.get(champion, times[DEFAULT]))
    challengers = sorted(
        (name for name in names if name in times and statistics.median(times[name]) < limit),
        key=lambda name: statistics.median(times[name]),
    )[:CHALLENGERS]
    if challengers:
        again = [name for name in dict.fromkeys([DEFAULT, champion]) if name in times]
        more, failed = stage.race([*again, *challengers], MORE_ROUNDS)
        check_default(problem, failed)
        tell(reasons(failed, names))
        for name in challengers:
            if name in more and difference(more[name], more.get(champion, more[DEFAULT])).faster:
                champion, winner = name, names[name]
    for name in names:
        if name != champion:
            stage.drop(name)
    return winner


def reasons(failed: Mapping[str, str], names: Mapping[str, Choice]) -> dict[Choice, str]:
    """Why choices failed; the leader was told of when it was tried."""
    return {names[name]: reason for name, reason in failed.items() if name in names}


def keep(
    problem: Problem,
    search: Search,
    lock: threading.Lock,
    found: Mapping[Choice, list[float] | str],
) -> None:
    """Write trials to the log, and learn from them; boards do so under the `lock`."""
    records_found, failures = [], []
    with lock:
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
