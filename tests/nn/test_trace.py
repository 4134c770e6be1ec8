"""torch.jit.trace records the operator; ONNX, which has none like it, is refused."""

from __future__ import annotations

import io

import pytest
from quantmm.errors import UnsupportedError

torch = pytest.importorskip("torch", reason="torch is not installed")
import torch_modules as tm

# Both say that torch.export has taken their place.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_a_trace_holds_the_operator():
    model = tm.network()
    traced = torch.jit.trace(model, (torch.randn(4, 40),))
    kinds = [node.kind() for node in traced.inlined_graph.nodes()]
    assert kinds.count("quantmm::linear") == 2
    assert not [kind for kind in kinds if "empty" in kind]
    for rows in (1, 4, 9):
        x = torch.randn(rows, 40)
        assert torch.equal(traced(x), model(x))


def test_a_trace_of_other_shapes():
    model = tm.network()
    traced = torch.jit.trace(model, (torch.randn(2, 3, 40),))
    x = torch.randn(5, 4, 40)
    assert torch.equal(traced(x), model(x))


LOAD = """
import sys, torch
import quantmm.nn
traced = torch.jit.load(sys.argv[1])
x, y = torch.load(sys.argv[2])
print([torch.equal(traced(x), y) for _ in range(3)])
"""


def test_a_saved_trace_runs_in_another_process(tmp_path):
    model = tm.network()
    x = torch.randn(4, 40)
    torch.jit.trace(model, (x,)).save(tmp_path / "model.pt")
    torch.save((x, model(x)), tmp_path / "numbers.pt")
    assert tm.run(LOAD, tmp_path / "model.pt", tmp_path / "numbers.pt") == f"{[True] * 3}\n"


def test_onnx():
    with pytest.raises(UnsupportedError, match=r"quantmm::linear has no form in ONNX; export the"):
        torch.onnx.export(tm.network(), (torch.randn(4, 40),), io.BytesIO(), dynamo=False)
