"""`quantmm bench`: the comparison, its failures and its reports. No test asserts a time."""

from __future__ import annotations

import csv
import json
import os
from html.parser import HTMLParser
from pathlib import Path

import pytest
import quantmm as qmm
from quantmm import processes
from quantmm.bench import check, columns, compare, contenders, export, machine, process, report, row
from quantmm.bench.contenders import Contender, Job
from quantmm.bench.models import MODELS
from quantmm.bench.timing import Time, median_range
from quantmm.errors import BenchError

FAKES = ("right", "wrong", "dies", "dies_later", "lingers", "hangs")


@pytest.fixture
def fakes(monkeypatch):
    """Only made-up contenders, which child processes can import too."""
    table = [Contender(name, f"fake_contenders:{name}", ("fakes",)) for name in FAKES]
    table.append(Contender("absent", "fake_contenders:right", ("gone",), needs=("no_such_module",)))
    table.append(Contender("old", "fake_contenders:right", ("past",), baseline=True))
    monkeypatch.setattr(contenders, "CONTENDERS", tuple(table))
    monkeypatch.setattr(contenders, "GROUPS", ("fakes", "gone", "past"))
    monkeypatch.setattr(process, "READY_SECONDS", 15.0)
    monkeypatch.setattr(processes, "EXIT_SECONDS", 1.0)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent), prepend=os.pathsep)


def job(m=3, **fields):
    return Job(qmm.MatmulSpec(n=32, k=64, **fields), m, 1, False, "host")


@pytest.fixture(scope="module")
def rows():
    """Rows as they come from measurements, with times that were made up."""
    made = []
    for m, ours, theirs in ((1, 2.0, 1.0), (64, 1.0, 3.0)):
        times = {"quantmm": ours, "right": theirs, "numpy": 9.0}
        made.append(
            row.Row(
                job=job(m),
                target="generic",
                limits=compare.Limits(1, 100.0, 10.0, 12.0),
                times={n: Time((t * 1e-6, t * 1.1e-6, t * 1.2e-6)) for n, t in times.items()},
                baselines=("numpy",),
                absent={"wrong": "computes <something> else"},
                about={"right": "made up"},
                busy_cores=0.5,
                stolen_cores=0.0,
            )
        )
    return made


def test_who_fails_costs_only_itself(fakes):
    result = compare.compare(job(), ["fakes", "gone", "past"], rounds=2)
    assert set(result.times) == {"quantmm", "right", "old"}
    assert result.peers == ["right"]
    assert result.about["right"] == "made up"
    assert result.absent["absent"] == "not installed (no module 'no_such_module')"
    assert result.absent["dies"] == "exit code 9: no more memory"
    assert result.absent["dies_later"].startswith("exit code 7")
    assert result.absent["lingers"] == "closed its side and did not end in 1 s: cleaning up"
    assert result.absent["hangs"] == "not done after 15 s"
    assert "wrong" in result.absent
    assert row.Row.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_words_and_targets(fakes):
    with pytest.raises(
        BenchError, match="no contender 'cublas'; expected some of fakes, gone, past"
    ):
        compare.compare(job(), ["cublas"])
    other = Job(qmm.MatmulSpec(n=32, k=64), 3, 1, False, "arm-i8mm")
    with pytest.raises(qmm.QuantmmError, match="arm-i8mm cannot run here"):
        compare.compare(other, [])


def test_ratios_say_how_sure_they_are(rows):
    slow, fast = (each.ratio("right") for each in rows)
    assert (slow.value, fast.value) == (pytest.approx(0.5), pytest.approx(3.0))
    assert slow.slower
    assert slow.certain
    assert not fast.slower
    assert row.geometric_mean([slow, fast, None]) == pytest.approx(1.5**0.5)
    assert median_range([5.0, 1.0, 2.0, 4.0, 3.0, 6.0, 7.0, 8.0, 9.0]) == (2.0, 8.0)
    assert median_range([2.0, 1.0]) == (1.0, 2.0)


class Parts(HTMLParser):
    """What a report is made of."""

    def __init__(self):
        super().__init__()
        self.tags, self.addresses, self.slower, self.text = [], [], 0, ""

    def handle_starttag(self, tag, attrs):
        fields = dict(attrs)
        self.tags.append(tag)
        self.addresses += [fields[name] for name in ("src", "href") if name in fields]
        self.slower += tag == "tr" and "slower" in (fields.get("class") or "")

    def handle_data(self, data):
        self.text += data


def test_the_report_is_one_file_and_marks_what_is_slower(rows):
    parts = Parts()
    parts.feed(report.to_html(rows, {"date": "today", "cpu": "a CPU", "versions": {"torch": "2"}}))
    assert not [each for each in parts.addresses if not each.startswith(("data:", "#"))]
    assert {"svg", "table"} <= set(parts.tags) or {"img", "table"} <= set(parts.tags)
    assert parts.slower == 1
    assert "slower than right" in parts.text
    assert "computes <something> else" in parts.text
    assert "other programs used more than 10%" in " ".join(parts.text.split())


def test_json_and_csv_hold_every_figure(rows):
    environment = {"date": "today", "cpu": "a CPU", "versions": {}}
    content = json.loads(export.to_json(rows, environment))
    assert [each["share"] for each in content["rows"]] == [each.share for each in rows]
    text = export.to_csv(rows, environment).splitlines()
    lines = list(csv.DictReader(line for line in text if line[0] != "#"))
    assert len(lines) == 4 * len(rows)  # a line for who is absent too
    for line in lines:
        if line["kind"] == "absent":
            assert line["share"] == ""
        else:
            assert float(line["share"]) == float(line["floor"]) / float(line["median"])


def test_the_page_is_checked_with_what_it_quotes():
    page = (Path(__file__).parent.parent.parent / "docs" / "performance.md").read_text()
    able, absent = check.sections(machine.Machine().why_not)
    assert len(able) + len(absent) == len(check.SECTIONS)
    for section in check.SECTIONS:
        for shape in section.shapes:
            assert f"{shape.m} x {shape.n} x {shape.k}" in page, (section.title, shape)


def test_models_have_layers():
    assert {"bert-base", "llama-7b", "llama-8b", "llama-70b", "mixtral-8x7b"} <= set(MODELS)
    for layers in MODELS.values():
        assert layers
        assert all(layer.n > 0 and layer.k > 0 and layer.name for layer in layers)


@pytest.mark.parametrize(
    ("share", "text"), [(0.953, "95%"), (1.0, "100%"), (1.004, "100%"), (1.06, "106%*")]
)
def test_a_share_above_the_limit_is_marked(share, text):
    assert columns.share_of_limit(share) == text
