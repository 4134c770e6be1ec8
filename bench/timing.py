"""Timing on a machine that others use too: everything takes turns, medians and minima are kept."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

#: Rounds in which every contender is timed once, and the least time that one turn lasts.
ROUNDS = 9
TURN_SECONDS = 0.02


@dataclass(frozen=True)
class Time:
    """Seconds per call over the rounds."""

    median: float
    least: float


def interleaved(
    contenders: Mapping[str, Sequence[Callable[[], object]]], rounds: int = ROUNDS
) -> dict[str, Time]:
    """Time contenders in turns, so that a slow moment of the machine hits all of them.

    Parameters
    ----------
    contenders : for each name the calls that it rotates through. Give calls on different weights,
        together larger than the last-level cache, to time weights that come from memory.
    """
    turns = {name: calls_per_turn(calls) for name, calls in contenders.items()}
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, calls in contenders.items():
            samples[name].append(one_turn(calls, turns[name]))
    return {name: Time(statistics.median(s), min(s)) for name, s in samples.items()}


def calls_per_turn(calls: Sequence[Callable[[], object]]) -> int:
    """How often to call so that a turn is long enough and visits every call."""
    one_turn(calls, len(calls))
    seconds = one_turn(calls, len(calls))
    needed = max(len(calls), round(TURN_SECONDS / seconds))
    return -(-needed // len(calls)) * len(calls)


def one_turn(calls: Sequence[Callable[[], object]], count: int) -> float:
    """Seconds per call of `count` calls."""
    start = time.perf_counter()
    for i in range(count):
        calls[i % len(calls)]()
    return (time.perf_counter() - start) / count
