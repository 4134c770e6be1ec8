"""Modules whose weights have their columns in another order than x."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import quantmm as qmm
from quantmm.errors import ArrayError, StateError

torch = pytest.importorskip("torch", reason="torch is not installed")
import torch_modules as tm
from quantmm import nn as qnn


@pytest.fixture(scope="module")
def module():
    rng = np.random.default_rng(0)
    w = qmm.quantize(rng.standard_normal((33, 70)), "int4", group_size=32)
    return qnn.Linear.from_quantized(dataclasses.replace(w, order=rng.permutation(70)))


@pytest.mark.parametrize("dtype", tm.DTYPES)
def test_computes_what_the_reference_does(module, dtype):
    assert module.spec.weight_order
    x = torch.randn(3, 70).to(dtype)
    torch.testing.assert_close(module(x), tm.expected(module, x), rtol=1e-6, atol=0)


def test_the_gradient_is_that_of_the_columns_of_x(module):
    x, upstream = torch.randn(3, 70, requires_grad=True), torch.randn(3, 33)
    weight = torch.from_numpy(qmm.dequantize(module.to_quantized()))
    assert torch.equal(module.dequantize(), weight)
    (found,) = torch.autograd.grad(module(x), x, upstream)
    torch.testing.assert_close(found, upstream @ weight)
    torch.testing.assert_close(module(x), x @ weight.T, rtol=0, atol=0.2)


def test_states(module):
    state = module.state_dict()
    assert (state["order"].dtype, state["order"].shape) == (torch.int32, (70,))
    empty = qnn.Linear(70, 33, bias=False, format=module.spec)
    x = torch.randn(3, 70)
    empty.load_state_dict(state)
    assert torch.equal(empty(x), module(x))
    with pytest.raises(StateError, match=r"order is int32\(3,\); the module"):
        empty.load_state_dict({**state, "order": torch.zeros(3, dtype=torch.int32)})


def test_a_changed_order_is_noticed(module):
    other, x = copy.deepcopy(module), torch.randn(3, 70)
    before = other(x)
    other.order.copy_(other.order.flip(0))
    assert not torch.equal(other(x), before)
    torch.testing.assert_close(other(x), tm.expected(other, x), rtol=1e-6, atol=0)
    other.order.zero_()
    with pytest.raises(ArrayError, match="order lacks 1; expected each of 0 to 69 once"):
        other(x)
