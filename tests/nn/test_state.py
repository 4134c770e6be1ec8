"""Modules are saved, loaded, copied and moved as people expect, and keep their exact numbers."""

from __future__ import annotations

import copy
import pickle

import pytest
import quantmm as qmm
from quantmm.errors import ArrayError, StateError

torch = pytest.importorskip("torch", reason="torch is not installed")
import torch_modules as tm
from quantmm import nn as qnn
from safetensors.torch import load_file, load_model, save_file, save_model

SPEC = qmm.MatmulSpec(
    n=33,
    k=70,
    weight="uint4",
    group_size=32,
    weight_zero_point=True,
    bias=True,
    input="float32",
    dynamic=True,
)
X = torch.randn(3, 40)


def test_a_state_is_the_canonical_weight():
    module = tm.layer(format=SPEC)
    state, w = module.state_dict(), module.to_quantized()
    assert list(state) == ["data", "scale", "zero_point", "bias", "_extra_state"]
    for name in ("data", "scale", "zero_point"):
        assert (state[name].numpy() == getattr(w, name)).all()
    assert bytes(state["_extra_state"].tolist()).decode() == module.spec.to_json()


@pytest.mark.parametrize("format", tm.FORMATS)
@pytest.mark.parametrize("assign", [False, True])
def test_through_safetensors(format, assign, tmp_path):
    model, other = tm.network(format), tm.network(format)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    assert not torch.equal(other(X), model(X))
    other.load_state_dict(load_file(tmp_path / "model.safetensors"), assign=assign)
    assert torch.equal(other(X), model(X))


def test_through_safetensors_models(tmp_path):
    model, other = tm.network(), tm.network()
    model.again = model[0]  # shared memory, which save_file refuses
    other.again = other[0]
    save_model(model, str(tmp_path / "model.safetensors"))
    load_model(other, str(tmp_path / "model.safetensors"))
    assert torch.equal(other[:3](X), model[:3](X))


def test_through_torch_save(tmp_path):
    model, other = tm.network(), tm.network()
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other(X), model(X))
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(again(X), model(X))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("called", [False, True])
def test_copies_have_numbers_of_their_own(copied, called):
    model = tm.network()
    if called:
        model(X)
    other = copied(model)
    assert torch.equal(other(X), model(X))
    other[0].scale.mul_(2)
    assert not torch.equal(other(X), model(X))


def test_a_state_of_another_format():
    with pytest.raises(StateError) as caught:
        tm.network("w4a8").load_state_dict(tm.network().state_dict())
    message = str(caught.value)
    given, _, expected = message.partition("; the module has ")
    assert given.startswith('0._extra_state has {"n": 24, "k": 40, ')
    assert '"weight"' not in given
    assert '"weight": "int4"' in expected


EXTRA = {
    "a dictionary": ({"format": "w4a8"}, "_extra_state is dict; expected the bytes of a spec"),
    "floats": (torch.ones(3), r"_extra_state is float32\(3,\); expected the bytes of a spec"),
    "other bytes": (torch.tensor([255, 0], dtype=torch.uint8), "_extra_state: not a spec in JSON"),
}


@pytest.mark.parametrize(("extra", "message"), EXTRA.values(), ids=EXTRA)
def test_a_state_whose_format_is_none(extra, message):
    module = tm.layer()
    with pytest.raises(StateError, match=message):
        module.load_state_dict({**module.state_dict(), "_extra_state": extra})


def test_a_tensor_of_another_shape_or_dtype():
    module = tm.layer()
    state = module.state_dict()
    before = module.data.clone()
    shorter = {**tm.layer(n=8).state_dict(), "_extra_state": state["_extra_state"]}
    with pytest.raises(
        StateError,
        match=r"data is int8\(8, 70\); the module, w8a8-dynamic of \(33, 70\), has int8\(33, 70\)",
    ):
        module.load_state_dict(shorter)
    half = {**state, "data": state["data"].flip(0), "scale": state["scale"].half()}
    with pytest.raises(StateError, match=r"scale is float16\(33,\); .* has float32\(33,\)"):
        module.load_state_dict(half)
    assert torch.equal(module.data, before)


def test_a_state_of_floats_is_refused_by_torch():
    with pytest.raises(RuntimeError, match=r"(?s)Missing key.*data.*Unexpected key.*weight"):
        tm.layer().load_state_dict(torch.nn.Linear(70, 33).state_dict())


def test_a_state_without_its_format():
    module, other = tm.layer(), tm.layer()
    state = module.state_dict()
    del state["_extra_state"]
    with pytest.raises(RuntimeError, match=r"Missing key.*_extra_state"):
        other.load_state_dict(state)
    other.load_state_dict(state, strict=False)
    x = torch.randn(3, 70)
    assert torch.equal(other(x), module(x))


def test_states_without_numbers():
    module = tm.layer()
    state = {name: tensor.to("meta") for name, tensor in module.state_dict().items()}
    other = tm.layer().to("meta")
    other.load_state_dict(state, assign=True)
    assert other.data.is_meta


def test_made_without_memory():
    module = tm.layer(format="w4a8-g32")
    empty = qnn.Linear(70, 33, format="w4a8-g32", device="meta")
    assert empty.data.is_meta
    empty.load_state_dict(module.state_dict(), assign=True)
    x = torch.randn(3, 70)
    assert torch.equal(empty(x), module(x))


def test_made_without_initial_numbers():
    module = tm.layer(format="w4a8-g32")
    empty = torch.nn.utils.skip_init(qnn.Linear, 70, 33, format="w4a8-g32")
    assert empty.data.device.type == "cpu"
    empty.load_state_dict(module.state_dict())
    x = torch.randn(3, 70)
    assert torch.equal(empty(x), module(x))


def test_loaded_in_inference_mode():
    module, other = tm.layer(), tm.layer()
    x = torch.randn(3, 70)
    with torch.inference_mode():
        state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        other.load_state_dict(state, assign=True)
        assert torch.equal(other(x), module(x))
    other.scale.mul_(2)
    assert not torch.equal(other(x), module(x))


@pytest.mark.parametrize("convert", ["half", "bfloat16", "double", "float", "eval"])
def test_numbers_stay_exact(convert):
    model = tm.network("w4a8-g32")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(3, 40)
    before = model(x)
    assert getattr(model, convert)() is model
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == state[name].dtype
        assert torch.equal(tensor, state[name])
    assert torch.equal(model(x), before)


def test_half_of_a_model_around_it():
    model = torch.nn.Sequential(torch.nn.Linear(8, 40), tm.network()).bfloat16()
    assert model(torch.randn(2, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_to_meta():
    module = tm.layer().to("meta")
    assert {each.device.type for each in module.buffers()} == {"meta"}
    y = module(torch.empty(2, 3, 70, device="meta", dtype=torch.float16))
    assert (y.shape, y.dtype, y.device.type) == ((2, 3, 33), torch.float16, "meta")
    with pytest.raises(ArrayError, match="x is on cpu, the weight on meta; expected one device"):
        module(torch.randn(3, 70))
    back = module.to_empty(device="cpu")
    back.load_state_dict(tm.layer().state_dict())
    assert back(torch.randn(3, 70)).device.type == "cpu"


def test_nothing_is_trained():
    model = tm.network().requires_grad_().train()
    assert list(model.parameters()) == []
    assert model(X.requires_grad_()).requires_grad
