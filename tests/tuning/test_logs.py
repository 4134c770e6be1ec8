"""Logs and their commands."""

from __future__ import annotations

import dataclasses
import io
import json
import re

import pytest
import quantmm as qmm
from quantmm import targets
from quantmm.cli import logs as cli_logs
from quantmm.errors import RecordError
from quantmm.processes import Worker
from quantmm.schedules import cuda_records, records
from quantmm.schedules.cpu.plan import plan_for
from quantmm.schedules.cuda import plan as cuda_plan
from quantmm.schedules.cuda.program import CudaTile
from quantmm.tuning import joining, keeping, search, verdict
from quantmm.tuning import log as logs
from quantmm.tuning.log import Database, database_for
from quantmm.tuning.on_cpu import default_choice
from quantmm.tuning.state import Problem
from tuning_runs import ROW, SPEC, M, lines


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --n and --k, or --model"),
        (["--n", "8"], "give --n and --k, or --model"),
        (["--model", "llama-7b", "--n", "8"], "give --model, or --n and --k"),
        (
            ["--model", "llama-1t"],
            "no model 'llama-1t'; expected a file, a folder or one of bert-base",
        ),
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
    logs_of, row = [], targets.find("cuda-sm80")
    plan = cuda_plan.plan_for(SPEC, row)
    for m in (1, 64):
        logs_of.append(tmp_path / str(m))
        header = cuda_records.header(row, "A100")
        tuned = records.Tuned(m, "gemv", CudaTile(1, 1, (1, 1, 4)), 0.5, 1, 64)
        measured = [{"m": m, "default": 2.0, "tuned": 1.0}]
        record = records.Record("", None, (tuned,))
        line = cuda_records.as_line(plan, record, measured=measured, date=f"2026-{m}")
        database_for(logs_of[-1], header).add(records.KERNELS, [line])
    assert keeping.merge(logs_of, tmp_path / "both") == 2
    assert keeping.merge(logs_of, tmp_path / "both") == 0
    found = cuda_records.find(SPEC, row, tmp_path / "both")
    ranges = [(each.m, each.first_m, each.last_m) for each in found.tuned]
    assert ranges == [(1, 1, 63), (64, 2, 64)]


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
