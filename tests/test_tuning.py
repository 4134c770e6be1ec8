"""Tuning: what is tried, what that may cost, what is kept of it, and when it is used."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import commands
import numpy as np
import problems
import psutil
import pytest
import quantmm as qmm
import tuning_faults
from quantmm import targets
from quantmm.bench import check, limits
from quantmm.bench.machine import Machine
from quantmm.bench.models import MODELS
from quantmm.cli import logs as cli_logs
from quantmm.compiler import cache
from quantmm.errors import RecordError, RpcError, SpecError, ToolError, TuningError
from quantmm.formats.named import FORMATS
from quantmm.runtime.info import Function
from quantmm.schedules import cuda_records, records
from quantmm.schedules.cpu.plan import instructions_of, plan_for
from quantmm.schedules.cpu.program import Parameters
from quantmm.schedules.cpu.space import of_trace
from quantmm.tuning import (
    candidate,
    joining,
    keeping,
    measure,
    plot,
    progress,
    run,
    search,
    stage,
    verdict,
)
from quantmm.tuning import log as logs
from quantmm.tuning.candidate import Choice, default_choice
from quantmm.tuning.log import Database, database_for
from quantmm.tuning.model import Model
from quantmm.tuning.progress import Display
from quantmm.tuning.search import Search
from quantmm.tuning.stage import DEFAULT, Board, Session, Stage, difference
from quantmm.tuning.state import Outcome, Problem, Progress, Tuning
from quantmm.tuning.worker import Worker, WorkerError
from rich.console import Console
from tvm.s_tir import meta_schedule as ms

SPEC = qmm.MatmulSpec(n=64, k=64)
ROW = targets.host()
M = 6


#: Builders are started once for all tests: each imports TVM.
CHILDREN = Session("tuning_faults:Builder", build_seconds=20)


@pytest.fixture(autouse=True, scope="module")
def quick():
    """The limits are not measured anew in every test, and children find these tests' modules."""
    measured = limits.Limits(1, 1000.0, 10.0, 10.0)
    here = str(Path(__file__).parent)
    with pytest.MonkeyPatch.context() as patch, CHILDREN:
        patch.setattr(limits, "measure", lambda *_: measured)
        patch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))
        yield


def tune(log, bench="Bench", **options):
    return tune_on([stage.this_machine(f"tuning_faults:{bench}")], log, **options)


def tune_on(boards, log, **options):
    CHILDREN.boards = list(boards)
    try:
        options = {"m": [M], "trials": 5, "threads": 1, **options}
        return qmm.tune(SPEC, log=log, session=CHILDREN, **options)
    finally:
        for board in boards:
            board.bench.close()


def lines(log, name=records.TRIALS):
    (database,) = records.databases(Path(log))
    return (database / name).read_text().splitlines()


@pytest.fixture
def propose(monkeypatch):
    """Let the search propose these choices, one batch after the other."""

    def these(*batches):
        class Fixed(Search):
            def __init__(self, *arguments):
                super().__init__(*arguments)
                self.batches = iter(batches)

            def propose(self):
                return iter([(choice, None) for choice in next(self.batches, [])])

        monkeypatch.setattr(
            run, "search_for", lambda p, batch: Fixed(p.spec, p.row, p.m, p.seed, batch)
        )

    return these


def choice(**other):
    parameters = {"rows": 3, "blocks": 2, "panels": 1, "ahead": 0, "unroll": 1, "few_tiles": 2}
    return Choice("gemm", 64, Parameters(**{**parameters, "block_rows": 1 << 17, **other}))


# Safe.


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
    monkeypatch.setattr(run, "default_choice", lambda *_: Choice("gemm", 64, broken))
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
        return lambda: (call(), bench._out[m:].fill(0))

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


# Resumed, shared, damaged.


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
    assert end(process, tmp_path, signal.SIGINT).endswith("quantmm: interrupted\n")
    assert process.returncode == 2
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


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """A log in which a choice was faster than the default for M, and one for 40."""
    folder = tmp_path_factory.mktemp("log")
    tune(folder, "SlowDefault", m=[M, 40], trials=4)
    return folder


@pytest.fixture
def copy(log, tmp_path):
    """The same to be damaged."""
    (database,) = records.databases(log)
    folder = tmp_path / "log" / database.name
    folder.mkdir(parents=True)
    for path in database.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder.parent


