"""What is kept of a run, and when it is used."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import problems
import pytest
import quantmm as qmm
from quantmm import targets
from quantmm.compiler import cache
from quantmm.errors import RecordError
from quantmm.runtime.info import Function
from quantmm.schedules import records
from quantmm.schedules.cpu.plan import instructions_of, plan_for
from quantmm.schedules.cpu.space import of_trace
from quantmm.schedules.cpu.strategies import GEMM, PAIRED, instruction_for
from quantmm.schedules.cpu.validation import refusal
from quantmm.schedules.cpu.variants import variant
from quantmm.tuning import keeping
from quantmm.tuning.choice import Choice
from quantmm.tuning.log import Database
from quantmm.tuning.search import Search
from tuning_runs import ROW, SPEC, M, lines, tune
from tvm.s_tir import meta_schedule as ms


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
    other = records.mismatch({**header, name: value}, records.header(ROW, 1))
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


def test_a_record_depends_on_the_code_of_its_smooth_function(monkeypatch):
    plans = [plan_for(dataclasses.replace(SPEC, activation_fn=f), ROW) for f in ("relu", "silu")]
    before = [records.instructions_digest(plan) for plan in plans]
    monkeypatch.setattr(records, "SMOOTH_VERSION", 0)
    relu, silu = (records.instructions_digest(plan) for plan in plans)
    assert relu == before[0]
    assert silu != before[1]


def test_a_record_depends_on_the_instructions_that_its_code_has(log):
    used = instructions_of(plan_for(SPEC, ROW))
    x_dtype = {"int8": "uint8", "uint8": "int8"}[used[0].x_dtype]
    other = dataclasses.replace(used[0], name="another", x_dtype=x_dtype, weights=(0, 15))
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


def test_a_block_that_is_shorter_than_the_instruction_is_one_step():
    plan = plan_for(SPEC, qmm.targets.find("x86-amx"), k_block=32)
    default = variant(plan, GEMM, plan.instruction, 32).parameters
    assert refusal(plan, GEMM.name, default) is None
    unrolled = dataclasses.replace(default, unroll=2)
    assert "unroll=2 does not divide the steps" in refusal(plan, GEMM.name, unrolled)


def test_a_strategy_under_the_name_that_it_had_before():
    spec, row = qmm.MatmulSpec(n=64, k=64), targets.find("x86-avx2")
    plan = plan_for(spec, row)
    parameters = variant(plan, PAIRED, instruction_for(plan, PAIRED, 4), 4).parameters
    tuned = records.Tuned(512, "winograd", parameters, 0.5, 100, 1000)
    line = records.as_line(plan, records.Record("log:1", plan.layout.k_block, (tuned,)))
    (found,) = records.parsed("log:1", line, spec, row).tuned
    assert found == dataclasses.replace(tuned, strategy="paired")
    choice = Choice("paired", plan.layout.k_block, parameters)
    assert Choice.of({**choice.decisions(), "strategy": "winograd"}) == choice


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
        f"print(records.find(spec, qmm.targets.find({ROW.name!r}), 1, {str(log)!r}) is not None, "
        "'tvm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_the_bench_imports_no_compiler():
    code = "import sys, quantmm.tuning.measure, quantmm.processes; print('tvm' in sys.modules)"
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
