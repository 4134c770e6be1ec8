"""One shape beside its peers: every contender in a process of its own, and all take turns.

`compare` is what runs on the machine that is measured, this one or another (see `machine`).
"""

from __future__ import annotations

import importlib.machinery
import os
import random
import statistics
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from ..errors import BenchError
from ..extras import EXTRAS, install
from ..processes import Worker, WorkerError
from ..runtime import devices
from ..targets import machine
from . import process
from .contenders import LIMITS, OURS, Contender, Job, chosen
from .roofline import Limits
from .row import Row
from .timing import Time

#: How often everyone has a turn, and the pause after it, in which its threads fall asleep.
ROUNDS = 9
PAUSE_SECONDS = 0.06
#: The share of the machine's memory that the contenders of a row may occupy together; whoever goes
#: beyond is left out.
MEMORY_SHARE = 0.6


def compare(job: Job, against: Collection[str], rounds: int = ROUNDS) -> Row:
    """Measure one shape of one format: quantmm, the machine's limits and whom `against` names.

    Parameters
    ----------
    against : words of `contenders.GROUPS`. Who is not installed, cannot do the shape, computes
        something else, dies or hangs is left out, and the row says why.

    Raises
    ------
    BenchError
        A word that stands for no contender, or limits that could not be measured.
    TargetError
        No such target, or one that this machine cannot execute.
    """
    row = job.row
    if row.device == "cuda":
        devices.gpu_for(row)
    else:
        machine.require(row.name, row.architecture, row.features)
    taken, absent = chosen(job, against)
    load: dict[str, float] = {}
    with load_by_others(load), process.processes() as running:
        about = {}
        for contender in [LIMITS, OURS, *taken]:
            try:
                about[contender.name] = started(contender, job, running)
            except WorkerError as failure:
                absent[contender.name] = str(failure)
        samples = take_turns(running, absent, rounds)
    if LIMITS.name in absent:
        raise BenchError(f"this machine's limits were not measured: {absent[LIMITS.name]}")
    limits = samples.pop(LIMITS.name)
    return Row(
        job=job,
        target=row.name,
        limits=Limits(
            **{name: statistics.median(each[name] for each in limits) for name in limits[0]}
        ),
        times={name: Time(tuple(seconds)) for name, seconds in samples.items()},
        baselines=tuple(each.name for each in taken if each.baseline and each.name in samples),
        absent=absent,
        about={name: text for name, text in about.items() if text and name in samples},
        **load,
    )


def started(contender: Contender, job: Job, running: dict[str, Worker]) -> str:
    """Start a contender's process among those that are `running`; what there is to say of it.

    Raises
    ------
    WorkerError
        It takes no part, and nothing of it is left.
    """
    if module := first_missing(contender.needs):
        raise WorkerError(not_installed(module))
    worker = running[contender.name] = process.started(contender, job)
    try:
        about = process.ready(worker, contender, job)
        occupied = sum(map(process.memory, running.values()))
        if occupied > MEMORY_SHARE * psutil.virtual_memory().total:
            raise WorkerError("not enough memory for this shape")
    except WorkerError:
        running.pop(contender.name).close()
        raise
    return about


def not_installed(module: str) -> str:
    """What brings a module that is missing, where an extra does."""
    brought_by = [extra.name for extra in EXTRAS if module in extra.modules]
    how = f": {install(brought_by[-1])}" if brought_by else ""
    return f"not installed (no module {module!r}){how}"


def first_missing(modules: Collection[str]) -> str | None:
    """The first of `modules` that is not installed."""
    # Not `importlib.util`'s, which finds no torch where a process keeps it out of its imports.
    find = importlib.machinery.PathFinder.find_spec
    return next((module for module in modules if find(module) is None), None)


def take_turns(
    running: dict[str, Worker], absent: dict[str, str], rounds: int
) -> dict[str, list[Any]]:
    """The samples of all who are `running`, one a round; who fails becomes `absent`.

    The order differs from round to round, so that nobody always comes after the same one.
    """
    samples: dict[str, list[Any]] = {name: [] for name in running}
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample([*samples], len(samples)):
            try:
                samples[name].append(process.turn(running[name]))
            except WorkerError as failure:
                absent[name] = str(failure)
                del samples[name]
                running.pop(name).close()
            time.sleep(PAUSE_SECONDS)
    return samples


@contextmanager
def load_by_others(load: dict[str, float]) -> Iterator[None]:
    """Fill `load` with the fields of `Row` that say who else used the machine meanwhile."""
    start, before, ours = time.monotonic(), psutil.cpu_times(), own_seconds()
    yield
    seconds, after = time.monotonic() - start, psutil.cpu_times()
    idle = ("idle", "iowait", "steal", "guest", "guest_nice")
    busy = sum(
        getattr(after, name) - getattr(before, name) for name in after._fields if name not in idle
    )
    load["busy_cores"] = max(0.0, busy - (own_seconds() - ours)) / seconds
    load["stolen_cores"] = (getattr(after, "steal", 0) - getattr(before, "steal", 0)) / seconds


def own_seconds() -> float:
    """CPU seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])
