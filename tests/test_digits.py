"""examples/digits.py runs, and quantization costs what it should."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn", reason="examples/digits.py takes its images from scikit-learn")

EXAMPLE = Path(__file__).parent.parent / "examples" / "digits.py"
EIGHT_BITS = ["W8A8", "W8A8 chained"]
FOUR_BITS = ["W4A8 g=32", "W4A4 g=32"]


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("digits", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "digits", module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def rows(example):
    return {row.variant: row for row in example.compare()}


def test_every_variant_has_a_row(rows):
    assert sorted(rows) == sorted(["float32", *EIGHT_BITS, *FOUR_BITS])


def test_the_network_is_worth_quantizing(rows):
    assert rows["float32"].accuracy > 95


# The worst of twelve seeds lost 0.17 points with 8 bits, and 0.5 with 4.
@pytest.mark.parametrize(
    ("variant", "points"), [*((v, 0.5) for v in EIGHT_BITS), *((v, 1.5) for v in FOUR_BITS)]
)
def test_accuracy_stays(rows, variant, points):
    assert rows[variant].accuracy >= rows["float32"].accuracy - points


def test_bytes_shrink(rows):
    least = min(rows[variant].nbytes for variant in EIGHT_BITS)
    for variant in EIGHT_BITS:
        assert rows[variant].nbytes < 0.35 * rows["float32"].nbytes
    for variant in FOUR_BITS:
        assert rows[variant].nbytes < 0.8 * least


def test_prints_the_table(example, rows, monkeypatch, capsys):
    monkeypatch.setattr(example, "compare", lambda: list(rows.values()))
    example.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(rows)
    for row, line in zip(rows.values(), lines[1:], strict=True):
        assert line.startswith(row.variant)
        assert f"{row.accuracy:.2f}" in line
        assert f"{row.nbytes:,}" in line
