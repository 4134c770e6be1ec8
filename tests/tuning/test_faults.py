"""What fails in a run costs only itself."""

from __future__ import annotations

import dataclasses
import json
import os
import signal

import pytest
import tuning_faults
from quantmm.errors import TuningError
from quantmm.processes import Worker, WorkerError
from quantmm.schedules import records
from quantmm.schedules.cpu.plan import plan_for
from quantmm.tuning import candidate, devices, measure, stage
from quantmm.tuning.choice import Choice
from quantmm.tuning.on_cpu import default_choice
from quantmm.tuning.search import Search
from quantmm.tuning.stage import DEFAULT, Stage
from tuning_runs import ROW, SPEC, M, choice, lines, tune


def test_what_fails_costs_only_itself(tmp_path, propose, monkeypatch):
    monkeypatch.setattr(stage, "RUN_SECONDS", 5.0)
    # The space has none of these values for few_tiles; their trials are kept all the same.
    monkeypatch.setattr(Search, "trace", lambda self, each: self.schedule("gemm", None).trace)
    faults = {
        tuning_faults.CRASHES_COMPILER: "SIGABRT",
        tuning_faults.HANGS_COMPILER: "not done after 20 s",
        tuning_faults.FAILS_TO_BUILD: "ValueError: no such tile",
        tuning_faults.IS_WRONG: "wrong for 1 rows: ",
        tuning_faults.CRASHES: "SIGSEGV",
        tuning_faults.HANGS: "not done after 5 s",
    }
    good = [choice(rows=1), choice(rows=2)]
    bad = [choice(few_tiles=few) for few in faults]
    propose([bad[0], bad[1], good[0], bad[2]], [bad[3], bad[4], good[1], bad[5]])
    seen = []
    tuning = tune(tmp_path, m=[M], trials=9, watch=seen.append)
    assert [state.failed for state in seen][-1] == len(bad)
    (outcome,) = tuning.outcomes
    assert sum(each is None for each in outcome.times) == len(bad)
    assert outcome.choice in (None, *good)
    reasons = {}
    for line in map(json.loads, lines(tmp_path, records.FAILURES)):
        reasons[line["choice"]["few_tiles"]] = line["reason"]
    assert reasons.keys() == faults.keys()
    for few, reason in faults.items():
        assert reason in reasons[few]


def test_a_default_that_does_not_work(tmp_path, monkeypatch):
    broken = dataclasses.replace(
        default_choice(plan_for(SPEC, ROW), M).parameters, few_tiles=tuning_faults.IS_WRONG
    )
    device = dataclasses.replace(
        devices.DEVICES["cpu"], default_choice=lambda *_: Choice("gemm", 64, broken)
    )
    monkeypatch.setitem(devices.DEVICES, "cpu", device)
    with pytest.raises(TuningError, match=f"the default kernel failed for m={M}: wrong for"):
        tune(tmp_path)


def test_what_is_written_behind_the_rows_is_seen(monkeypatch):
    bench = measure.Bench()
    bench.prepare(SPEC, M, 0, 1)
    good = tuning_faults.Builder().candidate(SPEC, ROW, choice())
    assert bench.load("good", good) is None
    call_before = bench._call

    def spilling(linear, m):
        call = call_before(linear, m)
        return lambda: (call(), bench._placed["out"][m:].fill(0))

    monkeypatch.setattr(bench, "_call", spilling)
    assert bench.load("spilling", good) == "wrong for 1 rows: it writes behind them"


def test_a_child_that_is_gone_is_replaced():
    worker = Worker("tuning_faults:Bench")
    try:
        worker.call("prepare", SPEC, 1, 0, 1, seconds=20)
        with pytest.raises(WorkerError, match=r"AttributeError: .*no attribute 'fly'"):
            worker.call("fly", seconds=5)
        assert worker.starts == 1
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match="SIGKILL"):
            worker.call("prepare", SPEC, 1, 0, 1, seconds=20)
        worker.call("prepare", SPEC, 1, 0, 1, seconds=20)
        assert worker.starts == 2
    finally:
        worker.close()
    assert not worker.alive


def test_a_stage_puts_back_what_a_lost_child_had():
    content = candidate.Builder().candidate(SPEC, ROW, choice())
    worker = Worker("tuning_faults:Bench")
    try:
        on = Stage(worker, SPEC, M, 0, 1)
        assert on.load(DEFAULT, content) is None
        assert on.load("other", content) is None
        os.kill(worker._process.pid, signal.SIGKILL)
        worker._process.wait()
        times, failed = on.race([DEFAULT, "other"], 2)
        assert list(failed) in ([], [DEFAULT])  # who was asked when it was gone
        assert len(times["other"]) == 2
    finally:
        worker.close()
