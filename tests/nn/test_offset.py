"""Modules whose weights have offsets."""

from __future__ import annotations

import copy
import pickle

import pytest
import quantmm as qmm
from quantmm.errors import StateError, UnsupportedError

torch = pytest.importorskip("torch", reason="torch is not installed")
import torch_modules as tm
from quantmm import nn as qnn
from torch import library

SPEC = qmm.MatmulSpec(
    n=33,
    k=70,
    weight="uint4",
    group_size=32,
    weight_offset=True,
    bias=True,
    input="float32",
    dynamic=True,
)


@pytest.fixture(scope="module")
def module():
    return tm.layer(format=SPEC)


@pytest.mark.parametrize("dtype", tm.DTYPES)
def test_computes_what_the_reference_does(module, dtype):
    x = torch.randn(3, 70).to(dtype)
    torch.testing.assert_close(module(x), tm.expected(module, x), rtol=1e-6, atol=0)


def test_the_gradient_is_that_of_the_dequantized_weight(module):
    x, upstream = torch.randn(3, 70, requires_grad=True), torch.randn(3, 33)
    (found,) = torch.autograd.grad(module(x), x, upstream)
    torch.testing.assert_close(found, upstream @ module.dequantize())
    weight = torch.from_numpy(qmm.dequantize(module.to_quantized()))
    assert torch.equal(module.dequantize(), weight)
    _, along = torch.func.jvp(module, (x.detach(),), (torch.ones(3, 70),))
    torch.testing.assert_close(along, torch.ones(3, 70) @ weight.T)


def test_offsets_are_not_trained(module):
    other = copy.deepcopy(module)
    other.offset.requires_grad_()
    with pytest.raises(UnsupportedError, match="offset requires a gradient; expected x alone to"):
        other(torch.randn(3, 70))


def test_a_changed_offset_is_noticed(module):
    other, x = copy.deepcopy(module), torch.randn(3, 70)
    before = other(x)
    with torch.no_grad():
        other.offset.add_(1)
    assert not torch.equal(other(x), before)
    torch.testing.assert_close(other(x), tm.expected(other, x), rtol=1e-6, atol=0)


def test_states(module):
    state = module.state_dict()
    assert state["offset"].shape == (33, 3)
    empty = qnn.Linear(70, 33, format=SPEC)
    empty.load_state_dict(state)
    x = torch.randn(3, 70)
    assert torch.equal(empty(x), module(x))
    with pytest.raises(StateError, match=r"offset is float32\(3,\); the module"):
        empty.load_state_dict({**state, "offset": torch.zeros(3)})


def test_weights_without_offsets_have_those_of_zero():
    w = qmm.quantize(torch.randn(33, 70), "int4", group_size=32)
    spec = qmm.MatmulSpec(
        n=33, k=70, weight="int4", group_size=32, weight_offset=True, input="float32", dynamic=True
    )
    x = torch.randn(3, 70)
    plain, added = (qnn.Linear.from_quantized(w, None, each) for each in (None, spec))
    assert torch.equal(plain(x), added(x))


def test_a_quantized_weight_says_by_itself_that_it_has_offsets():
    w = qmm.quantize(torch.randn(33, 70), "uint4", group_size=32, offset=True)
    assert qnn.Linear.from_quantized(w).spec.weight_offset


def test_a_module_of_before():
    module = tm.layer()
    del module._buffers["offset"]  # as a module had it that was pickled then
    again, x = pickle.loads(pickle.dumps(module)), torch.randn(3, 70)
    assert again.offset is None
    assert torch.equal(again(x), tm.expected(again, x))


def test_the_operator_needs_no_offset(module):
    plain, x = tm.one_layer(), torch.randn(3, 70)
    weight = plain.data, plain.scale, None, plain.bias, plain._text
    assert torch.equal(torch.ops.quantmm.linear(x, *weight), plain(x))
    library.opcheck(
        torch.ops.quantmm.linear.default,
        (x, module.data, module.scale, None, module.bias, module._text, module.offset),
    )


def test_vmap_goes_over_x(module):
    x = torch.randn(2, 3, 70)
    torch.testing.assert_close(torch.func.vmap(module)(x), module(x))
