"""Contenders are measured honestly."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from quantmm.tuning import candidate, measure, sides
from quantmm.tuning.stage import DEFAULT, Stage, difference
from tuning_runs import ROW, SPEC, M, choice


def test_differences_know_their_noise():
    rng = np.random.default_rng(0)
    slow_moments = rng.choice([1.0, 3.0], 25)
    default = slow_moments * rng.normal(1, 0.01, 25)
    same = difference(slow_moments * rng.normal(1, 0.01, 25), default)
    assert not same.faster
    assert not same.slower
    better = difference(0.95 * slow_moments * rng.normal(1, 0.01, 25), default)
    assert better.faster
    assert better.ratio == pytest.approx(0.95, abs=0.01)
    assert difference(default, 0.95 * default).slower
    assert not difference([0.99, 1.2, 0.8], [1.0, 1.0, 1.0]).faster


class Clock:
    """A bench that says times and runs nothing."""

    starts, alive = 1, True

    def __init__(self, times):
        self.times, self.turns = times, []

    def call(self, method, *arguments, seconds):
        if method == "turn":
            self.turns.append(arguments[0])
            return self.times[arguments[0]]
        return 1 if method == "calls_per_turn" else None

    def close(self):
        pass


def test_contenders_take_turns_and_the_hopeless_leave():
    clock = Clock({DEFAULT: 2.0, "good": 1.0, "near": 1.05, "hopeless": 1.2})
    on = Stage(clock, SPEC, M, 0, 1)
    times, failed = on.race([DEFAULT, "good", "near", "hopeless"], 4)
    assert failed == {}
    assert [len(times[name]) for name in (DEFAULT, "good", "near", "hopeless")] == [4, 4, 4, 2]
    assert clock.turns == [DEFAULT, "good", "near", "hopeless"] * 2 + [DEFAULT, "good", "near"] * 2


def test_weights_come_from_memory_for_few_rows():
    content = candidate.Builder().candidate(SPEC, ROW, choice())
    places = {}
    for m in (16, 17):
        bench = measure.Bench()
        bench.prepare(dataclasses.replace(SPEC), m, 0, 1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sides, "copies_for", lambda size: 3)
            assert bench.load("x", content) is None
        calls = [next(bench._calls["x"]) for _ in range(6)]
        places[m] = len({each.whole.func._arrays["w"].ctypes.data for each in calls})
    assert places == {16: 3, 17: 1}
