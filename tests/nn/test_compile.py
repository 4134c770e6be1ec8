"""torch.compile and torch.export take a module whole, and what they make computes the same."""

from __future__ import annotations

import shutil

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
import torch_modules as tm
from quantmm.nn import op
from torch._inductor import config
from torch._inductor.utils import run_and_get_code

needs_compiler = pytest.mark.skipif(
    not shutil.which("g++") and not shutil.which("clang++"), reason="inductor needs a C++ compiler"
)
BACKENDS = ["eager", "aot_eager", pytest.param("inductor", marks=needs_compiler)]


@pytest.fixture(autouse=True)
def afresh():
    torch._dynamo.reset()
    # torch's cache does not ask for the source of an operator's gradient.
    with config.patch(force_disable_caches=True):
        yield


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_without_a_break_for_any_number_of_rows(backend):
    model = tm.network()
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    for rows in (3, 8, 17):
        x = torch.randn(rows, 40)
        assert torch.equal(compiled(x), model(x))
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x))
    with torch.inference_mode():
        assert torch.equal(compiled(x), model(x))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_is_compiled_too(backend):
    model = tm.network("w4a8-g32")
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    x = torch.randn(5, 40, requires_grad=True)
    (found,) = torch.autograd.grad(compiled(x).sum(), x)
    (expected,) = torch.autograd.grad(model(x).sum(), x)
    torch.testing.assert_close(found, expected)


#: What a weight has that `write` of before knew nothing of.
NAMED = ("weight_offset", "weight_order")


def code_of(module, x):
    """What a compiled call gives, and the code that inductor made for it."""
    with torch.inference_mode():
        y, (code,) = run_and_get_code(torch.compile(module, fullgraph=True), x)
    return y, code


@needs_compiler
@pytest.mark.parametrize(
    ("beside", "bias", "dtype", "lead"),
    [
        (None, False, torch.float32, (3,)),
        (None, True, torch.float16, (2, 1, 3)),
        ("weight_zero_point", False, torch.bfloat16, ()),
        ("weight_zero_point", True, torch.float32, (2, 2)),
        (None, True, torch.float32, (0,)),
        ("weight_zero_point", True, torch.float16, (2, 0)),
        ("weight_offset", True, torch.float16, (2, 2)),
        ("weight_offset", False, torch.float32, (3,)),
        ("weight_order", True, torch.float32, (3,)),
    ],
)
def test_inductor_calls_the_kernel_without_the_dispatcher(beside, bias, dtype, lead):
    weight = {"weight": "uint8", beside: True} if beside else {}
    spec = tm.qmm.MatmulSpec(n=33, k=70, bias=bias, input="float32", dynamic=True, **weight)
    module = tm.layer(format=spec)
    x = torch.randn(*lead, 70).to(dtype)
    y, code = code_of(module, x)
    assert torch.equal(y, module(x))
    called = "quantmm_write_named(" if beside in NAMED else "quantmm_write("
    assert called in code
    assert "torch.ops.quantmm" not in code


@needs_compiler
def test_inductor_copies_an_x_whose_rows_are_not_whole():
    module = tm.layer()
    x = torch.randn(70, 3).T
    y, code = code_of(module, x)
    assert torch.equal(y, module(x))
    assert "quantmm_write(" in code


@needs_compiler
def test_code_in_other_languages_than_python_calls_the_operator():
    module = tm.layer()
    x = torch.randn(3, 70)
    with config.patch(cpp_wrapper=True):
        y, code = code_of(module, x)
    assert torch.equal(y, module(x))
    assert "quantmm_write(" not in code


@needs_compiler
def test_a_profile_shows_compiled_calls():
    module = torch.compile(tm.layer(), fullgraph=True)
    x = torch.randn(3, 70)
    with torch.inference_mode():
        module(x)
        with torch.profiler.profile() as profile:
            module(x)
    assert "quantmm::linear" in {event.key for event in profile.key_averages()}


def test_compiled_within_autocast():
    model = tm.network()

    @torch.compile(backend="aot_eager", fullgraph=True)
    def call(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(x)

    x = torch.randn(3, 40)
    y = call(x)
    assert y.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(y, model(x))


def test_a_compiled_module_sees_changes_of_its_weight():
    model = tm.network()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(3, 40)
    before = compiled(x)
    model[0].scale.mul_(2)
    assert not torch.equal(compiled(x), before)
    assert torch.equal(compiled(x), model(x))


def test_a_compiled_call_packs_nothing_again(monkeypatch):
    model = tm.network()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(3, 40, requires_grad=True)
    compiled(x)
    monkeypatch.setattr("quantmm.nn.packed.pack", None)
    compiled(x).sum().backward()
    with torch.no_grad():
        compiled(x)


@pytest.mark.parametrize("strict", [False, True])
def test_exported_for_any_number_of_rows(strict):
    model = tm.network()
    rows = {0: torch.export.Dim("rows")}
    program = torch.export.export(
        model, (torch.randn(4, 40),), dynamic_shapes=(rows,), strict=strict
    )
    calls = [node for node in program.graph.nodes if node.target is op.linear]
    assert len(calls) == 2
    for count in (2, 9):
        x = torch.randn(count, 40)
        assert torch.equal(program.module()(x), model(x))
        assert torch.equal(program.run_decompositions().module()(x), model(x))


LOAD = """
import sys, torch
import quantmm.nn
program = torch.export.load(sys.argv[1])
x, y = torch.load(sys.argv[2])
print(torch.equal(program.module()(x), y))
"""


def test_an_exported_program_runs_in_another_process(tmp_path):
    model = tm.network("w4a8-g32")
    x = torch.randn(4, 40)
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "model.pt2")
    torch.save((x, model(x)), tmp_path / "numbers.pt")
    assert tm.run(LOAD, tmp_path / "model.pt2", tmp_path / "numbers.pt") == "True\n"
