"""A module gives what the reference gives, for every shape, dtype and format of its input."""

from __future__ import annotations

import numpy as np
import problems
import pytest
import quantmm as qmm
from hypothesis import given
from hypothesis import strategies as st
from quantmm.errors import ArrayError, ModuleError, SpecError

torch = pytest.importorskip("torch", reason="torch is not installed")
import torch_modules as tm
from quantmm import nn as qnn

FORMATS = tm.FORMATS
FLOATS = {"input": "float32", "dynamic": True}
#: Beside those that have names.
SPECS = [
    qmm.MatmulSpec(n=17, k=33, weight="uint4", group_size=8, weight_zero_point=True, **FLOATS),
    qmm.MatmulSpec(n=5, k=9, weight="uint8", weight_zero_point=True, bias=True, **FLOATS),
    qmm.MatmulSpec(n=8, k=64, group_size="tensor", activation_fn="gelu", **FLOATS),
    qmm.MatmulSpec(n=1, k=1, activation="uint8", activation_zero_point=True, **FLOATS),
    qmm.MatmulSpec(n=9, k=70, group_size=16, activation_scale="group", bias=True, **FLOATS),
]

leading_shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@pytest.mark.parametrize("format", FORMATS)
@problems.examples(25)
@given(shape=leading_shapes, dtype=st.sampled_from(tm.DTYPES), seed=st.integers(0, 99))
def test_any_leading_shape_and_dtype(format, shape, dtype, seed):
    module = tm.one_layer(format)
    torch.manual_seed(seed)
    x = torch.randn((*shape, module.in_features)).to(dtype)
    tm.assert_agrees(module(x), module, x)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.to_json())
def test_specs_without_a_name(spec):
    module = tm.layer(format=spec)
    x = torch.randn(2, 3, spec.k)
    tm.assert_agrees(module(x), module, x)


@pytest.mark.parametrize("format", ["w4a8-g128-xg", "w4a8-g32-xg", "w8a8-g32-xg"])
def test_named_formats_with_scales_of_groups(format):
    module = tm.layer(format=format)
    assert format in repr(module)
    assert module.spec.activation_scale == "group"
    for x in (torch.randn(2, 3, 70), torch.randn(0, 70), torch.randn(70).bfloat16()):
        tm.assert_agrees(module(x), module, x)


def test_a_spec_for_another_float_serves_all():
    spec = qmm.MatmulSpec(n=33, k=70, input="bfloat16", out="bfloat16", dynamic=True, bias=True)
    module = tm.layer(format=spec)
    x = torch.randn(3, 70)
    tm.assert_agrees(module(x), module, x)
    assert module.spec == tm.one_layer().spec


@pytest.mark.parametrize(
    "lay",
    [
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        lambda x: x.mT.contiguous().mT,
        lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
        lambda x: torch.stack([x, x], -1)[..., 0],
        lambda x: x[:1].expand(x.shape),
        lambda x: torch._neg_view(x),
        lambda x: torch.nn.Parameter(x, requires_grad=False),
    ],
    ids=["transposed", "columns", "wide", "spread", "expanded", "negated", "parameter"],
)
def test_any_strides(lay):
    module = tm.one_layer()
    x = lay(torch.randn(2, 3, 70))
    tm.assert_agrees(module(x), module, x)
    tm.assert_agrees(module(x[0]), module, x[0])


@pytest.mark.parametrize("format", FORMATS)
def test_the_dequantized_weight_is_that_of_quantmm(format):
    module = tm.one_layer(format)
    np.testing.assert_array_equal(module.dequantize(), qmm.dequantize(module.to_quantized()))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.to_json())
def test_so_it_is_with_zero_points(spec):
    module = tm.layer(format=spec)
    np.testing.assert_array_equal(module.dequantize(), qmm.dequantize(module.to_quantized()))


@pytest.mark.parametrize("dtype", [*tm.DTYPES, torch.float64])
def test_weights_of_every_float(dtype):
    linear = torch.nn.Linear(70, 33).to(dtype)
    module = qnn.Linear.from_float(linear)
    w = qmm.quantize(linear.weight.detach().double().numpy())
    np.testing.assert_array_equal(module.data, w.data)
    np.testing.assert_array_equal(module.scale, w.scale)
    assert torch.equal(module.bias, linear.bias.float())
    assert linear.weight.dtype == dtype


def test_from_quantized_takes_the_numbers():
    rng = np.random.default_rng(0)
    W, bias = rng.standard_normal((33, 70)), rng.standard_normal(33)
    w = qmm.quantize(W, "uint4", group_size=32)
    module = qnn.Linear.from_quantized(w, bias)
    again = module.to_quantized()
    assert (again.dtype, again.group_size, again.shape) == (w.dtype, w.group_size, w.shape)
    for name in ("data", "scale", "zero_point"):
        np.testing.assert_array_equal(getattr(again, name), getattr(w, name))
    x = torch.randn(3, 70)
    tm.assert_agrees(module(x), module, x)
    before = module(x)
    w.data[:] = 0
    assert torch.equal(module(x), before)


