"""`quantize_` replaces what it should, wherever a model holds it."""

from __future__ import annotations

import pytest
from quantmm.errors import ArrayError, ModuleError, SpecError

torch = pytest.importorskip("torch", reason="torch is not installed")
import torch_modules as tm
from quantmm import nn as qnn
from torch import nn


def small():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Sequential(nn.Linear(16, 8, bias=False)))


@pytest.mark.parametrize("format", tm.FORMATS)
def test_every_linear_is_replaced(format):
    model = small()
    right = [qnn.Linear.from_float(model[0], format), qnn.Linear.from_float(model[2][0], format)]
    assert qnn.quantize_(model, format) is None
    found = [model[0], model[2][0]]
    for module, other in zip(found, right, strict=True):
        assert type(module) is qnn.Linear
        assert module.spec == other.spec
        assert torch.equal(module.data, other.data)
    x = torch.randn(3, 8)
    tm.assert_agrees(model(x), found[1], found[0](x).relu())


def test_the_filter_chooses_by_module_and_name():
    model, seen = small(), []

    def choose(module, name):
        seen.append((type(module), name))
        return module.in_features == 16

    qnn.quantize_(model, filter_fn=choose)
    assert seen == [(nn.Linear, "0"), (nn.Linear, "2.0")]
    assert type(model[0]) is nn.Linear
    assert type(model[2][0]) is qnn.Linear


def test_a_module_that_is_held_twice_stays_one():
    shared = nn.Linear(8, 8)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.Linear(8, 8))})
    qnn.quantize_(model)
    assert model["a"] is model["b"][0]
    assert model["a"] is not model["b"][1]


def test_a_weight_that_two_linears_share_stays_one():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    qnn.quantize_(model, "w4a8-g32")
    assert model[0].data is model[1].data
    assert model[0].scale is model[1].scale
    assert model[0].bias is not model[1].bias
    x = torch.randn(2, 8)
    for module in model:
        tm.assert_agrees(module(x), module, x)


def test_a_weight_that_an_embedding_shares_leaves_the_embedding():
    model = nn.ModuleDict({"embed": nn.Embedding(20, 8), "head": nn.Linear(8, 20, bias=False)})
    model["head"].weight = model["embed"].weight
    before = model["embed"].weight.clone()
    qnn.quantize_(model)
    assert torch.equal(model["embed"].weight, before)
    assert type(model["head"]) is qnn.Linear


def test_subclasses_that_compute_something_else_are_left_alone():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    class Named(nn.Linear):
        pass

    model = nn.Sequential(Doubled(4, 4), Named(4, 4))
    qnn.quantize_(model)
    assert [type(module) for module in model] == [Doubled, qnn.Linear]


def test_a_model_without_memory():
    with torch.device("meta"):
        model = small()
    qnn.quantize_(model)
    assert model[0].data.is_meta
    other = small()
    qnn.quantize_(other)
    model.load_state_dict(other.state_dict(), assign=True)
    x = torch.randn(3, 8)
    assert torch.equal(model(x), other(x))


@pytest.mark.parametrize("nested", [False, True])
def test_torchs_encoder_calls_its_quantized_linears(nested):
    # In eval mode torch would hand the weights of both to an operator of its own.
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    encoder = nn.TransformerEncoder(encoder, 2) if nested else encoder
    qnn.quantize_(encoder)
    layer = encoder.layers[0] if nested else encoder
    assert [type(layer.linear1), type(layer.linear2)] == [qnn.Linear] * 2
    assert type(layer.self_attn.out_proj) is not qnn.Linear
    called = []
    layer.linear1.register_forward_hook(lambda *_: called.append(1))
    x = torch.randn(2, 5, 16)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.no_grad():
        y = encoder(x, src_key_padding_mask=mask)
    assert called
    assert y.shape == x.shape
    layer.linear1._forward_hooks.clear()
    with torch.no_grad():
        assert torch.equal(encoder(x, src_key_padding_mask=mask), y)


def test_hooks_stay():
    model, called = small(), []
    model[0].register_forward_pre_hook(lambda module, args: called.append("before"))
    handle = model[0].register_forward_hook(
        lambda module, args, kwargs, y: called.append("after"), with_kwargs=True
    )
    qnn.quantize_(model)
    model(torch.randn(2, 8))
    handle.remove()
    model(torch.randn(2, 8))
    assert called == ["before", "after", "before"]


def test_computed_weights():
    model = nn.Sequential(*[nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)) for _ in "ab"])
    weights = [module.weight.detach() for module in model]
    qnn.quantize_(model)
    for module, weight in zip(model, weights, strict=True):
        assert type(module) is qnn.Linear
        assert (module.dequantize() - weight).abs().max() < 0.01
    assert model[0].data is not model[1].data


def test_a_weight_that_is_not_there_yet():
    model = nn.Sequential(nn.LazyLinear(8))
    with pytest.raises(ModuleError, match=r"^0: module is LazyLinear without a weight; expected"):
        qnn.quantize_(model)
    model(torch.randn(2, 4))
    qnn.quantize_(model)
    assert type(model[0]) is qnn.Linear


def test_a_linear_itself():
    with pytest.raises(
        ModuleError, match=r"cannot be replaced in place.*from_float\(model, 'w4a8'\)"
    ):
        qnn.quantize_(nn.Linear(4, 4), "w4a8")


def test_what_is_no_module():
    with pytest.raises(ModuleError, match=r"model is list; expected a torch\.nn\.Module"):
        qnn.quantize_([nn.Linear(4, 4)])


def test_no_linears():
    with pytest.raises(ModuleError, match=r"expected torch\.nn\.Linear in Sequential; it has none"):
        qnn.quantize_(nn.Sequential(nn.ReLU()))


def test_none_chosen():
    with pytest.raises(ModuleError, match="it has 2 of them and filter_fn chose none"):
        qnn.quantize_(small(), filter_fn=lambda module, name: False)


def test_all_or_none():
    model = small()
    model[2][0].weight.data[0, 0] = float("inf")
    with pytest.raises(ArrayError, match=r"^2\.0: x holds NaN or infinity"):
        qnn.quantize_(model)
    assert type(model[0]) is nn.Linear


def test_no_such_format():
    with pytest.raises(SpecError, match=r"^0: no format 'int3'"):
        qnn.quantize_(small(), "int3")
