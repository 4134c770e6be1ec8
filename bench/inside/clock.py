"""Samples of single calls: the median of some, where what stands before a call does not count."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

#: Calls of a sample: the first so many do not count, at least so many do, and no more are begun
#: after so many or so many seconds.
WAKING, LEAST, MOST, SAMPLE_SECONDS = 2, 5, 30, 0.15

Calls = Iterator[Callable[[], object]]


def median_call(
    calls: Calls,
    before: Callable[[], object],
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Median seconds of calls; `before` is called right before each."""
    seconds: list[float] = []
    start = clock()
    while len(seconds) < WAKING + LEAST or (
        len(seconds) < WAKING + MOST and clock() - start < SAMPLE_SECONDS
    ):
        call = next(calls)
        before()
        begun = clock()
        call()
        seconds.append(clock() - begun)
    return statistics.median(seconds[WAKING:])
