"""The file of records: what is read, replaced and kept."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import quantmm as qmm
from quantmm.errors import RecordError
from quantmm.targets import verified
from quantmm.targets.verified import Record

ONE = Record("generic", "native", "Chip 1", 5, "2026-11-24", {"schedule": "3", "tvm": "0"})


def test_the_packaged_records_are_of_targets():
    names = {row.name for row in (*qmm.targets.TARGETS, *qmm.targets.CUDA_TARGETS)}
    for record in verified.read():
        assert record.target in names
        assert record.rank < len(verified.WAYS)
        assert record.problems > 0
        assert set(record.versions) == {"schedule", "tvm"}


def test_records_are_added_and_replaced(tmp_path):
    path = tmp_path / "verified.json"
    assert verified.read(path) == []
    others = [
        dataclasses.replace(ONE, cpu="Chip 2"),
        dataclasses.replace(ONE, how="emulated semantics"),
        dataclasses.replace(ONE, target="x86-avx2"),
    ]
    for record in (ONE, *others):
        verified.write(record, path)
    assert verified.read(path) == [ONE, *others]
    newer = dataclasses.replace(ONE, problems=7, date="2026-12-24")
    verified.write(newer, path)
    assert verified.read(path) == [newer, *others]
    # A line each, for reading and comparing.
    assert len(path.read_text().splitlines()) == len(json.loads(path.read_text())) == 4


def test_writers_wait_for_each_other(tmp_path):
    path = tmp_path / "verified.json"
    records = [dataclasses.replace(ONE, cpu=f"Chip {i}") for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda record: verified.write(record, path), records))
    assert sorted(r.cpu for r in verified.read(path)) == sorted(r.cpu for r in records)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", ["", "{}", "[1]", '[{"target": "generic"}]', "[", "\udcff"])
def test_a_file_of_something_else(tmp_path, content):
    path = tmp_path / "verified.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(RecordError, match="holds no records of quantmm verify"):
        verified.read(path)
    before = path.read_bytes()
    with pytest.raises(RecordError, match="holds no records"):
        verified.write(ONE, path)
    assert path.read_bytes() == before


def test_what_cannot_be_read_or_written(tmp_path):
    with pytest.raises(RecordError, match=r"cannot read .*directory"):
        verified.read(tmp_path)
    for path in (tmp_path, tmp_path / "no" / "file.json"):
        with pytest.raises(RecordError, match="cannot write"):
            verified.write(ONE, path)
