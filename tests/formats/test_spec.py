from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import quantmm as qmm
from hypothesis import given
from hypothesis import strategies as st
from quantmm.errors import SpecError

FIELDS = [
    ("n", 0, "n=0"),
    ("k", -1, "k=-1"),
    ("n", 2.0, "n=2.0"),
    ("m", 0, "m=0"),
    ("weight", "int3", "weight='int3'; expected one of int8"),
    ("activation", "float32", "activation='float32'"),
    ("n", True, "n=True"),
    ("n", np.True_, "n=.*True"),
    ("m", "2", "m='2'; expected a whole number of at least 1"),
    ("weight", ["int8"], r"weight=\['int8'\]; expected one of int8"),
    ("weight", np.array(["int8", "int4"]), "weight=array.*; expected one of int8"),
    ("group_size", np.array([8, 8]), "group_size=array.*; expected None"),
    ("group_size", 12, "multiple of 8"),
    ("group_size", "channel", "group_size='channel'"),
    ("activation_scale", "group", "activation_scale='group'"),
    ("input", "float64", "input='float64'"),
    ("out", "int16", "out='int16'"),
    ("activation_fn", "softmax", "activation_fn='softmax'"),
    ("bias", 1, "bias=1; expected True or False"),
    ("dynamic", True, "needs input="),
]
TEXT = '{"n": 4, "k": 8%s}'


@pytest.mark.parametrize(("name", "value", "message"), FIELDS)
def test_refused_values(name, value, message):
    with pytest.raises(SpecError, match=message):
        qmm.MatmulSpec(**{"n": 4, "k": 4, name: value})


def test_groups_of_activations_have_no_order():
    with pytest.raises(SpecError, match="weight_order=True with activation_scale='group', whose"):
        qmm.MatmulSpec(n=4, k=64, group_size=8, activation_scale="group", weight_order=True)


def test_packed_activations_have_no_order():
    with pytest.raises(SpecError, match="weight_order=True with packed int4 activations, two of"):
        qmm.MatmulSpec(n=4, k=4, activation="int4", weight_order=True)
    qmm.MatmulSpec(n=4, k=4, activation="int4", weight_order=True, input="float32", dynamic=True)


def test_whole_numbers_of_any_type():
    spec = qmm.MatmulSpec(n=np.int64(8), k=np.uint8(16), m=np.int32(2), group_size=np.int16(8))
    assert spec == qmm.MatmulSpec(n=8, k=16, m=2, group_size=8)
    assert {type(value) for value in (spec.n, spec.k, spec.m, spec.group_size)} == {int}
    assert qmm.MatmulSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    "fields", [{"bias": True}, {"residual": True}, {"activation_fn": "relu"}, {"gated": True}]
)
def test_int32_is_the_bare_accumulator(fields):
    with pytest.raises(SpecError, match="bare accumulator"):
        qmm.MatmulSpec(n=4, k=4, out="int32", **fields)


def test_int32_has_one_group():
    with pytest.raises(SpecError, match="one accumulator per output"):
        qmm.MatmulSpec(n=4, k=64, out="int32", group_size=32)
    assert qmm.MatmulSpec(n=4, k=64, out="int32", group_size=64).groups == 1