def test_damaged_lines_are_reported_and_skipped(copy):
    (database,) = records.databases(copy)
    path = database / records.TRIALS
    whole = path.read_text().splitlines()
    half = whole[1][: len(whole[1]) // 2]
    path.write_text("\n".join([whole[0], "{", "[0, 1]", *whole[2:], half]))
    with pytest.warns(RuntimeWarning, match="line 2: is damaged"):
        tune(copy, "SlowDefault", trials=5)
    after = path.read_text().splitlines()
    assert after[: len(whole) + 2] == [whole[0], "{", "[0, 1]", *whole[2:], half]
    # Nothing is measured again that is still there.
    database = Database(database)
    tried = [trial.choice for trial in database.trials() if trial.workload == 0]
    assert len(set(tried)) == len(tried) == 5
    # Whatever was lost is made up for, and nothing was appended to the half line.
    assert all(json.loads(line) for line in after[len(whole) + 2 :])
    assert len(keeping.check(copy)) == 3
    assert keeping.prune(copy) > 3
    assert keeping.check(copy) == []


def damaged_time(line, seconds):
    """A line of a trial with this text as its times."""
    workload, (trace, _, *more) = json.loads(line)
    text = json.dumps([workload, [trace, "times", *more]])
    return text.replace('"times"', seconds)


@pytest.mark.parametrize(
    "seconds",
    ["[-1]", "[0]", "[Infinity]", "[1e400]", "[NaN]", "[1" + "0" * 400 + "]", "[1e-3, 0]"],
)
def test_times_that_cannot_be_are_damage(copy, seconds):
    (path,) = records.databases(copy)
    before = len(Database(path).trials())
    line = damaged_time(lines(copy)[0], seconds)
    database = Database(path)
    database.add(records.TRIALS, [line])
    assert len(database.trials()) == before
    (damage,) = database.damage
    assert damage.number == before + 1


@pytest.mark.parametrize("rows", [[], "3", None, 1.5])
def test_failures_of_other_types_are_damage(tmp_path, rows):
    database = Database(tmp_path)
    whole = choice().decisions()
    failures = [
        {"workload": 0, "choice": {**whole, "rows": rows}, "reason": "none"},
        {"workload": rows, "choice": whole, "reason": "none"},
    ]
    database.add(records.FAILURES, failures)
    assert database.trials() == []
    first, second = database.damage
    assert "a decision is no whole number" in first.reason
    assert "no workload" in second.reason


def test_rows_that_no_call_can_have_are_not_tuned_for(copy):
    (path,) = records.databases(copy)
    (line,) = lines(copy, records.KERNELS)
    fields = json.loads(line)
    entry = fields["measured"][0]
    more = [{**entry, "m": m} for m in (0, -5, "7", 10**15, None)]
    database = Database(path)
    database.add(records.KERNELS, [{**fields, "measured": [entry, *more, 3]}])
    assert run.concluded(database, SPEC) == [M]


DEEP = "[" * 100_000


def test_lines_that_are_too_deep_are_damage(copy):
    (path,) = records.databases(copy)
    database = Database(path)
    whole = len(database.trials())
    database.add(records.TRIALS, [DEEP])
    start = json.dumps({"spec": SPEC.to_json()})[:-1]
    database.add(records.KERNELS, [start + ", " + DEEP])
    assert len(database.trials()) == whole
    assert len(keeping.check(copy)) == 2
    with pytest.warns(RuntimeWarning, match=":2: it is damaged"):
        assert records.find(SPEC, ROW, 1, copy) is not None
    assert run.concluded(database, SPEC) == []
    (path / records.HEADER).write_text(DEEP)
    with pytest.raises(RecordError, match=r"header\.json is damaged"):
        records.read_header(path)


def test_a_workload_that_is_no_text_is_passed_over(tmp_path):
    (tmp_path / records.WORKLOADS).write_bytes(b"\xff\xfe\n")
    database = Database(tmp_path)
    assert database.workload(["a", "b"]) == database.workload(["a", "b"]) == 1


@pytest.mark.parametrize("target", ["../pwned", "/tmp/pwned", "", "a\0b", "a\nb", "\ud800", 3])
def test_a_log_writes_to_no_other_folder(copy, tmp_path, target):
    (path,) = records.databases(copy)
    header = records.read_header(path)
    with pytest.raises(RecordError, match="is no name for a folder"):
        database_for(tmp_path / "into" / "log", {**header, "target": target})
    (path / records.HEADER).write_text(json.dumps({**header, "target": target}))
    with pytest.raises(RecordError, match=r"is no name for a folder|is damaged"):
        keeping.merge([copy], tmp_path / "into" / "log")
    assert not (tmp_path / "into").exists()


# What is kept.


def test_metaschedule_reads_its_tables(log):
    (path,) = records.databases(log)
    table = ms.database.JSONDatabase(
        str(path / records.WORKLOADS), str(path / records.TRIALS), allow_missing=False
    )
    assert len(table) == 8
    search = Search(SPEC, ROW, M, 0, 4)
    token = table.commit_workload(search.module)
    assert len(lines(log, records.WORKLOADS)) == 2  # it was there
    best, *_ = table.get_top_k(token, 1)
    again = best.as_measure_candidate()
    trials = [trial for trial in Database(path).trials() if trial.workload == 0]
    fastest = min(trials, key=lambda trial: np.mean(trial.seconds))
    found = Choice.of(of_trace(again.sch.trace))
    assert found == fastest.choice


def test_compile_uses_the_record(log):
    kernel = qmm.compile(SPEC, num_threads=1, log=log)
    (database,) = records.databases(log)
    name = f"{database}:1"
    used = {row["m"]: row["record"] for row in kernel.report((1, M, 40, 500))}
    assert used[M] == used[40] == name
    assert used[500] is None
    rng = np.random.default_rng(0)
    w = problems.weight(rng, SPEC)
    for m in (1, 2, M - 1, M, M + 1, 39, 40, 41, 100):
        x = problems.activation(rng, SPEC, m)
        np.testing.assert_array_equal(
            kernel(x, w, x_scale=0.5), qmm.reference(SPEC, x, w, x_scale=0.5)
        )
    fixed = qmm.compile(dataclasses.replace(SPEC, m=M), num_threads=1, log=log)
    assert fixed.report()[0]["record"] == name
    assert qmm.compile(SPEC, num_threads=1, log=False).report((M,))[0]["record"] is None


def test_the_default_stays_where_it_is_faster(tmp_path):
    tuning = tune(tmp_path, "FastDefault", trials=3)
    assert tuning.record is None
    assert tuning.outcomes[0].choice is None
    assert json.loads(lines(tmp_path, records.KERNELS)[0])["tuned"] == []
    assert qmm.compile(SPEC, num_threads=1, log=tmp_path).report((M,))[0]["record"] is None


def test_one_record_speaks_for_all_m(copy):
    tune(copy, "SlowDefault", m=[20], trials=3)
    assert [each["m"] for each in json.loads(lines(copy, records.KERNELS)[-1])["measured"]] == [
        M,
        20,
        40,
    ]
    kernel = qmm.compile(SPEC, num_threads=1, log=copy)
    assert None not in {row["record"] for row in kernel.report((M, 20, 40))}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("schedule", "0"),
        ("tvm", "0.26.0"),
        ("tvm_compiler", 1),
        ("cpu", "Z80"),
        ("threads", 2),
        ("target", "z80"),
        ("format", 99),
    ],
)
def test_a_record_of_something_else_is_not_used(copy, name, value):
    (database,) = records.databases(copy)
    path = database / records.HEADER
    header = json.loads(path.read_text())
    path.write_text(json.dumps({**header, name: value}))
    assert records.find(SPEC, ROW, 1, copy) is None
    allowed = records.find(SPEC, ROW, 1, copy, any_record=True)
    assert (allowed is None) == (name in ("target", "format"))
    other = records.why_not({**header, name: value}, records.header(ROW, 1))
    assert f"{name} is {value!r}, here {header[name]!r}" in other


