"""What quantmm wrote itself is opened like any other model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import quantmm as qmm
from quantmm.errors import WeightFileError
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

W = np.random.default_rng(0).standard_normal((6, 33)).astype(np.float32)


def same(a, b):
    np.testing.assert_array_equal(qmm.dequantize(a), qmm.dequantize(b))
    assert (a.dtype, a.group_size, a.shape) == (b.dtype, b.group_size, b.shape)


def test_saved_weights(tmp_path):
    q, u = qmm.quantize(W), qmm.quantize(W, "uint4", group_size=8, offset=True)
    spec = q.spec(bias=True, out="float16")
    qmm.save_weights(tmp_path / "q.safetensors", {"a.b": (q, spec), "c": (u, None)})
    model = qmm.open_model(tmp_path / "q.safetensors")
    assert (model.format, list(model), len(model.tensors)) == ("quantmm", ["a.b", "c"], 0)
    same(model["a.b"], q)
    same(model["c"], u)
    assert model.layers["a.b"].spec(bias=True) == spec
    assert model.layers["c"].spec() == u.spec(input="float32", dynamic=True)
    assert model.layers["c"].format == "quantmm uint4 g=8 offsets"
    assert model.layers["c"].nbytes == u.data.nbytes + u.scale.nbytes + u.offset.nbytes


@pytest.mark.parametrize("name", ["w4a8-g32-offset", "w8a8-dynamic"])
def test_states_of_modules(torch, tmp_path, name):
    from quantmm.nn import Linear
    from safetensors.torch import save_file as save_state

    module = Linear.from_float(torch.nn.Linear(33, 6), name)
    state = {f"up.{key}": value for key, value in module.state_dict().items()}
    save_state(state, tmp_path / "m.safetensors")
    model = qmm.open_model(tmp_path)
    assert list(model) == ["up"]
    assert list(model.tensors) == ["up.bias"]
    np.testing.assert_array_equal(model["up"].data, module.data.numpy())
    assert model.layers["up"].spec(bias=True) == module.spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spec": 3}, "a: a spec is a JSON object"),
        ({"spec": {"n": 6, "k": 32}}, "a: w is int8.*the spec has int8"),
        ({"shape": [6]}, "a is damaged: not enough values|a: shape"),
        ({"dtype": "int5", "shape": [6, 33]}, "a: weight='int5'; expected one of"),
        ({"version": 9}, "a: version=9; this quantmm reads 1 and 2"),
    ],
)
def test_damage(tmp_path, change, message):
    path = tmp_path / "q.safetensors"
    qmm.save_weights(path, {"a": (qmm.quantize(W), None)})
    with safe_open(path, framework="np") as file:
        says = json.loads(file.metadata()["quantmm:a"])
    save_file(load_file(path), path, {"quantmm:a": json.dumps(says | change)})
    with pytest.raises(WeightFileError, match=message):
        qmm.open_model(path)["a"]


def test_a_gate_and_up_stay_gated(tmp_path):
    w = qmm.quantize(W)
    spec = w.spec(n=3, gated=True, activation_fn="silu", input="float32", dynamic=True)
    qmm.save_weights(tmp_path / "q.safetensors", {"a": (w, spec)})
    assert qmm.open_model(tmp_path / "q.safetensors").layers["a"].spec() == spec
