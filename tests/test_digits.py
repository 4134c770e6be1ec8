"""examples/digits.py runs, and quantization costs what it should."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import quantmm as qmm

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


# The worst of twelve seeds lost 0.17 points with 8 bits, and 0.83 with 4.
@pytest.mark.parametrize(
    ("variant", "points"), [*((v, 0.5) for v in EIGHT_BITS), *((v, 1.5) for v in FOUR_BITS)]
)
def test_accuracy_stays(rows, variant, points):
    assert rows[variant].accuracy >= rows["float32"].accuracy - points


def test_training_is_the_same_in_any_order_of_summation(example, monkeypatch):
    monkeypatch.setattr(example, "EPOCHS", 1)
    product, greatest = example.product, []

    def backwards(a, b):
        greatest.extend([np.abs(a).max(), np.abs(b).max()])
        return product(a[:, ::-1], b[::-1])

    def trained():
        rng = np.random.default_rng(0)
        images = example.load_images(rng)
        return example.train(images.train_x, images.train_y, rng)

    expected = trained()
    monkeypatch.setattr(example, "product", backwards)
    for layer, other in zip(expected, trained(), strict=True):
        np.testing.assert_array_equal(layer.weight, other.weight)
        np.testing.assert_array_equal(layer.bias, other.bias)
    assert max(greatest) < 32


def test_bytes_shrink(rows):
    least = min(rows[variant].nbytes for variant in EIGHT_BITS)
    for variant in EIGHT_BITS:
        assert rows[variant].nbytes < 0.35 * rows["float32"].nbytes
    for variant in FOUR_BITS:
        assert rows[variant].nbytes < 0.8 * least


def shown_table():
    """Accuracy and bytes of each row of the table of formats, and the target that it names."""
    text = (EXAMPLE.parent.parent / "docs" / "formats.md").read_text(encoding="utf-8")
    _, _, text = text.partition("`examples/digits.py`")
    target = re.search(r"The bytes are those of\s+(\S+);", text)[1]
    rows = re.findall(r"^\| .+ \| ([\d.]+) % \| ([\d,]+) \|$", text, re.MULTILINE)
    return [(accuracy, int(size.replace(",", ""))) for accuracy, size in rows], target


def test_the_docs_have_these_accuracies(rows):
    table, _ = shown_table()
    assert [accuracy for accuracy, _ in table] == [f"{row.accuracy:.2f}" for row in rows.values()]


def test_the_docs_have_the_bytes_of_the_target_that_it_names(example, rows, monkeypatch):
    table, target = shown_table()
    compile = qmm.compile
    one_row = lambda spec: compile(dataclasses.replace(spec, m=1), target)  # noqa: E731
    monkeypatch.setattr(qmm, "compile", one_row)
    sizes = itertools.pairwise(example.SIZES)
    layers = [example.Layer(np.eye(n, k, dtype=np.float32), np.zeros(n)) for k, n in sizes]
    networks = [example.compile_dynamic(layers, formats) for formats in example.DYNAMIC.values()]
    networks.append(example.compile_chained(layers, [1.0] * len(layers)))
    expected = [sum(linear.nbytes for linear in network) for network in networks]
    assert [size for _, size in table] == [rows["float32"].nbytes, *expected]


def test_prints_the_table(example, rows, monkeypatch, capsys):
    monkeypatch.setattr(example, "compare", lambda: list(rows.values()))
    example.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(rows)
    for row, line in zip(rows.values(), lines[1:], strict=True):
        assert line.startswith(row.variant)
        assert f"{row.accuracy:.2f}" in line
        assert f"{row.nbytes:,}" in line