def test_other_specs_rows_and_threads_have_no_record(log):
    assert records.find(dataclasses.replace(SPEC, bias=True), ROW, 1, log) is None
    assert records.find(SPEC, targets.emulated(ROW), 1, log) is None
    assert records.find(SPEC, dataclasses.replace(ROW, cache_bytes=1), 1, log) is None
    assert records.find(SPEC, ROW, 2, log) is None
    assert records.find(SPEC, ROW, 2, log, any_record=True) is not None


def test_fields_that_are_added_to_a_row_change_no_digest():
    wider = dataclasses.make_dataclass(
        "Wider", [("more", int, dataclasses.field(default=0))], bases=(targets.Target,), frozen=True
    )
    fields = {each.name: getattr(ROW, each.name) for each in dataclasses.fields(ROW)}
    assert records.digest_of(wider(**fields)) == records.digest_of(ROW)
    assert records.digest_of(wider(**fields, more=1)) != records.digest_of(ROW)
    assert records.digest_of(dataclasses.replace(ROW, description="")) == records.digest_of(ROW)


def test_a_record_depends_on_the_instructions_that_its_code_has(log):
    used = instructions_of(plan_for(SPEC, ROW))
    x_dtype = {"int8": "uint8", "uint8": "int8"}[used[0].x_dtype]
    other = dataclasses.replace(used[0], name="another", x_dtype=x_dtype, weight_bits=(4,))
    beside = dataclasses.replace(ROW, instructions=(*ROW.instructions, other))
    assert records.find(SPEC, beside, 1, log) is not None
    slower = [dataclasses.replace(each, slots=each.slots * 2) for each in ROW.instructions]
    changed = dataclasses.replace(ROW, instructions=tuple(slower))
    with pytest.warns(RuntimeWarning, match=f"it is for other instructions of {ROW.name}"):
        assert records.find(SPEC, changed, 1, log) is None


