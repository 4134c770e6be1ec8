"""Several weights in one launch of a GPU, under emulation."""

from __future__ import annotations

import numpy as np
import pytest
import quantmm as qmm
from quantmm.compiler import cuda
from quantmm.compiler.emulation import kernels
from quantmm.errors import ArrayError, UnsupportedError
from quantmm.formats.problem import Problem, check, difference
from quantmm.formats.reference import bounds
from quantmm.runtime.cuda_info import chosen
from quantmm.schedules.cuda import strategies
from quantmm.schedules.cuda.plan import plan_for

FLOATS = {"input": "float32", "dynamic": True}
CASES = [
    ("cuda-sm80", "gemv_4x8", {"out": "int8"}),
    (
        "cuda-sm80",
        "mma_64x64",
        {"weight": "int4", "group_size": 32, "weight_zero_point": True, "bias": True, **FLOATS},
    ),
    (
        "cuda-sm75",
        "splitk_16x32",
        {"group_size": 64, "activation_scale": "group", "residual": True, **FLOATS},
    ),
    ("cuda-sm75-dp4a", "dp4a_32x64", {"weight_offset": True, "activation_zero_point": True}),
]


def built(target="cuda-sm80", function="gemv_1x8", **fields):
    spec = qmm.MatmulSpec(n=20, k=256, **{"experts": 4, **fields})
    return kernels.build(spec, qmm.targets.find(target), function=function, seed=1)


@pytest.mark.parametrize(("target", "function", "fields"), CASES)
def test_every_strategy_computes_experts_in_one_launch(target, function, fields):
    kernel = built(target, function, **fields)
    for seed in (0, 3):
        before = len(kernel.code.gpu.launches)
        assert check(Problem(kernel.spec, 37, seed), kernel) is None
        names = [name for name, *_ in kernel.code.gpu.launches[before:]]
        assert names.count(f"{function}_kernel") == 1


def test_experts_without_rows_and_calls_without_any():
    kernel = built()
    problem = Problem(kernel.spec, 3)
    linear = kernel.bind(problem.weight())
    x, given = problem.activation(), problem.call_arguments()
    for offs in ([0, 0, 3, 3], [3, 3, 3, 3], [0, 0, 0, 3]):
        given["offs"] = np.array(offs)
        expected = bounds(kernel.spec, x, problem.weight(), **given)
        assert difference(linear(x, **given), expected) is None
    none = linear(x[:0], x_scale=given["x_scale"][:0], offs=[0, 0, 0, 0])
    assert none.shape == (0, 20)


def test_more_rows_than_a_launch_has_units(monkeypatch):
    kernel = built(activation_scale="tensor")
    monkeypatch.setattr("quantmm.runtime.cuda_info.MOST_TILES", 2)
    assert check(Problem(kernel.spec, 5), kernel) is None


def test_what_is_chosen_is_for_the_rows_of_each():
    plan = plan_for(qmm.MatmulSpec(n=4096, k=4096, experts=8), qmm.targets.find("cuda-sm90"))
    functions = cuda.functions_of(plan, strategies.variants(plan))
    assert chosen(functions, 1, 132, experts=8).name == "gemv_1x8"
    assert chosen(functions, 512, 132, experts=8).name.startswith("mma_128")


def test_ends_and_weights_that_do_not_fit():
    kernel = built()
    problem = Problem(kernel.spec, 3)
    linear, x = kernel.bind(problem.weight()), problem.activation()
    scale = problem.call_arguments()["x_scale"]
    for offs, message in [
        (None, "offs is missing; the spec has 4 experts"),
        ([0, 2, 1, 3], "offs has 1 for expert 2, whose rows begin at 2"),
        ([0, 1, 2, 2], "offs ends at 2; x has 3 rows"),
    ]:
        with pytest.raises(ArrayError, match=message):
            linear(x, x_scale=scale, offs=offs)
    alone = kernels.build(qmm.MatmulSpec(n=20, k=256), qmm.targets.find("cuda-sm80"))
    with pytest.raises(ArrayError, match="offs was given; the spec has one weight"):
        alone.bind(Problem(alone.spec, 3).weight())(x, x_scale=scale, offs=[3])
    wide = qmm.MatmulSpec(n=16384, k=16384, experts=9)
    with pytest.raises(UnsupportedError, match="n=16384, k=16384 is 2415919104 bytes"):
        plan_for(wide, qmm.targets.find("cuda-sm80"))