@pytest.mark.parametrize(
    ("formats", "limit"),
    [
        ({}, 131071),  # (2**31 - 1) // (128 * 128)
        ({"activation": "uint8"}, 65793),  # // (255 * 128)
        ({"activation": "uint8", "activation_zero_point": True}, 65793),
        ({"activation_zero_point": True}, 65793),
        ({"weight": "int4", "activation": "int4"}, 2**31 // 64 - 1),
        ({"weight": "int7"}, 2**31 // (128 * 64) - 1),
        ({"weight": "int7", "weight_zero_point": True}, 132104),  # // (128 * 127)
        ({"weight": "uint8", "weight_zero_point": True}, 65793),
    ],
)
def test_k_is_limited_by_int32(formats, limit):
    assert qmm.MatmulSpec(n=1, k=limit, **formats).k_limit == limit
    with pytest.raises(SpecError, match=f"exact up to {limit}"):
        qmm.MatmulSpec(n=1, k=limit + 1, **formats)
    assert qmm.MatmulSpec(n=1, k=limit + 1, group_size=64, **formats).groups > 1


def test_the_worst_sum_at_the_limit_fits_int32():
    k = qmm.MatmulSpec(n=1, k=1).k_limit
    worst = np.full((1, k), -128, np.int8)
    w = qmm.QTensor(worst, np.ones(1, np.float32), None, "int8", None, (1, k))
    spec = qmm.MatmulSpec(n=1, k=k, out="int32")
    y = qmm.compile(spec)(worst, w)
    assert y[0, 0] == k * 128 * 128 <= 2**31 - 1
    assert y == qmm.reference(spec, worst, w)


def test_is_frozen_and_hashable():
    spec = qmm.MatmulSpec(n=4, k=8)
    assert spec == qmm.MatmulSpec(n=4, k=8)
    assert len({spec, qmm.MatmulSpec(n=4, k=8), qmm.MatmulSpec(n=4, k=9)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.n = 5


@given(
    st.integers(1, 999),
    st.integers(1, 999),
    st.sampled_from([None, "tensor", 32]),
    st.booleans(),
    st.sampled_from(["float32", "float16", "int8"]),
)
def test_json_round_trip(n, k, group_size, bias, out):
    spec = qmm.MatmulSpec(n=n, k=k, group_size=group_size, bias=bias, out=out)
    assert qmm.MatmulSpec.from_json(spec.to_json()) == spec


def test_dynamic_specs_have_a_scale_for_each_row():
    with pytest.raises(SpecError, match=r"activation_scale='tensor' with dynamic=True.* 'row'"):
        qmm.MatmulSpec(n=4, k=4, input="float32", dynamic=True, activation_scale="tensor")


@pytest.mark.parametrize("group_size", [None, "tensor"])
def test_scales_of_groups_need_groups(group_size):
    with pytest.raises(SpecError, match=f"'group' with group_size={group_size!r}, which has no gr"):
        qmm.MatmulSpec(n=4, k=64, group_size=group_size, activation_scale="group")


@pytest.mark.parametrize(
    ("scale", "group_size", "covers", "count"),
    [
        ("tensor", 32, "tensor", 1),
        ("row", 32, None, 1),
        ("group", 32, 32, 3),
        ("group", 96, 96, 1),
    ],
)
def test_what_an_activation_scale_covers(scale, group_size, covers, count):
    spec = qmm.MatmulSpec(n=4, k=70, group_size=group_size, activation_scale=scale)
    assert (spec.x_group_size, spec.x_groups) == (covers, count)
    assert qmm.MatmulSpec.from_json(spec.to_json()) == spec


def test_json_says_what_an_activation_scale_covers():
    row, tensor = (qmm.MatmulSpec(n=4, k=8, activation_scale=each) for each in ("row", "tensor"))
    assert row == qmm.MatmulSpec(n=4, k=8)
    for spec in (row, tensor):
        assert spec.to_json() == TEXT % f', "activation_scale": "{spec.activation_scale}"'
        assert qmm.MatmulSpec.from_json(spec.to_json()) == spec
    # As it was written when "tensor" was the default.
    assert qmm.MatmulSpec.from_json(TEXT % "") == tensor
    dynamic = dataclasses.replace(row, input="float32", dynamic=True)
    assert qmm.MatmulSpec.from_json(TEXT % ', "dynamic": true, "input": "float32"') == dynamic


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a spec in JSON"),
        ("[1]", "JSON object, not list"),
        ('{"n": 1}', "needs 'k'"),
        ('{"n": 1, "k": 1, "q": 1}', "no field 'q'"),
        ('{"n": 0, "k": 1}', "n=0"),
    ],
)
def test_damaged_json(text, message):
    with pytest.raises(SpecError, match=message):
        qmm.MatmulSpec.from_json(text)