def test_a_log_that_is_not_there(tmp_path):
    with pytest.raises(RecordError, match=r"no log at .*nowhere; expected a folder that tuning"):
        qmm.compile(SPEC, log=tmp_path / "nowhere")


def with_record(copy, change):
    (database,) = records.databases(copy)
    path = database / records.KERNELS
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields) + "\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.update(k_block=48), r"k_block=48; expected one of \[64"),
        (lambda f: f["tuned"][0].update(strategy="gemx"), "m=6: strategy='gemx'; expected one of"),
        (lambda f: f["tuned"][0].update(ratio=2.0), "ratio=2.0; expected one between 0 and 1"),
        (lambda f: f["tuned"][0].update(first_m=7), "m=6 of 7 to"),
        (lambda f: f["tuned"][0]["parameters"].update(rows=40), "a tile of 40 x"),
        (lambda f: f["tuned"][0]["parameters"].update(rows=0), "rows=0; expected a whole number"),
        (
            lambda f: f["tuned"][0]["parameters"].update(unroll=5),
            "unroll=5 does not divide the steps",
        ),
        (lambda f: f["tuned"][0]["parameters"].update(rows="2"), "rows='2'; expected a whole"),
        (lambda f: f["tuned"][0].pop("parameters"), "it is damaged"),
        (
            lambda f: f["tuned"][0]["parameters"].update(panels=1 << 31),
            "panels=2147483648; expected at most 1048576",
        ),
        (lambda f: f.pop("tuned"), "it is damaged"),
    ],
)
def test_a_record_that_does_not_fit_is_named_and_not_used(copy, change, message):
    with_record(copy, change)
    with pytest.warns(RuntimeWarning, match=f"tuned record not used: .*{message}"):
        assert records.find(SPEC, ROW, 1, copy) is None
    (found,) = keeping.check(copy)
    assert re.search(message, found)


def test_a_damaged_header(copy):
    (database,) = records.databases(copy)
    (database / records.HEADER).write_text("{")
    with pytest.warns(RuntimeWarning, match=r"header\.json is damaged; expected a JSON object"):
        assert records.find(SPEC, ROW, 1, copy) is None


def test_records_are_part_of_the_cache_key(log):
    record = records.find(SPEC, ROW, 1, log)
    keys = {cache.key(SPEC, ROW), cache.key(SPEC, ROW, record)}
    keys.add(cache.key(SPEC, ROW, dataclasses.replace(record, k_block=32)))
    assert len(keys) == 3


