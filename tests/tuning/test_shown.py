"""What a run shows."""

from __future__ import annotations

import dataclasses
import io
import re
import sys

import numpy as np
import pytest
import quantmm as qmm
from quantmm.errors import SpecError, ToolError, TuningError
from quantmm.tuning import plot, progress, run
from quantmm.tuning.progress import Display
from quantmm.tuning.state import Outcome, Problem, Progress, Tuning
from rich.console import Console
from tuning_runs import ROW, SPEC, M, choice, tune


def state(**other):
    fields = {"done": 3, "trials": 8, "failed": 1, "default": 2e-3, "best": 1e-3, "floor": 5e-4}
    return Progress(SPEC, M, **{**fields, **other})


def test_the_best_is_what_beat_the_others_and_not_what_was_lucky():
    other, lucky = choice(), choice(rows=2)
    problem = Problem(SPEC, ROW, M, 0, 1, None, 1e-6, choice(rows=1), clock=3e-3)
    problem.times = {problem.default: [3e-3], other: [2e-3], lucky: [1e-3]}
    assert problem.progress(9).best == 3e-3
    problem.leader = other
    assert problem.progress(9).best == 2e-3


def test_the_best_that_is_shown_never_rises():
    """A leader beats the one before in turns, and may have the longer time on the clock."""
    first, second, third = choice(), choice(rows=2), choice(rows=4)
    problem = Problem(SPEC, ROW, M, 0, 1, None, 1e-6, choice(rows=1), clock=3e-3)
    problem.times = {problem.default: [3e-3], first: [1.73e-3], second: [1.79e-3], third: [1e-3]}
    shown = []
    for problem.leader in (None, first, second, third):
        shown.append(problem.progress(9).best)
    assert shown == [3e-3, 1.73e-3, 1.73e-3, 1e-3]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress(terminal):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=200)
    with Display(8, console) as display:
        display(state())
        display(state(done=8))
    text = out.getvalue()
    for words in ("6 x 64 x 64", "1.0000 ms, 50% of the limit, 50.0% less than the default"):
        assert words in text
    assert ("\x1b" in text) == terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_trials_and_the_time_left_are_seen_on_a_narrow_terminal(terminal, monkeypatch):
    spec = qmm.MatmulSpec(n=11008, k=4096)
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=80)
    now = iter(range(0, 10**6, 100))  # a batch may take longer than rich remembers by itself
    console.get_time = lambda: next(now)
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    with Display(192, console) as display:
        for done in (1, 9, 17):
            fields = dataclasses.asdict(state(done=done, trials=64, text="measuring 8"))
            display(Progress(**{**fields, "spec": spec, "m": 512}))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "512 x 11008 x 4096" in text
    assert "17/192 trials" in text if terminal else "17 of 64 trials" in text
    assert re.search(r"\d:\d\d:\d\d", text)
    assert "50.0% less than the default" in " ".join(text.split())
    assert "…" not in text


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_plot(log, tmp_path, suffix):
    outcomes = tuple(
        Outcome(m, (2e-3, 1e-3, None, 5e-3), 5e-4, None, 2e-3, 2e-3, 0.0, m, m) for m in (1, 16)
    )
    path = tmp_path / f"curve.{suffix}"
    plot.plot([Tuning(SPEC, "host", 1, outcomes, None, 1.0)], path)
    assert path.stat().st_size > 5000
    with pytest.raises(TuningError, match=r"cannot write .*curve\.xyz"):
        plot.plot([Tuning(SPEC, "host", 1, outcomes, None, 1.0)], tmp_path / "curve.xyz")


def test_plot_without_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ToolError, match=r"needs matplotlib: pip install 'quantmm\[tune\]'"):
        plot.plot([Tuning(SPEC, "host", 1, (), None, 1.0)], tmp_path / "curve.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"m": []}, r"m=\[\]; expected whole numbers"),
        ({"m": [0]}, r"m=\[0\]; expected whole numbers"),
        ({"m": [1.5]}, r"m=\[1.5\]; expected whole numbers"),
        ({"m": 0}, r"m=\[0\]; expected whole numbers"),
        ({"m": [True]}, r"m=\[True\]; expected whole numbers"),
        ({"m": "12"}, r"m=\['1', '2'\]; expected whole numbers"),
        ({"trials": 0}, "trials=0; expected a whole number"),
        ({"seed": -1}, "seed=-1; expected a whole number of at least 0"),
        ({"threads": 0}, "threads=0; expected a whole number of at least 1"),
    ],
)
def test_numbers_that_make_no_run(tmp_path, options, message):
    with pytest.raises(SpecError, match=message):
        qmm.tune(SPEC, log=tmp_path, **options)
    with pytest.raises(SpecError, match=r"the spec has m=3; give the rows to tune for as m=\["):
        qmm.tune(dataclasses.replace(SPEC, m=3), log=tmp_path)


@pytest.mark.parametrize("m", [3, np.int64(3), [3], (np.int32(3),), np.array([3])])
def test_one_m_or_several_of_any_whole_type(m):
    found = run.rows_to_tune(m)
    assert found == [3]
    assert type(found[0]) is int


def test_a_plot_of_no_run(tmp_path):
    with pytest.raises(TuningError, match=r"nothing to draw into .*z\.png: no run began"):
        plot.plot([], tmp_path / "z.png")


def test_a_time_limit(tmp_path):
    assert len(tune(tmp_path, trials=1000, time_limit=1e-9).outcomes[0].times) == 1
