"""Runs on other machines; test_rpc.py has the way there."""

from __future__ import annotations

import dataclasses

import pytest
from quantmm.bench import limits
from quantmm.bench.machine import Machine
from quantmm.errors import RpcError, TuningError
from quantmm.processes import Worker
from quantmm.schedules import records
from quantmm.tuning import keeping, run
from quantmm.tuning.stage import Board
from tuning_runs import CHILDREN, ROW, SPEC, M, lines, tune_on


class Other(Machine):
    """A machine of another kind."""

    def __init__(self, cpu):
        self.cpu = cpu

    def header(self, target, threads):
        return {**super().header(target, threads), "cpu": self.cpu}

    def limits(self, row, threads):
        return limits.Limits(threads, 77.0, 1e6, 1e6)


class Losable(Worker):
    """A child that is gone for good after some turns."""

    def __init__(self, place, turns):
        super().__init__(place)
        self.turns = turns

    def call(self, method, *arguments, seconds):
        self.turns -= method == "turn"
        if self.turns < 0:
            raise RpcError("server a:1 was lost: no power")
        return super().call(method, *arguments, seconds=seconds)


def board(name, turns=10**9, machine=None):
    return Board(name, Losable("tuning_faults:SlowDefault", turns), machine or Machine())


def test_records_are_for_the_machine_that_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(CHILDREN, "_limits", {})
    seen = []
    tuning = tune_on([board("a:1", machine=Other("another"))], tmp_path, watch=seen.append)
    assert tuning.outcomes[0].choice is not None
    (database,) = records.databases(tmp_path)
    assert records.read_header(database)["cpu"] == "another"
    assert seen[0].floor == pytest.approx(2 * M * 64 * 64 / 77e9)
    assert records.find(SPEC, ROW, 1, tmp_path) is None
    assert records.find(SPEC, ROW, 1, tmp_path, any_record=True) is not None


def test_machines_of_different_kinds_are_refused(tmp_path):
    boards = [board("a:1", machine=Other("Z80")), board("b:2", machine=Other("6502"))]
    with pytest.raises(
        TuningError,
        match=r"a:1 and b:2 differ in cpu \('Z80' and '6502'\); give each kind of machine a key",
    ):
        tune_on(boards, tmp_path)
    row = dataclasses.replace(ROW, cache_bytes=1)
    with pytest.raises(TuningError, match=f"another row for target {ROW.name} than quantmm here"):
        run.row_of(row, Machine().header(ROW, 1))


# Turns of the race for the clock, of the first batch, and of the last rounds.
@pytest.mark.parametrize("turns", [3, 12, 60, 110])
def test_what_a_lost_machine_had_is_measured_on_another(tmp_path, turns):
    with pytest.warns(RuntimeWarning, match="server a:1 was lost: no power; going on with b:2"):
        tuning = tune_on([board("a:1", turns), board("b:2")], tmp_path, m=[20], trials=20)
    times = tuning.outcomes[0].times
    assert len(times) == 20
    assert None not in times
    assert lines_of_failures(tmp_path) == []
    assert keeping.check(tmp_path) == []


def lines_of_failures(log):
    (database,) = records.databases(log)
    path = database / records.FAILURES
    return path.read_text().splitlines() if path.exists() else []


def test_without_any_machine_the_run_ends_and_the_log_stays(tmp_path):
    with (
        pytest.warns(RuntimeWarning, match="going on with b:2"),
        pytest.raises(TuningError, match="was lost: no power; there is no other server to go on"),
    ):
        tune_on([board("a:1", 30), board("b:2", 160)], tmp_path, m=[20], trials=1000)
    assert len(lines(tmp_path)) > 5
    assert lines_of_failures(tmp_path) == []
    assert keeping.check(tmp_path) == []
