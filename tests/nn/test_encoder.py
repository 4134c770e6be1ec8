"""examples/encoder.py runs, and its contenders compute the same encoder."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "encoder.py"
CONTENDERS = [
    *("torch float32", "torch dynamic int8"),
    *("quantmm w8a8-dynamic", "quantmm w4a8-g32"),
]


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("encoder", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "encoder", module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        yield module


@pytest.fixture
def size(example):
    return example.Size(layers=1, width=32, hidden=64, heads=2)


def test_the_contenders_agree(example, size):
    torch.manual_seed(0)
    models = example.contenders(size)
    assert list(models) == CONTENDERS
    x = torch.randn(2, 5, 32)
    with torch.no_grad():
        right = models["torch float32"](x)
        for name, model in models.items():
            error = (model(x) - right).norm() / right.norm()
            assert error < (0.15 if "w4" in name else 0.03)
            assert name == "torch float32" or error > 0


def test_the_table(example, size, capsys):
    threads = torch.get_num_threads()
    try:
        example.main(["--threads", "1", "--tokens", "1x3", "--tokens", "2x5", "--turns", "2"], size)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["batch", "tokens", "ms", "ratio"]
    expected = [(b, t, name) for b, t in (("1", "3"), ("2", "5")) for name in CONTENDERS]
    assert len(lines) == 1 + len(expected)
    for line, (batch, tokens, name) in zip(lines[1:], expected, strict=True):
        *first, milliseconds, ratio = line.split()
        assert first == [batch, tokens, *name.split()]
        assert float(milliseconds) >= 0
        assert name != "torch float32" or float(ratio) == 1


def test_everyone_takes_turns(example):
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    times = example.medians(calls, 2, 3)
    assert "".join(order) == "ab" + 2 * ("aaaa" + "bbbb")
    assert list(times) == ["a", "b"]
