"""Single calls among a host's operations: what the process does that measures.

Every call comes right after the host's operation, so that caches are as that leaves them. "Alone",
that had one thread and the host's others nothing to do; "inside", it had as many as the call.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import psutil

from ...runtime.threads import pool_name
from ..compare import MEMORY_SHARE
from ..contenders import Contender, Job, Ready, build, reason
from .clock import Calls, median_call
from .company import Company, Facts
from .hosts import Operations, find_host


def ready(job: Job, host: str, contenders: list[dict[str, Any]]) -> Company:
    """Build contenders in the process of a host, where each computes what it should."""
    operations = find_host(host).start()
    samples: dict[str, Callable[[], dict[str, float]]] = {}
    facts = Facts({}, {}, "")
    for contender in (Contender(**each) for each in contenders):
        try:
            made = built(contender, job)
        except Exception as error:
            facts.absent[contender.name] = reason(error)
            continue
        facts.about[contender.name] = made.about
        samples[contender.name] = functools.partial(
            sample, operations, job.threads, itertools.cycle(made.calls), changing_order()
        )
    return Company(samples, dataclasses.replace(facts, pool=pool_name()))


def built(contender: Contender, job: Job) -> Ready:
    """A contender that has been checked and leaves memory to others.

    Raises
    ------
    MemoryError
        It does not.
    Exception
        Whatever keeps it from taking part.
    """
    made = build(contender, job)
    assert isinstance(made, Ready), "only the machine's limits are something else"
    if psutil.Process().memory_info().rss > MEMORY_SHARE * psutil.virtual_memory().total:
        raise MemoryError("not enough memory for this shape")
    return made


def changing_order() -> Iterator[tuple[str, str]]:
    """In which order a sample has its two halves: what came first comes last the next time."""
    return itertools.cycle((("alone", "inside"), ("inside", "alone")))


def sample(
    operations: Operations, threads: int, calls: Calls, orders: Iterator[tuple[str, str]]
) -> dict[str, float]:
    """Median seconds of a call, alone and inside."""

    def operate(count: int) -> None:
        operations.set_threads(count)
        operations.operate()
        operations.set_threads(threads)

    before = {"alone": 1, "inside": threads}
    return {
        place: median_call(calls, functools.partial(operate, before[place]))
        for place in next(orders)
    }
