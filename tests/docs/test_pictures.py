"""The README's picture shows what the page on performance says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import quantmm as qmm

ROOT = Path(qmm.__file__).parent


@pytest.fixture(scope="module")
def peers():
    path = ROOT / "benchmarks" / "peers.py"
    spec = importlib.util.spec_from_file_location("peers", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_shape_is_in_the_tables(peers):
    text = peers.PAGE.read_text(encoding="utf-8")
    int8, four, encoder = peers.parts(text)
    for part, shapes in zip((int8, four), peers.SHAPES.values(), strict=True):
        assert sorted(part.ratios) == sorted(shapes)
    assert int8.ratios["1024 x 1024 x 1024"] == {peers.BEST: 0.96}
    assert four.ratios["1 x 4096 x 4096 cold"][peers.FLOAT32] == 12.79
    assert [*encoder.ratios] == ["1 x 12 tokens", "1 x 128 tokens", "32 x 16 tokens"]


def test_the_picture_names_the_machine_and_the_date(peers):
    drawn = peers.picture(peers.parts(peers.PAGE.read_text(encoding="utf-8")), peers.TITLE)
    for text in (drawn, (ROOT / "docs" / "peers.svg").read_text(encoding="utf-8")):
        assert peers.TITLE in text
        assert peers.BEST in text