def test_a_weight_without_the_zero_points_that_its_spec_has():
    w = qmm.quantize(np.ones((4, 8), np.float32), "uint8", symmetric=True)
    spec = qmm.MatmulSpec(n=4, k=8, weight="uint8", weight_zero_point=True, **FLOATS)
    module = qnn.Linear.from_quantized(w, spec=spec)
    assert torch.equal(module.zero_point, torch.zeros(4, dtype=torch.int32))
    x = torch.randn(2, 8)
    tm.assert_agrees(module(x), module, x)


def test_a_new_module_computes_zero():
    module = qnn.Linear(70, 33)
    assert torch.equal(module(torch.randn(2, 70)), torch.zeros(2, 33))


def test_printed():
    assert repr(tm.layer(format="w4a8-g32")) == (
        "Linear(in_features=70, out_features=33, bias=True, format=w4a8-g32)"
    )
    assert "weight=uint4" in repr(tm.layer(format=SPECS[0]))


def test_training_mode_is_taken_over():
    assert not qnn.Linear.from_float(torch.nn.Linear(8, 8).eval()).training
    assert qnn.Linear.from_float(torch.nn.Linear(8, 8)).training


X = [
    (torch.randn(3, 71), r"x has shape \(3, 71\); expected \(\.\.\., 70\)"),
    (torch.randn(2, 35, 2), r"x has shape \(2, 35, 2\); expected \(\.\.\., 70\)"),
    (torch.randn(71), r"x has shape \(71,\); expected \(\.\.\., 70\)"),
    (torch.randn(0, 7), r"x has shape \(0, 7\); expected \(\.\.\., 70\)"),
    (torch.tensor(1.0), r"x has shape \(\); expected \(\.\.\., 70\)"),
    (torch.randn(3, 70).double(), "x is float64; expected one of float32, float16, bfloat16"),
    (torch.ones(3, 70, dtype=torch.int8), "x is int8; expected one of float32"),
    (torch.randn(3, 70).to_sparse(), "x is a sparse_coo tensor; expected a dense one"),
    (torch.randn(2, 3, 70).to_sparse(), "x is a sparse_coo tensor; expected a dense one"),
]


@pytest.mark.parametrize(("x", "message"), X)
def test_inputs_that_do_not_fit(x, message):
    with pytest.raises(ArrayError, match=message):
        tm.one_layer()(x)


REFUSED = [
    ("w9", "no format 'w9'; expected one of int8, int7, w8a8-dynamic"),
    ("int8", "input=None, dynamic=False; expected a float input and dynamic=True"),
    (8, "format=8; expected a MatmulSpec or one of"),
    (
        qmm.MatmulSpec(n=33, k=71, bias=True, **FLOATS),
        "n=33, k=71, bias=True in the spec; the module has n=33, k=70, bias=True",
    ),
    (qmm.MatmulSpec(n=33, k=70, **FLOATS), "bias=False in the spec; the module has .*bias=True"),
    (
        qmm.MatmulSpec(n=33, k=70, bias=True, out="int8", **FLOATS),
        "out='int8' with input='float32'; expected the same",
    ),
    (
        qmm.MatmulSpec(n=33, k=70, bias=True, residual=True, **FLOATS),
        "residual=True; expected False",
    ),
    (qmm.MatmulSpec(n=33, k=70, bias=True, m=4, **FLOATS), "m=4; expected None"),
    (qmm.MatmulSpec(n=33, k=70, bias=True, experts=2, **FLOATS), "experts=2; expected None"),
]


@pytest.mark.parametrize(("format", "message"), REFUSED, ids=lambda each: str(each)[:20])
def test_formats_that_do_not_fit(format, message):
    with pytest.raises(SpecError, match=message):
        qnn.Linear.from_float(torch.nn.Linear(70, 33), format)


def test_what_is_no_linear():
    with pytest.raises(ModuleError, match=r"module is ReLU; expected a torch\.nn\.Linear"):
        qnn.Linear.from_float(torch.nn.ReLU())
    with pytest.raises(ArrayError, match="w is ndarray; expected a QTensor"):
        qnn.Linear.from_quantized(np.ones((2, 2)))


def test_weights_that_are_not_finite():
    linear = torch.nn.Linear(4, 4)
    linear.weight.data[1, 1] = float("nan")
    with pytest.raises(ArrayError, match=r"x holds NaN or infinity.*; expected finite numbers"):
        qnn.Linear.from_float(linear)


def test_a_weight_that_its_spec_does_not_describe():
    w = qmm.quantize(np.ones((4, 8), np.float32))
    with pytest.raises(ArrayError, match=r"w is int8\(4, 8\).*the spec has int4\(4, 8\)"):
        qnn.Linear.from_quantized(w, spec=qmm.MatmulSpec(n=4, k=8, weight="int4", **FLOATS))
    with pytest.raises(ArrayError, match=r"bias is float64\(3,\); expected float32\(4,\)"):
        qnn.Linear.from_quantized(w, np.ones(3))
