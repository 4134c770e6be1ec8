"""Damaged logs."""

from __future__ import annotations

import json

import pytest
from quantmm.errors import RecordError
from quantmm.schedules import records
from quantmm.tuning import keeping, run
from quantmm.tuning.log import Database, database_for
from tuning_runs import ROW, SPEC, M, choice, lines, tune


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
