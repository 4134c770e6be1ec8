"""Several weights in one call: the units that it is cut into, its results, and what it refuses."""

from __future__ import annotations

import itertools

import numpy as np
import problems
import pytest
import quantmm as qmm
from hypothesis import given
from hypothesis import strategies as st
from quantmm.errors import ArrayError, SpecError
from quantmm.runtime.units import UnitSize, units_of

SPEC = qmm.MatmulSpec(
    n=70, k=90, input="float32", dynamic=True, bias=True, residual=True, experts=4
)
WEIGHT = problems.weight(np.random.default_rng(0), SPEC)
BIAS = np.random.default_rng(1).standard_normal((4, 70)).astype(np.float32)


@pytest.fixture(scope="module")
def linear():
    return qmm.compile(SPEC).bind(WEIGHT, BIAS)


def arrays(m):
    rng = np.random.default_rng(m)
    x, residual = (rng.standard_normal((m, size)).astype(np.float32) for size in (90, 70))
    return x, residual


def assert_right(y, x, residual, offs):
    wanted = qmm.reference(SPEC, x, WEIGHT, bias=BIAS, residual=residual, offs=offs)
    problems.assert_agrees(np.asarray(y), wanted)


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=12),
    st.integers(1, 9),
    st.integers(1, 5),
    st.integers(1, 20),
    st.integers(1, 16),
)
def test_units_cover_every_row_and_panel_once(counts, tile, tiles, panels, threads):
    ends = list(itertools.accumulate(counts))
    size = UnitSize(tile, tile * tiles, panels, least=2)
    seen = np.zeros((ends[-1], panels), int)
    owner = np.repeat(np.arange(len(counts)), counts)
    for expert, row, rows, first, count in units_of(ends, size, threads):
        assert 0 < rows <= size.rows
        assert count > 0
        assert (owner[row : row + rows] == expert).all()
        seen[row : row + rows, first : first + count] += 1
    assert (seen == 1).all()


def test_threads_have_several_units_each():
    size = UnitSize(4, 64, panels=100, least=4)
    assert len(units_of([1, 2, 3, 4], size, 1)) == 4
    assert len(units_of([1, 2, 3, 4], size, 8)) >= 64
    assert len(units_of([1, 2, 3, 4], size, 64)) == 4 * 25  # no share is below 4 panels


@pytest.mark.parametrize("counts", [(0, 3, 0, 14), (1, 1, 1, 1), (0, 0, 41, 0), (0, 0, 0, 0)])
@pytest.mark.parametrize("threads", [1, 2])
def test_each_expert_multiplies_its_rows(linear, counts, threads):
    offs = np.cumsum(counts)
    x, residual = arrays(sum(counts))
    y = linear(x, residual=residual, offs=offs, num_threads=threads)
    assert_right(y, x, residual, offs)


def test_each_multiplies_as_if_it_were_alone(linear):
    x, residual = arrays(9)
    y = linear(x, residual=residual, offs=[2, 2, 8, 9])
    one = qmm.compile(SPEC.of_one).bind(WEIGHT.rows(slice(140, 210)), BIAS[2])
    assert np.array_equal(y[2:8], one(x[2:8], residual=residual[2:8]))


def test_more_rows_than_a_function_computes(linear, monkeypatch):
    monkeypatch.setattr(type(linear.kernel), "most_rows", 7)
    x, residual = arrays(30)
    offs = [5, 16, 16, 30]
    assert_right(linear(x, residual=residual, offs=offs), x, residual, offs)


def test_any_shape_and_place_of_the_arrays(linear, torch):
    x, residual = arrays(12)
    offs = [1, 6, 6, 12]
    y = linear(
        torch.from_numpy(x).reshape(3, 4, 90),
        residual=torch.from_numpy(residual).reshape(3, 4, 70),
        offs=torch.tensor(offs),
    )
    assert y.shape == (3, 4, 70)
    assert_right(y.reshape(12, 70), x, residual, offs)
    wanted, out = residual.copy(), residual
    assert linear(x, out, residual=out, offs=offs) is out
    assert_right(out, x, wanted, offs)


def test_a_packed_weight_is_kept_and_copied(linear, tmp_path):
    linear.kernel.save(tmp_path / "experts.qmm")
    x, residual = arrays(6)
    offs = [0, 1, 3, 6]
    loaded = qmm.load(tmp_path / "experts.qmm").bind(WEIGHT, BIAS)
    for each in (loaded, linear.duplicate()):
        assert_right(each(x, residual=residual, offs=offs), x, residual, offs)


def test_a_report_is_of_rows_that_are_shared_out_evenly(linear):
    few, many = linear.kernel.report((4, 256))
    assert (few["strategy"], many["strategy"]) == ("gemv", "gemm")


@pytest.mark.parametrize(
    ("offs", "message"),
    [
        (None, "offs is missing; the spec has 4 experts, whose rows of x end there"),
        ([2, 1, 3, 5], "offs has 1 for expert 1, whose rows begin at 2"),
        ([-1, 1, 3, 5], "offs has -1 for expert 0, whose rows begin at 0"),
        ([1, 2, 3, 9], "offs ends at 9; x has 5 rows"),
        ([1, 2, 3, 4], "offs ends at 4; x has 5 rows"),
        ([1, 5], r"offs is int64\(2,\); expected integers of shape \(4,\)"),
        ([1.0, 2.0, 3.0, 5.0], r"offs is float64\(4,\); expected integers of shape \(4,\)"),
    ],
)
def test_ends_that_do_not_fit(linear, offs, message):
    x, residual = arrays(5)
    with pytest.raises(ArrayError, match=message):
        linear(x, residual=residual, offs=offs)
    with pytest.raises(ArrayError, match=message):
        qmm.reference(SPEC, x, WEIGHT, bias=BIAS, residual=residual, offs=offs)


def test_what_takes_x_alone_has_no_experts(linear):
    x, _ = arrays(5)
    with pytest.raises(ArrayError, match="offs is missing"):
        linear.compute(5, x, np.empty((5, 70), np.float32))


def test_what_is_kept_of_calls_does_not_grow_with_the_experts_that_have_rows(linear):
    x, residual = arrays(8)
    linear.kernel.ready.clear()
    for offs in ([8, 8, 8, 8], [4, 8, 8, 8], [2, 4, 6, 8]):
        linear(x, residual=residual, offs=offs)
    assert linear.kernel.ready.keys() == {8, 4, 2}


def test_ends_for_one_weight():
    spec = qmm.MatmulSpec(n=70, k=90, input="float32", dynamic=True)
    x, w = arrays(5)[0], WEIGHT.rows(slice(70))
    with pytest.raises(ArrayError, match="offs was given; the spec has one weight, experts=None"):
        qmm.compile(spec).bind(w)(x, offs=[5])
    with pytest.raises(ArrayError, match="offs was given; the spec has one weight"):
        qmm.reference(spec, x, w, offs=[5])


def test_numbers_of_experts_and_weights_that_do_not_fit():
    with pytest.raises(SpecError, match="experts=0; expected a whole number of at least 1"):
        qmm.MatmulSpec(n=70, k=90, experts=0)
    with pytest.raises(ArrayError, match=r"w is int8\(210, 90\).*the spec has int8\(280, 90\)"):
        qmm.compile(SPEC).bind(WEIGHT.rows(slice(210)), BIAS)
    with pytest.raises(ArrayError, match=r"bias is float32\(70,\); expected float32\(280,\)"):
        qmm.compile(SPEC).bind(WEIGHT, BIAS[0])
