"""What a candidate's results are compared with: some columns of the reference at a time."""

from __future__ import annotations

import numpy as np
import pytest
import quantmm as qmm
from quantmm.formats.problem import Problem
from quantmm.formats.reference import bounds
from quantmm.tuning.measure import ends_of, slices

FLOATS = {"input": "float32", "dynamic": True}


@pytest.mark.parametrize(
    "fields",
    [
        {"weight_order": True},
        {"weight_offset": True, "weight": "int4", "group_size": 32},
        {"gated": True, "activation_fn": "silu", "bias": True},
        {"bias": True, "residual": True, "group_size": "tensor"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_columns_are_those_of_the_whole(fields):
    problem = Problem(qmm.MatmulSpec(n=70, k=90, **fields, **FLOATS), 5)
    x, w = problem.activation(), problem.weight()
    whole = bounds(problem.spec, x, w, **problem.bind_arguments(), **problem.call_arguments())
    for columns in [*slices(70), slice(3, 20)]:
        low, high = ends_of(problem, x, w, columns)
        assert np.array_equal(low, whole.low[:, columns])
        assert np.array_equal(high, whole.high[:, columns])
