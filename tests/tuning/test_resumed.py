"""Runs that end early go on later, and share their log."""

from __future__ import annotations

import json
import re
import signal
import threading

import commands
import psutil
import pytest
from quantmm.schedules import records
from quantmm.schedules.cpu.plan import plan_for
from quantmm.tuning import keeping, run
from quantmm.tuning.log import Database
from quantmm.tuning.on_cpu import default_choice
from quantmm.tuning.search import Search
from quantmm.tuning.stage import DEFAULT, Stage
from quantmm.tuning.state import Problem
from tuning_runs import ROW, SPEC, M, lines, tune


def command(log, *words):
    words = ["tune", "--m", 5, "--n", 64, "--k", 64, "--threads", 1, *words, "--log", log]
    return commands.start(*words)


def end(process, log, how):
    """End a run that has measured something; what it says on stderr."""
    commands.wait_for_trials(log, 9)
    children = psutil.Process(process.pid).children()
    assert len(children) >= 2
    process.send_signal(how)
    _, err = process.communicate(timeout=20)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert [child for child in alive if child.status() != psutil.STATUS_ZOMBIE] == []
    return err


def test_ctrl_c(tmp_path):
    process = command(tmp_path, "--trials", 1000)
    said = end(process, tmp_path, signal.SIGINT).splitlines()[-1]
    assert process.returncode == 130
    words = f"trials are kept in {tmp_path}; the same command goes on from there"
    kept = re.fullmatch(rf"quantmm: interrupted: (\d+) {words}", said)
    assert kept
    assert int(kept[1]) >= len(lines(tmp_path))
    assert keeping.check(tmp_path) == []


def test_a_run_that_is_killed_goes_on(tmp_path):
    end(command(tmp_path, "--trials", 1000), tmp_path, signal.SIGKILL)
    before = lines(tmp_path)
    (database,) = records.databases(tmp_path)
    tried = [trial.choice for trial in Database(database).trials()]
    assert len(set(tried)) == len(tried) == len(before)
    more = len(before) + 3
    command(tmp_path, "--trials", more).communicate(timeout=60)
    assert lines(tmp_path)[: len(before)] == before
    tried = [trial.choice for trial in Database(database).trials()]
    assert len(set(tried)) == len(tried) == more
    assert len(lines(tmp_path, records.KERNELS)) == 1


def test_what_was_measured_is_kept_before_the_best_race_again(tmp_path, monkeypatch):
    race, raced = Stage.race, set()

    def interrupted(self, names, rounds):
        if rounds == run.MORE_ROUNDS:
            raise KeyboardInterrupt
        raced.update(names)
        return race(self, names, rounds)

    monkeypatch.setattr(Stage, "race", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path, "SlowDefault", trials=1 + run.BATCH)
    (database,) = records.databases(tmp_path)
    kept = {trial.choice.name for trial in Database(database).trials() if trial.seconds}
    assert len(raced) > 3
    assert kept == raced - {DEFAULT} | {default_choice(plan_for(SPEC, ROW), M).name}


def test_a_later_failure_counts_and_a_later_time_does_not(copy):
    (path,) = records.databases(copy)

    def remembered():
        default = default_choice(plan_for(SPEC, ROW), M)
        problem = Problem(SPEC, ROW, M, 0, 1, Database(path), 1e-6, default)
        search = Search(SPEC, ROW, M, 0, 4)
        run.remember(problem, search)
        return problem, search

    problem, search = remembered()
    clock, (other,) = problem.clock, problem.best()
    run.keep(problem, search, threading.Lock(), {problem.default: [9.0], other: "SIGSEGV"})
    again, _ = remembered()
    assert clock == again.clock != 9.0
    assert again.times[other] is None


def test_two_runs_share_a_log(tmp_path):
    runs = [command(tmp_path, "--trials", 6, "--out", out) for out in ("float32", "int32")]
    for process in runs:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    (path,) = records.databases(tmp_path)
    database = Database(path)
    trials = database.trials()
    assert database.damage == []
    assert sorted(trial.workload for trial in trials) == [0] * 6 + [1] * 6
    assert len(set(lines(tmp_path, records.WORKLOADS))) == 2
    specs = {json.loads(line)["spec"] for line in lines(tmp_path, records.KERNELS)}
    assert len(specs) == 2
    assert keeping.check(tmp_path) == []
