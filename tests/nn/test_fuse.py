"""What belongs together is computed in one call, to the same numbers."""

from __future__ import annotations

import copy
import functools

import pytest
import quantmm as qmm
from quantmm.errors import SpecError

torch = pytest.importorskip("torch", reason="torch is not installed")
import torch_modules as tm
from quantmm import nn as qnn
from quantmm.nn import fuse
from torch import nn

K, N = 40, 24
FORMAT = "w4a8-g32-offset"


class LlamaAttention(nn.Module):
    """Of the attributes that the table names, with fewer keys than queries."""

    def __init__(self, bias=False):
        super().__init__()
        self.q_proj, self.o_proj = nn.Linear(K, N, bias=bias), nn.Linear(N, K)
        self.k_proj, self.v_proj = nn.Linear(K, 8, bias=bias), nn.Linear(K, 8, bias=bias)

    def forward(self, x):
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self.o_proj(q * k.repeat_interleave(3, -1) + v.repeat_interleave(3, -1))


class LlamaMLP(nn.Module):
    def __init__(self, act_fn):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(K, N), nn.Linear(K, N)
        self.down_proj, self.act_fn = nn.Linear(N, K), act_fn

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class BertIntermediate(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense, self.intermediate_act_fn = nn.Linear(K, K), nn.GELU()

    def forward(self, x):
        return self.intermediate_act_fn(self.dense(x))


def network(attention=None):
    torch.manual_seed(0)
    parts = attention or LlamaAttention(), LlamaMLP(nn.SiLU()), BertIntermediate()
    return nn.Sequential(*parts).eval()


@functools.cache
def both():
    """The same model quantized linear by linear, and with what belongs together in one call."""
    apart = network()
    fused = copy.deepcopy(apart)
    qnn.quantize_(apart, FORMAT, fuse=False)
    qnn.quantize_(fused, FORMAT)
    return apart, fused


def names(model):
    return {row.name: row.computes for row in qnn.report(model)}


FUSED = {
    "0.o_proj": ("o_proj",),
    "0.qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "1.gate_up_proj": ("gate_proj", "up_proj"),
    "1.down_proj": ("down_proj",),
    "2.dense": ("dense",),
}


def test_the_numbers_stay():
    apart, fused = both()
    assert names(fused) == FUSED
    x = torch.randn(2, 3, K)
    with torch.inference_mode():
        assert torch.equal(fused[0](x), apart[0](x))
        torch.testing.assert_close(fused[1:](x), apart[1:](x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fused[2](x), apart[2](x), rtol=1e-5, atol=1e-6)


def test_a_module_for_gate_and_up_is_the_reference():
    gated = both()[1][1].gate_up_proj
    assert (gated.spec.gated, gated.spec.activation_fn, gated.out_features) == (True, "silu", N)
    assert gated.dequantize().shape == (2 * N, K)
    x = torch.randn(3, K)
    torch.testing.assert_close(gated(x), tm.expected(gated, x), rtol=1e-6, atol=1e-6)


def test_a_gate_has_a_gradient():
    mlp = both()[1][1].gate_up_proj
    weight, bias = mlp.dequantize(), mlp.bias

    def plain(x):
        gate, up = nn.functional.linear(x, weight, bias).chunk(2, -1)
        return nn.functional.silu(gate) * up

    x, upstream = torch.randn(3, K, requires_grad=True), torch.randn(3, N)
    (found,) = torch.autograd.grad(mlp(x), x, upstream)
    (expected,) = torch.autograd.grad(plain(x), x, upstream)
    torch.testing.assert_close(found, expected)
    x, tangent = x.detach(), torch.randn(3, K)
    _, along = torch.func.jvp(mlp, (x,), (tangent,))
    torch.testing.assert_close(along, torch.func.jvp(plain, (x,), (tangent,))[1])


def test_a_gated_spec_wants_both_halves():
    spec = qmm.MatmulSpec(n=N, k=K, gated=True, bias=True, input="float32", dynamic=True)
    assert qnn.Linear.from_float(nn.Linear(K, 2 * N), spec).out_features == N
    with pytest.raises(SpecError, match=r"n=24, k=40, bias=True in the spec; .* has n=12"):
        qnn.Linear.from_float(nn.Linear(K, N), spec)


def test_compiled_without_a_break():
    _, fused = both()
    torch._dynamo.reset()
    x = torch.randn(3, K)
    with torch.no_grad():
        assert torch.equal(torch.compile(fused, backend="aot_eager", fullgraph=True)(x), fused(x))
    assert fused[0].q_proj.whole._last is None


def test_calls_in_any_order_and_of_any_x():
    apart, fused = both()
    apart, fused = apart[0], fused[0]
    a, b = torch.randn(2, K), torch.randn(2, K)
    for calls in ("qkv", "kqv", "qqk", "vv", "kkq"):
        for name, x in zip(calls, (a, b, b), strict=False):
            name = f"{name}_proj"
            assert torch.equal(getattr(fused, name)(x), getattr(apart, name)(x)), calls
    for change in (lambda: a.mul_(2), lambda: setattr(a, "data", b.clone()), lambda: None):
        fused.q_proj(a)
        change()
        assert torch.equal(fused.k_proj(a), apart.k_proj(a))
    fused.q_proj(a)
    assert copy.deepcopy(fused).q_proj.whole._last is None
    assert torch.equal(copy.deepcopy(fused)(a), apart(a))


def test_a_result_is_given_once():
    apart, fused = (each[0] for each in both())
    x = torch.randn(2, K)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            b = x.clone()
            fused.k_proj(b)
            b.copy_(x * 2)
            assert torch.equal(fused.k_proj(b), apart.k_proj(b))
            fused.q_proj(x)
            fused.k_proj(x).zero_()
            assert torch.equal(fused.k_proj(x), apart.k_proj(x))


@pytest.mark.parametrize(
    "mode", [torch.enable_grad, lambda: torch.autocast("cpu", torch.bfloat16), torch.inference_mode]
)
def test_a_result_of_another_mode_is_not_given(mode):
    apart, fused = (each[0] for each in both())
    x = torch.randn(2, K, requires_grad=True)
    with torch.no_grad():
        fused.q_proj(x)
        with mode():
            found, expected = fused.k_proj(x), apart.k_proj(x)
            assert torch.equal(found, expected)
    assert (found.dtype, found.requires_grad) == (expected.dtype, expected.requires_grad)
    assert found.is_inference() == expected.is_inference()


def test_a_bias_that_changes_between():
    model = LlamaAttention(bias=True).eval()
    qnn.quantize_(model, FORMAT)
    x = torch.randn(2, K)
    with torch.no_grad():
        before = model.k_proj(x)
        model.q_proj(x)
        model.qkv_proj.bias.add_(1)
        torch.testing.assert_close(model.k_proj(x), before + 1)


def test_a_part_inside_a_transform():
    apart, fused = (each[0] for each in both())
    x, tangent = torch.randn(2, K), torch.randn(2, K)
    found, expected = (torch.func.jvp(each, (x,), (tangent,)) for each in (fused, apart))
    torch.testing.assert_close(found, expected)


def test_one_scale_for_all_rows_has_a_state_apart():
    apart = nn.Sequential(BertIntermediate())
    spec = qmm.MatmulSpec(n=K, k=K, bias=True, group_size="tensor", input="float32", dynamic=True)
    apart[0].dense = qnn.Linear.from_float(apart[0].dense, spec)
    expected = copy.deepcopy(apart.state_dict())
    assert fuse.fuse_(apart) == ("0.dense",)
    state = qnn.unfused_state(apart)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_the_state_without_what_was_put_together():
    apart, fused = both()
    state, expected = qnn.unfused_state(fused), apart.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    other = network()
    qnn.quantize_(other, FORMAT, fuse=False)
    other.load_state_dict(state)
    assert qnn.fuse_(other) == ("0.qkv_proj", "1.gate_up_proj", "2.dense")
    assert torch.equal(other(x := torch.randn(3, K)), fused(x))


def test_what_is_not_alike_stays_apart():
    model = network()
    formats = {"0.v_proj": "w4a8", "1.up_proj": "w4a8"}
    qnn.quantize_(model, lambda name: formats.get(name, "w8a8"))
    assert names(model) == {
        "0.o_proj": ("o_proj",),
        "0.q_proj_k_proj": ("q_proj", "k_proj"),
        "0.v_proj": ("v_proj",),
        **{f"1.{name}_proj": (f"{name}_proj",) for name in ("gate", "up", "down")},
        "2.dense": ("dense",),
    }


def test_hooks_and_other_functions_keep_a_linear_apart():
    model = nn.Sequential(network(), LlamaMLP(nn.Hardtanh()))
    model[0][0].k_proj.register_forward_hook(lambda *_: None)
    model[0][0].v_proj.register_forward_pre_hook(lambda *_: None)
    model[0][1].up_proj.register_forward_hook(lambda *_: None)
    model[0][2].dense.register_forward_hook(lambda *_: None)
    model.append(LlamaMLP(nn.SiLU()))
    model[2].act_fn.register_forward_hook(lambda *_: None)
    qnn.quantize_(model)
    assert all(len(computes) == 1 for computes in names(model).values())
    assert fuse.fuse_(model) == ()


def test_weights_in_another_order_of_columns_only_with_the_same():
    spec = qmm.MatmulSpec(n=8, k=K, weight_order=True, input="float32", dynamic=True)
    one, two = (qnn.Linear.from_float(nn.Linear(K, 8, bias=False), spec) for _ in "ab")
    assert fuse.stackable([one, two])
    two.order = two.order.flip(0)
    assert not fuse.stackable([one, two])
