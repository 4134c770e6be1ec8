"""What the kernel tests draw: every spec that compiles, and arrays that lie anyhow in memory."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import quantmm as qmm
from hypothesis import settings
from hypothesis import strategies as st
from quantmm.formats.problem import (
    activation,
    bind_arguments,
    call_arguments,
    difference,
    integers,
    random_spec,
    weight,
)

__all__ = [
    "activation",
    "assert_agrees",
    "bind_arguments",
    "call_arguments",
    "compiled",
    "examples",
    "integers",
    "lay_out",
    "specs",
    "weight",
]


def examples(many):
    """Settings of a test that compiles in each example: `many` in depth, else a quarter."""
    deep = settings.get_current_profile_name() == "deep"
    return settings(max_examples=many if deep else max(1, many // 4))


def compiled(spec, target="host", *, rows, **options):
    """A kernel that has no other functions than those that these numbers of rows use."""
    from quantmm.compiler import cpu

    every = cpu.choose

    def few(plan, record=None):
        choices = every(plan, record)
        used = []
        for m in rows:
            fit = (each for each in choices if each[1].serves(m))
            used.append(min(fit, key=lambda each, m=m: each[1].cost_of(m)))
        return [each for each in choices if each in used]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "choose", few)
        return qmm.compile(spec, target, cache=False, **options)


@st.composite
def specs(draw, max_n=150, max_k=300, m=None, experts=(None, None, None, 1, 4)):
    n = draw(st.one_of(st.integers(1, max_n), st.sampled_from([1, 16, 17, 64, 96])))
    k = draw(st.one_of(st.integers(1, max_k), st.sampled_from([1, 3, 4, 63, 64, 65, 256])))
    spec = random_spec(lambda choices: draw(st.sampled_from(choices)), n, k, experts)
    return dataclasses.replace(spec, m=m)


def lay_out(rng, array):
    """The same values at an odd address, with strides, transposed, reversed, or as they are."""
    rows, columns = array.shape
    way = rng.integers(5)
    if way == 0:
        raw = np.zeros(array.nbytes + 64, np.uint8)
        offset = int(rng.integers(1, 64)) // array.itemsize * array.itemsize + array.itemsize
        result = raw[offset : offset + array.nbytes].view(array.dtype).reshape(array.shape)
    elif way == 1:
        wide = np.zeros((rows, columns + int(rng.integers(1, 9))), array.dtype)
        result = wide[:, 1 : columns + 1] if wide.shape[1] > columns else wide
    elif way == 2:
        result = np.zeros((columns, rows), array.dtype).T
    elif way == 3:
        result = np.zeros((2 * rows, 3 * columns), array.dtype)[::-2, ::-3]
    else:
        return array
    result[...] = array
    return result


def assert_agrees(y, expected):
    """Integers equal, floats within one unit in the last place; or between such bounds."""
    assert difference(y, expected) is None
