"""Timing on a machine that others use too: everything takes turns, medians and minima are kept."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

#: Rounds in which every contender is timed once, and the least time that one turn lasts.
ROUNDS = 9
TURN_SECONDS = 0.02


class Quartiles(NamedTuple):
    """Half of the rounds lie between them."""

    low: float
    high: float


@dataclass(frozen=True)
class Time:
    """Seconds per call, one sample a round."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.samples)

    @property
    def least(self) -> float:
        """The least of the rounds."""
        return min(self.samples)

    @property
    def quartiles(self) -> Quartiles:
        """The first and the third quartile."""
        if len(self.samples) == 1:
            return Quartiles(*self.samples * 2)
        low, _, high = statistics.quantiles(self.samples, method="inclusive")
        return Quartiles(low, high)


def median_range(values: Sequence[float], confidence: float = 0.9) -> tuple[float, float]:
    """Between which of `values` the true median lies, with at least this probability.

    As many are left out at both ends as the binomial distribution allows: each value is as likely
    above the median as below, however values are distributed. One of 9 at each end leaves 96 %.
    """
    ordered, n = sorted(values), len(values)
    left_out, outside = 0, 2.0 ** (1 - n)
    while left_out < (n - 1) // 2:
        outside += math.comb(n, left_out + 1) * 2.0 ** (1 - n)
        if outside > 1 - confidence:
            break
        left_out += 1
    return ordered[left_out], ordered[n - 1 - left_out]


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
    return {name: Time(tuple(s)) for name, s in samples.items()}


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