def test_looking_for_a_record_imports_no_compiler(log):
    code = (
        "import sys, quantmm as qmm; from quantmm.schedules import records; "
        f"spec = qmm.MatmulSpec.from_json({SPEC.to_json()!r}); "
        f"print(records.find(spec, qmm.targets.host(), 1, {str(log)!r}) is not None, "
        "'tvm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_the_bench_imports_no_compiler():
    code = "import sys, quantmm.tuning.measure, quantmm.tuning.worker; print('tvm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_function_is_used_where_it_may_be():
    default = Function("d", "gemm", 8, "dot", 10.0, 99, 1)
    tuned = Function("t", "gemm", 16, "dot", 15.0, 99, 1, first_m=10, last_m=64, record="r")
    kernel = qmm.compile(dataclasses.replace(SPEC, n=20))
    kernel.info = dataclasses.replace(kernel.info, functions=(default, tuned))
    names = {m: kernel.plan(m).name for m in (9, 10, 16, 17, 24, 25, 64, 65)}
    # 24 rows are three tiles of 8 and two of 16, which take as long: the default stays.
    assert names == {9: "d", 10: "t", 16: "t", 17: "d", 24: "d", 25: "t", 64: "t", 65: "d"}


# What is tried.


def test_there_is_a_default_for_every_benchmark_shape(row):
    layers = {(each.n, each.k) for layers in MODELS.values() for each in layers}
    specs = {
        qmm.MatmulSpec(n=n, k=k, **fields)
        for (n, k), fields in itertools.product([*layers, (7, 3)], FORMATS.values())
    }
    shapes = {*itertools.product(specs, (1, 2, 7, 16, 512, 2048))}
    shapes |= {(job.spec, job.m) for section in check.SECTIONS for job in section.jobs(1)}
    for spec, m in shapes:
        default = default_choice(plan_for(spec, row), m)
        assert candidate.why_not(plan_for(spec, row), default) is None
        assert default.k_block == plan_for(spec, row).layout.k_block


def test_every_space_has_the_default(row):
    for fields, m in itertools.product(FORMATS.values(), (1, 4, 16, 512)):
        spec = qmm.MatmulSpec(n=768, k=768, **fields)
        search = Search(spec, row, m, 0, 4)
        default = default_choice(plan_for(spec, row), m)
        assert of_trace(search.trace(default)) == default.decisions()


def test_the_search_learns():
    def seconds(each):
        p = each.parameters
        return 1 + abs(p.rows - 6) + abs(p.blocks - 3) + (p.unroll != 2) + (each.k_block != 32)

    spec = qmm.MatmulSpec(n=4096, k=4096)
    found = []
    for _ in range(2):
        search = Search(spec, targets.find("x86-avx512vnni"), 512, 3, 8)
        batches = []
        for _ in range(6):
            batches.append([each for each, _ in search.propose()])
            for each in batches[-1]:
                assert candidate.why_not(search.plan, each) is None
                search.tell(each, [seconds(each)])
        found.append(batches)
    assert found[0] == found[1]
    tried = [each for batch in found[0] for each in batch]
    assert len(set(tried)) == len(tried)
    first, last = (np.mean([seconds(each) for each in batch]) for batch in found[0][::5])
    assert last < first
    assert min(map(seconds, tried)) <= 2


def test_the_model_predicts_what_it_has_seen():
    rng = np.random.default_rng(0)
    points = rng.uniform(-2, 2, (60, 4))
    logs = points[:, 0] + np.sin(points[:, 1])
    model = Model()
    model.fit(points, logs)
    mean, deviation = model.predict(points)
    assert np.abs(mean - logs).max() < 0.4
    assert np.corrcoef(mean, logs)[0, 1] > 0.98
    far, unsure = model.predict(points[:1] + np.array([0, 50, 0, 0]))
    assert unsure[0] > 2 * deviation.mean()
    assert np.isfinite(far).all()


# Measured honestly.


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
            patch.setattr(measure, "copies_for", lambda size: 3)
            assert bench.load("x", content) is None
        calls = [next(bench._calls["x"]) for _ in range(6)]
        places[m] = len({each.whole.func._arrays["w"].ctypes.data for each in calls})
    assert places == {16: 3, 17: 1}


# On other machines; tests/test_rpc.py has the way there.


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


# Shown.


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
    with pytest.raises(ToolError, match=r"needs matplotlib; install it with .*quantmm\[tune\]"):
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


# The command line.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --n and --k, or --model"),
        (["--n", "8"], "give --n and --k, or --model"),
        (["--model", "llama-7b", "--n", "8"], "give --model, or --n and --k"),
        (["--model", "llama-1t"], "'llama-1t' is not one of 'bert-base'"),
        (["--n", "8", "--k", "8", "--trials", "0"], "Invalid value for '--trials'"),
        (["--n", "8", "--k", "8", "--time-limit", "0"], "--time-limit is 0.0; expected more than"),
        (["--n", "8", "--k", "8", "--log", __file__], "cannot write the log"),
        (["--n", "8", "--k", "8", "--plot", "/nowhere/p.png"], "cannot write /nowhere/p.png"),
        (["--n", "8", "--k", "8", "--plot", "p.xyz"], "cannot write p.xyz: expected a suffix of"),
        (["--n", "8", "--k", "8", "--seed", "-1"], "Invalid value for '--seed'"),
        (["--n", "8", "--k", "8", "--target", "arm-i8mm"], "arm-i8mm cannot run here: needs aarch"),
    ],
)
def test_tune_errors(quantmm, words, message):
    status, out, err = quantmm("tune", *words)
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_logs_are_listed_checked_and_exported(quantmm, copy, tmp_path):
    status, out, _ = quantmm("logs", "list", copy)
    assert status == 0
    assert "64 x 64" in out
    assert "yes" in out
    (listed,) = json.loads(quantmm("logs", "list", copy, "--json")[1])
    assert [each["m"] for each in listed["measured"]] == [M, 40]
    assert quantmm("logs", "check", copy)[:2] == (0, f"{copy}: everything is whole\n")
    new = tmp_path / "new"
    assert quantmm("logs", "export", copy, new)[:2] == (0, f"{new}: 1 records\n")
    assert len(lines(new)) == 4  # of each problem the default and the best
    assert len(lines(copy)) == 8
    status, _, err = quantmm("logs", "export", copy, new)
    assert status == 2
    assert "is not empty; expected a new folder, or use merge" in err
    assert quantmm("logs", "merge", copy, new)[:2] == (0, f"{new}: 4 new lines\n")
    assert quantmm("logs", "merge", copy, new)[:2] == (0, f"{new}: 0 new lines\n")
    assert sorted(lines(new)) == sorted(lines(copy))
    assert quantmm("logs", "check", new)[0] == 0
    assert quantmm("logs", "prune", new)[:2] == (0, f"{new}: 4 lines less\n")
    record = records.find(SPEC, ROW, 1, new)
    assert record.tuned == records.find(SPEC, ROW, 1, copy).tuned


def test_logs_with_damaged_headers_are_listed(quantmm, copy):
    (path,) = records.databases(copy)
    header = records.read_header(path)
    del header["threads"]
    (path / records.HEADER).write_text(json.dumps(header))
    (line,) = lines(copy, records.KERNELS)
    fields = json.loads(line)
    damaged = {**fields, "measured": [3, {"m": 1}], "tuned": None}
    (path / records.KERNELS).write_text(json.dumps(damaged))
    (kernel,) = keeping.kernels(copy)
    assert kernel.why_not_here() == "its header has no threads"
    assert kernel.measured == []
    assert quantmm("logs", "list", copy)[0] == 0
    (path / records.HEADER).write_text("{}")
    status, _, err = quantmm("logs", "list", copy)
    assert status == 2
    assert "header.json is damaged; expected a JSON object that names a target" in err


def test_a_log_is_not_exported_to_a_file(quantmm, copy, tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    status, _, err = quantmm("logs", "export", copy, path)
    assert status == 2
    assert f"{path} is a file; expected a new folder" in err


@pytest.mark.parametrize(("default", "used"), [(1, "yes"), (2, "yes, with threads=1")])
def test_a_record_for_other_threads_says_so(copy, monkeypatch, default, used):
    monkeypatch.setattr(keeping, "default_threads", lambda: default)
    (kernel,) = keeping.kernels(copy)
    assert cli_logs.used_text(kernel) == used
    unused = dataclasses.replace(kernel, fields={**kernel.fields, "tuned": []})
    assert cli_logs.used_text(unused) == f"{used}: the defaults"


def test_a_database_is_no_log_to_write_to(copy):
    (path,) = records.databases(copy)
    before = sorted(path.iterdir())
    message = f"{path} is a database of the log {copy}; expected the log"
    with pytest.raises(RecordError, match=re.escape(message)):
        database_for(path, {**records.read_header(path), "cpu": "another"})
    with pytest.raises(RecordError, match=re.escape(message)):
        keeping.merge([copy], path)
    assert sorted(path.iterdir()) == before


def test_logs_of_other_machines_are_kept_apart(copy, tmp_path):
    (database,) = records.databases(copy)
    header = json.loads((database / records.HEADER).read_text())
    other = tmp_path / "other"
    theirs = database_for(other, {**header, "cpu": "another"})
    theirs.add(records.KERNELS, lines(copy, records.KERNELS))
    keeping.merge([other, copy], tmp_path / "both")
    assert len(records.databases(tmp_path / "both")) == 2
    reasons = [each.why_not_here() for each in keeping.kernels(tmp_path / "both")]
    assert None in reasons
    assert any(reason and "cpu is 'another'" in reason for reason in reasons)


def test_trials_stay_with_their_problem_where_another_is_damaged(copy, tmp_path):
    (database,) = records.databases(copy)
    path = database / records.WORKLOADS
    _, second = path.read_text().splitlines()
    path.write_text(f"damaged\n{second}\n")
    before = [line for line in map(json.loads, lines(copy)) if line[0] == 1]
    assert before
    keeping.merge([copy], tmp_path / "new")
    (merged,) = records.databases(tmp_path / "new")
    assert (merged / records.WORKLOADS).read_text().splitlines() == [second]
    after = list(map(json.loads, lines(tmp_path / "new")))
    assert after == [[0, record] for _, record in before]
    found = [line for line in keeping.check(copy) if records.TRIALS in line]
    assert len(found) == len(lines(copy)) - len(before)
    assert "is for workload 0, which is not there" in found[0]


def test_merging_keeps_the_newer_record(copy, tmp_path):
    (line,) = lines(copy, records.KERNELS)
    header = records.read_header(records.databases(copy)[0])
    older = database_for(tmp_path / "older", header)
    older.add(records.KERNELS, [{**json.loads(line), "date": "2020-01-01"}])
    keeping.merge([copy, tmp_path / "older"], tmp_path / "both")
    assert lines(tmp_path / "both", records.KERNELS) == [line]
    keeping.merge([copy], tmp_path / "older")
    assert lines(tmp_path / "older", records.KERNELS)[-1] == line


def without(fields, m):
    """A record of a run that knew nothing of this M."""
    parts = {name: [e for e in fields[name] if e["m"] != m] for name in ("tuned", "measured")}
    return {**fields, **parts}


def rows_of(fields):
    return [[each["m"] for each in fields[name]] for name in ("tuned", "measured")]


@pytest.fixture
def halves(copy, tmp_path):
    """The log's record, and two logs of it that have one M each."""
    fields = json.loads(lines(copy, records.KERNELS)[-1])
    header = records.read_header(records.databases(copy)[0])
    found = []
    for m in (M, 40):
        found.append(tmp_path / f"without {m}")
        database_for(found[-1], header).add(records.KERNELS, [without(fields, m)])
    return fields, found


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("date", ["2020-01-01", "2999-01-01"])
def test_merging_joins_the_m_of_both_records(halves, tmp_path, order, date):
    fields, (first, second) = halves
    (path,) = records.databases(first)
    (line,) = lines(first, records.KERNELS)
    (path / records.KERNELS).write_text(json.dumps({**json.loads(line), "date": date}) + "\n")
    into = tmp_path / "both"
    keeping.merge([first, second][::order], into)
    last = json.loads(lines(into, records.KERNELS)[-1])
    assert rows_of(last) == rows_of(fields) == [[M, 40]] * 2
    assert keeping.check(into) == []
    assert keeping.merge([first, second], into) == 0


def test_a_run_keeps_what_another_one_found_meanwhile(halves):
    fields, (first, _) = halves
    (path,) = records.databases(first)
    problem = Problem(
        SPEC, ROW, M, 0, 1, Database(path), 1.0, default_choice(plan_for(SPEC, ROW), M)
    )
    name = verdict.write(problem, without(fields, 40))
    assert name == f"{path}:2"
    assert rows_of(json.loads(lines(first, records.KERNELS)[-1])) == rows_of(fields)
    assert {each.m for each in records.find(SPEC, ROW, 1, first).tuned} == {M, 40}
    # What the run itself decided is not undone.
    stays = {**without(fields, 40), "tuned": []}
    verdict.write(problem, stays)
    last = json.loads(lines(first, records.KERNELS)[-1])
    assert rows_of(last) == [[40], [M, 40]]
    assert last["tuned"][0]["first_m"] > M


def test_records_in_different_layouts_share_no_functions(halves):
    fields, _ = halves
    other = {**without(fields, M), "k_block": 2 * fields["k_block"]}
    last = joining.joined(without(fields, 40), other, ROW)
    assert rows_of(last) == [[M], [M, 40]]
    assert last["measured"][1]["tuned"] == last["measured"][1]["default"]


@pytest.mark.parametrize("damage", [{"tuned": 3}, {"tuned": [{"m": 40}]}, {"measured": 3}])
def test_a_damaged_record_adds_nothing(halves, damage):
    fields, _ = halves
    mine = without(fields, 40)
    assert joining.joined(mine, {**without(fields, M), **damage}, ROW) == mine


def test_records_for_gpus_are_joined(tmp_path):
    logs_of = []
    for m in (1, 64):
        logs_of.append(tmp_path / str(m))
        header = cuda_records.header("cuda-sm80", {}, "A100")
        line = cuda_records.as_line(SPEC, [cuda_records.Measured(m, "f", 2.0, 1.0)])
        database_for(logs_of[-1], header).add(records.KERNELS, [line])
    assert keeping.merge(logs_of, tmp_path / "both") == 2
    assert keeping.merge(logs_of, tmp_path / "both") == 0
    (database,) = records.databases(tmp_path / "both")
    assert [each.m for each in cuda_records.latest(database, SPEC)] == [1, 64]


def test_a_write_that_is_cut_short_goes_on(tmp_path, monkeypatch):
    database = Database(tmp_path)
    whole = io.FileIO.write

    class Slow(io.FileIO):
        def write(self, content):
            return whole(self, content[:3])

    monkeypatch.setattr(logs, "open", lambda path, *_, **__: Slow(path, "a+"), raising=False)
    assert database.add(records.KERNELS, [{"a": 1}, {"b": 2}]) == 2
    assert (tmp_path / records.KERNELS).read_text() == '{"a": 1}\n{"b": 2}\n'


def test_the_users_folder_hides_no_modules(tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)  # an empty entry is the current folder too
    worker = Worker("quantmm.tuning.measure:Bench")
    try:
        worker.call("prepare", SPEC, 1, 0, 1, seconds=20)
    finally:
        worker.close()


def test_check_says_what_is_damaged(quantmm, copy):
    (database,) = records.databases(copy)
    with open(database / records.WORKLOADS, "a") as file:
        file.write("nonsense\n")
    status, out, err = quantmm("logs", "check", copy)
    assert status == 2
    assert "database_workload.json, line 3: is damaged" in out
    assert "1 records cannot be used" in err
    status, _, err = quantmm("logs", "check", copy / "nothing")
    assert status == 2
    assert "no log at" in err


def test_texts_of_before_keep_their_meaning(tmp_path):
    # When X had one scale in all by default, specs did not say so.
    tensor, row = (qmm.MatmulSpec(n=64, k=96, activation_scale=each) for each in ("tensor", "row"))
    before = '{"n": 64, "k": 96}'
    assert search.text_of(tensor) == before
    assert search.text_of(row) == row.to_json()
    (tmp_path / "header.json").write_text('{"target": "generic"}')
    texts = [
        before,
        tensor.to_json(),
        row.to_json(),
        '{"n": 64, "k": 960}',
        '{"n": 64, "k": 96, 0}',
    ]
    content = "".join(json.dumps({"spec": text, "tuned": []}) + "\n" for text in texts)
    (tmp_path / records.KERNELS).write_text(content)
    assert [number for number, _ in records.kernel_lines(tmp_path, tensor)] == [1, 2]
    assert [number for number, _ in records.kernel_lines(tmp_path, row)] == [3]
    assert [kernel.number for kernel in keeping.kernels(tmp_path)] == [2, 3, 4]
    keeping.prune(tmp_path)
    written = [json.loads(line)["spec"] for line in lines(tmp_path, records.KERNELS)]
    assert written[:2] == texts[1:3]


def test_the_logs_that_come_with_quantmm_are_whole_and_apply():
    assert records.databases(records.SHIPPED)
    assert keeping.check(records.SHIPPED) == []


@pytest.mark.parametrize("name", ["schedule", "target_digest", "format"])
def test_checking_a_log_says_that_none_of_it_applies(copy, name):
    (database,) = records.databases(copy)
    path = database / records.HEADER
    path.write_text(json.dumps({**json.loads(path.read_text()), name: "0"}))
    (found,) = keeping.check(copy)
    assert f"none of its records applies: {name} is '0', here" in found
