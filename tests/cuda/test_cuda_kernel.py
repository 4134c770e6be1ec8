"""Kernels for GPUs from `compile` to the call, on the emulated driver."""

from __future__ import annotations

import copy
import dataclasses
import functools
import pickle
import random
import subprocess
import sys

import emulated_torch
import numpy as np
import problems
import pytest
import quantmm as qmm
from hypothesis import given
from hypothesis import strategies as st
from quantmm.compiler import cuda, nvrtc
from quantmm.compiler.emulation.driver import EmulatedDriver
from quantmm.compiler.expr import frontend
from quantmm.errors import ArrayError, CudaError, TargetError, ToolError, UnsupportedError
from quantmm.formats.problem import Problem, difference, random_spec
from quantmm.formats.reference import SMOOTH, bounds
from quantmm.formats.spec import stored_as
from quantmm.formats.values import numpy_dtype
from quantmm.runtime import cuda_arrays, cuda_executor, cuda_info, kernel_file
from quantmm.runtime import driver as drivers
from quantmm.runtime.cuda_code import CudaCode
from quantmm.runtime.devices import why_no_gpu
from quantmm.schedules import plan as plans
from quantmm.schedules.cuda import strategies, tiles
from quantmm.schedules.cuda.plan import plan_for

SPEC = qmm.MatmulSpec(n=24, k=256)
ROWS = {row.name: row for row in qmm.targets.CUDA_TARGETS}


def on_emulation(kernel, source=None, seed=None, capability=None):
    """A kernel on an emulated GPU; its driver."""
    capability = capability or kernel.info.capability
    major, minor = kernel.info.capability
    text = f"#define __CUDA_ARCH__ {100 * major + 10 * minor}\n{source or kernel.source}"
    gpu = EmulatedDriver(
        {kernel.cubin: text, kernel.ptx: text},
        capability=capability,
        shared_bytes=ROWS[kernel.info.target].shared_bytes,
        seed=seed,
    )
    kernel.code = CudaCode(kernel.code.content(), kernel.info, gpu)
    return gpu


#: Numbers of rows whose variants most tests are content with.
FEW = (1, 3, 19, 40)


def few_variants(plan, record=None):
    """The variants that FEW rows use."""
    every, processors = strategies.variants(plan), plan.target.multiprocessors
    best = [min(every, key=lambda v, m=m: v.cost(plan.layout).time(m, processors)) for m in FEW]
    return tuple(dict.fromkeys(best))


def without_machine_code(spec, target, choose):
    """A kernel for the emulation, which runs its source, of the variants that `choose` gives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nvrtc, "compile_cuda", lambda source, arch, form: form.encode())
        patch.setattr(cuda, "choose_variants", choose)
        return qmm.compile(spec, target, cache=False)


@functools.cache
def compiled(spec, target, choose=few_variants):
    return without_machine_code(spec, target, choose)


def built(spec, target="cuda-sm80", seed=None, choose=few_variants):
    """A kernel that no other test has, compiled once for them all."""
    first = compiled(spec, target, choose)
    kernel = qmm.Kernel(first.info, first.code, source=first.source)
    return kernel, on_emulation(kernel, seed=seed)


def built_alone(spec, target, variant, seed=None):
    """A kernel of one variant."""
    kernel = without_machine_code(spec, target, lambda *_: (variant,))
    return kernel, on_emulation(kernel, seed=seed)


def check(kernel, problem):
    x, w = problem.activation(), problem.weight(rare=True)
    bind, call = problem.bind_arguments(), problem.call_arguments()
    y = kernel.bind(w, **bind)(x, **call)
    return difference(y, bounds(problem.spec, x, w, **bind, **call))


@problems.examples(25)
@given(st.integers(0, 2**32))
def test_every_spec_on_every_target_agrees_with_the_reference(seed):
    draw = random.Random(seed)
    m = draw.choice([1, 2, 3, 5, 8, 16, 17, 33, 64, 70])
    n, k = draw.randint(1, 80), draw.choice([256, 512, draw.randint(1, 700)])
    spec = random_spec(lambda choices: draw.choice(list(choices)), n, k, (None, None, None, 1, 5))
    target = draw.choice(qmm.targets.CUDA_TARGETS)
    variant = draw.choice(strategies.variants(plan_for(spec, target)))
    kernel, _ = built_alone(spec, target, variant, seed=draw.choice([None, 1, 2]))
    assert check(kernel, Problem(spec, m, seed % 1000)) is None, (target.name, spec, m)


FORMATS = [
    {},
    {"weight": "int4", "out": "int8"},
    {"weight": "uint4", "group_size": 32, "weight_zero_point": True, "out": "float16"},
    {"group_size": 320, "activation": "uint8", "activation_zero_point": True, "bias": True},
    {"weight": "int4", "group_size": 32, "weight_offset": True, "activation_zero_point": True},
    {"weight_offset": True, "input": "float32", "dynamic": True, "activation_zero_point": True},
]
#: Activations with a scale for each group, found in the call or given.
FORMATS += [
    {"weight": "int4", "group_size": 32, "activation_scale": "group", "bias": True}
    | {"input": "float32", "dynamic": True, "activation_zero_point": True},
    {"group_size": 64, "activation_scale": "group", "residual": True},
]


@pytest.mark.parametrize(
    ("target", "fields"),
    [
        ("cuda-sm75-dp4a", FORMATS[0]),
        ("cuda-sm75-dp4a", FORMATS[2]),
        ("cuda-sm75", FORMATS[1]),
        ("cuda-sm80", FORMATS[2]),
        ("cuda-sm86", FORMATS[3]),
        ("cuda-sm90", FORMATS[0]),
        ("cuda-sm90", FORMATS[1]),
        ("cuda-sm75-dp4a", FORMATS[6]),
        ("cuda-sm80", FORMATS[6]),
        ("cuda-sm75", FORMATS[7]),
        ("cuda-sm80", FORMATS[4]),
        ("cuda-sm75-dp4a", FORMATS[4]),
        ("cuda-sm90", FORMATS[5]),
    ],
)
def test_every_kernel_of_a_target_agrees_with_the_reference(target, fields):
    spec = qmm.MatmulSpec(n=40, k=600, **fields)
    kernel, gpu = built(spec, target, seed=3, choose=cuda.choose_variants)
    for variant in kernel.info.variants:
        only = dataclasses.replace(kernel.info, variants=(variant,))
        alone = qmm.Kernel(only, kernel.code)
        m = variant.rows + 1
        assert check(alone, Problem(spec, m)) is None, (variant, m)
    ran = {name for name, _, _ in gpu.launches}
    assert ran == {launch.name for launch in kernel.info.launches.values()}


@pytest.mark.parametrize("function", SMOOTH)
def test_smooth_functions_over_their_whole_range(function):
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 2**32, 300, dtype=np.uint32).view(np.float32)
    special = np.array([np.inf, -np.inf, np.nan, -0.0, 3e38, -3e38, 1e-45], np.float32)
    bends = [rng.uniform(-s, s, 40).astype(np.float32) for s in (1, 5, 20, 100)]
    bias = np.concatenate([wide, special, *bends])
    spec = qmm.MatmulSpec(n=len(bias), k=16, activation_fn=function, bias=True)
    kernel, _ = built(spec)
    problem, x = Problem(spec, 1), np.zeros((1, 16), np.int8)
    given = {"bias": bias, "x_scale": 1.0}
    y = kernel.bind(problem.weight(), **given)(x)
    there = bounds(spec, x, problem.weight(), **given)
    nan = np.isnan(bias) & np.isnan(y)
    assert ((there.low <= y) & (y <= there.high) | nan).all()


@pytest.mark.parametrize(
    "fields", [{}, {"input": "float16", "dynamic": True, "weight_zero_point": True}]
)
def test_columns_in_another_order(fields):
    # K of whole steps, which without an order would be read where it lies.
    spec = qmm.MatmulSpec(n=24, k=256, weight_order=True, **fields)
    kernel, gpu = built(spec)
    assert check(kernel, Problem(spec, 3)) is None
    assert next(name for name, _, _ in gpu.launches) == "prepare_kernel"


@pytest.mark.parametrize("zeros", [False, True])
def test_a_row_with_infinity_gives_nan(zeros):
    spec = qmm.MatmulSpec(
        n=8, k=64, input="float32", dynamic=True, activation_fn="relu", activation_zero_point=zeros
    )
    problem = Problem(spec, 3)
    x, w = problem.activation(), problem.weight()
    kernel, _ = built(spec)
    expected = kernel.bind(w)(x)
    for bad in (np.inf, -np.inf, np.nan):
        x[1, 5] = bad
        y = kernel.bind(w)(x)
        np.testing.assert_array_equal(y[[0, 2]], expected[[0, 2]])
        assert np.isnan(y[1]).all()


#: Formats whose padding differs: of K alone, and of every group.
EDGE_FORMATS = {
    "w8": {"out": "int8", "bias": True},
    "w4-g32": FORMATS[2],
}


@pytest.mark.parametrize("k", [1, 301])
@pytest.mark.parametrize("panels", [1, 2])
@pytest.mark.parametrize("fields", EDGE_FORMATS.values(), ids=EDGE_FORMATS)
@pytest.mark.parametrize(
    ("target", "strategy", "which"),
    [
        ("cuda-sm80", "gemv", 0),
        ("cuda-sm80", "splitk", 0),
        ("cuda-sm80", "mma", 0),
        ("cuda-sm80", "mma", -1),
        ("cuda-sm75", "mma", 0),
        ("cuda-sm75-dp4a", "dp4a", 0),
    ],
)
def test_every_strategy_at_its_edges(target, strategy, which, fields, panels, k):
    # One row and one column; then one more of them than a tile and a panel have.
    spec = qmm.MatmulSpec(n=1, k=k, **fields)
    variants = strategies.variants(plan_for(spec, ROWS[target]))
    variant = [each for each in variants if each.strategy == strategy][which]
    spec = dataclasses.replace(spec, n=(panels - 1) * 8 * variant.tile.blocks + 1)
    kernel, gpu = built_alone(spec, target, variant, seed=1)
    for m, rows_of_tiles in ((1, 1), (variant.tile.rows + 1, 2)):
        assert check(kernel, Problem(spec, m)) is None, (variant.name, m)
        assert gpu.launches[-1][1][:2] == (panels, rows_of_tiles)


def test_the_last_panel_of_a_wide_gemv():
    spec = qmm.MatmulSpec(n=2 * 8 * tiles.MANY_BLOCKS + 1, k=1)
    first, *_ = strategies.variants(plan_for(spec, ROWS["cuda-sm80"]))
    kernel, gpu = built_alone(spec, "cuda-sm80", first)
    assert check(kernel, Problem(spec, 1)) is None
    assert gpu.launches[-1][0] == "gemv_1x16_kernel"


def test_panels_come_in_bands():
    spec = qmm.MatmulSpec(n=4090, k=1)
    variants = strategies.variants(plan_for(spec, ROWS["cuda-sm80"]))
    variant = next(each for each in variants if each.name == "mma_64x64")
    kernel, gpu = built_alone(spec, "cuda-sm80", variant)
    assert check(kernel, Problem(spec, 65)) is None
    assert gpu.launches[-1][1] == (32, 2, 2)


def test_a_kernel_that_lost_its_barriers_is_noticed():
    spec = qmm.MatmulSpec(n=64, k=1024)
    *_, largest = strategies.variants(plan_for(spec, ROWS["cuda-sm80"]))
    kernel, _ = built_alone(spec, "cuda-sm80", largest, seed=1)
    assert check(kernel, Problem(spec, 70)) is None
    on_emulation(kernel, kernel.source.replace("__syncthreads();", ""), seed=1)
    assert check(kernel, Problem(spec, 70)) is not None


def test_x_is_read_where_it_lies_or_made_ready_first():
    kernel, gpu = built(SPEC)
    w = Problem(SPEC, 3).weight()
    linear = kernel.bind(w, x_scale=0.5)
    x = Problem(SPEC, 3).activation()
    linear(x)
    assert [name for name, _, _ in gpu.launches] == ["gemv_1x8_kernel"]
    ragged = dataclasses.replace(SPEC, k=255)
    kernel, gpu = built(ragged)
    kernel.bind(Problem(ragged, 3).weight(), x_scale=0.5)(x[:, :255])
    assert [name for name, _, _ in gpu.launches] == ["prepare_kernel", "gemv_1x8_kernel"]


class OnDevice:
    """A matrix in the emulated device's memory, as CuPy describes its own."""

    def __init__(self, gpu, array, stride=None, offset=0):
        self.gpu, self.shape, self.dtype = gpu, array.shape, array.dtype
        self.stride = (stride or array.shape[1]) * array.itemsize
        self.start = gpu.allocate(0, self.stride * array.shape[0] + offset) + offset
        self.put(array)

    def put(self, array):
        for i, row in enumerate(array):
            self.gpu.copy_to(0, self.start + i * self.stride, np.ascontiguousarray(row), 0)

    def get(self):
        array = np.empty(self.shape, self.dtype)
        for i in range(len(array)):
            row = np.empty(self.shape[1], self.dtype)
            self.gpu.copy_from(0, row, self.start + i * self.stride, 0)
            array[i] = row
        return array

    @property
    def __cuda_array_interface__(self):
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.start, False),
            "strides": (self.stride, self.dtype.itemsize),
            "version": 3,
        }


class Shaped:
    """An array of any dimensions in the emulated device's memory."""

    def __init__(self, gpu, array, columns):
        self.shape = array.shape
        self.matrix = OnDevice(gpu, array.reshape(array.size // columns, columns))

    def reshape(self, *shape):
        return self.matrix

    @property
    def __cuda_array_interface__(self):
        return {**self.matrix.__cuda_array_interface__, "shape": self.shape, "strides": None}


@pytest.mark.parametrize(("stride", "offset"), [(None, 0), (272, 16), (263, 0), (None, 5)])
def test_arrays_on_a_device_are_used_in_place(stride, offset):
    spec = dataclasses.replace(SPEC, residual=True)
    kernel, gpu = built(spec)
    problem = Problem(spec, 19)
    x, w, call = problem.activation(), problem.weight(), problem.call_arguments()
    linear = kernel.bind(w)
    residual = OnDevice(gpu, call.pop("residual"), stride and 40)
    out = OnDevice(gpu, np.zeros((19, 24), np.float32), stride and 37)
    there = OnDevice(gpu, x, stride, offset)
    assert linear(there, out, residual=residual, **call) is out
    expected = qmm.reference(spec, x, w, residual=residual.get(), **call)
    assert difference(out.get(), expected) is None
    in_place = offset % 16 == 0 and stride in (None, 272)
    assert ("prepare_kernel" in [name for name, _, _ in gpu.launches]) == (not in_place)
    allocated = len(gpu.memories)
    linear(there, out, residual=residual, **call)
    assert len(gpu.memories) == allocated  # nothing new for a second call


def test_a_weight_serves_every_kernel_of_its_layout():
    kernel, gpu = built(SPEC, choose=cuda.choose_variants)
    x, w = Problem(SPEC, 19).activation(), Problem(SPEC, 19).weight()
    linear = kernel.bind(w, x_scale=0.5)
    expected = linear(x, num_threads=2)  # which means nothing here, and is no error
    out = OnDevice(gpu, np.zeros((19, 24), np.float32))
    there, before = OnDevice(gpu, x), {*gpu.memories}
    for variant in kernel.info.variants:
        only = qmm.Kernel(dataclasses.replace(kernel.info, variants=(variant,)), kernel.code)
        out.put(np.zeros((19, 24), np.float32))
        linear.for_kernel(only).compute(19, there, out)
        np.testing.assert_array_equal(out.get(), expected)
        assert gpu.launches[-1][0] == kernel.info.launches[variant.name].name
    assert {*gpu.memories} == before
    assert linear.kernel is kernel
    other, _ = built(dataclasses.replace(SPEC, weight="int4"))
    with pytest.raises(ArrayError, match="the weight was packed for a kernel with another layout"):
        linear.for_kernel(other)


def test_memory_is_given_back():
    kernel, gpu = built(SPEC)
    linear = kernel.bind(Problem(SPEC, 1).weight(), x_scale=0.5)
    linear(Problem(SPEC, 1).activation())
    assert gpu.memories
    del linear
    assert not gpu.memories


def test_memory_that_grows_with_m_stays_in_proportion(monkeypatch):
    kernel, gpu = built(SPEC)
    monkeypatch.setattr(kernel.code, "function", lambda device, name: lambda *launch: None)
    linear = kernel.bind(Problem(SPEC, 1).weight(), x_scale=0.5)
    of_weight = {*gpu.memories}
    before = of_weight
    for m in range(1, 200):
        linear(np.ones((m, 256), np.int8))
        assert before <= {*gpu.memories}  # which graphs that were captured may use
        before = {*gpu.memories}
    sizes = [gpu.memories[address].size for address in before - of_weight]
    assert sum(sizes) < 4 * 199 * (256 + 24 * 4)


@pytest.mark.parametrize("other", ["x", "residual"])
def test_out_may_not_share_memory_with_what_is_read(other):
    spec = dataclasses.replace(SPEC, residual=True)
    kernel, gpu = built(spec)
    linear = kernel.bind(Problem(spec, 2).weight(), x_scale=0.5)
    arrays = {"x": np.ones((2, 256), np.int8), "residual": np.zeros((2, 24), np.float32)}
    there = {name: OnDevice(gpu, array) for name, array in arrays.items()}
    out = OnDevice(gpu, np.zeros((2, 24), np.float32))
    start, size = gpu.allocate(0, 2048) + 1024, arrays[other].nbytes
    out.start = start
    for shared in (16, -size + 16, out.shape[0] * out.stride - 16):
        there[other].start = start + shared
        with pytest.raises(ArrayError, match=f"out shares memory with {other}; expected memory of"):
            linear(there["x"], out, residual=there["residual"])
    assert not gpu.launches
    for apart in (-size, out.shape[0] * out.stride):
        there[other].start = start + apart
        there[other].put(arrays[other])
        linear(there["x"], out, residual=there["residual"])
        expected = qmm.reference(spec, x_scale=0.5, w=Problem(spec, 2).weight(), **arrays)
        assert difference(out.get(), expected) is None


@pytest.mark.parametrize(
    ("target", "m"), [("cuda-sm75-dp4a", 3), ("cuda-sm80", 3), ("cuda-sm80", 40)]
)
def test_a_residual_that_is_the_output(target, m):
    spec = qmm.MatmulSpec(n=29, k=256, residual=True)
    kernel, gpu = built(spec, target)
    problem = Problem(spec, m)
    x, w, call = problem.activation(), problem.weight(), problem.call_arguments()
    expected = qmm.reference(spec, x, w, **call)
    for stride in (None, 48):
        h = OnDevice(gpu, call["residual"], stride)
        kernel.bind(w)(OnDevice(gpu, x), h, residual=h, x_scale=call["x_scale"])
        assert difference(h.get(), expected) is None
    h = call["residual"].copy()
    kernel.bind(w)(x, h, residual=h, x_scale=call["x_scale"])
    assert difference(h, expected) is None


def test_a_captured_graph_refuses_what_it_cannot_hold(monkeypatch):
    kernel, gpu = built(dataclasses.replace(SPEC, activation_scale="tensor"))
    linear = kernel.bind(Problem(SPEC, 2).weight(), x_scale=0.5)
    x = OnDevice(gpu, Problem(SPEC, 2).activation())
    out = OnDevice(gpu, np.zeros((2, 24), np.float32))
    monkeypatch.setattr(gpu, "is_capturing", lambda device, stream: True)
    linear(x, out)
    with pytest.raises(CudaError, match="x must be copied from the host: call once before"):
        linear(Problem(SPEC, 2).activation())
    with pytest.raises(CudaError, match="x_scale must be copied from the host: call once before"):
        linear(x, out, x_scale=0.25)
    # Memory is no part of a graph: it may still be had.
    odd = OnDevice(gpu, Problem(SPEC, 2).activation(), offset=1)
    linear(odd, out)
    assert gpu.launches[-2][0] == "prepare_kernel"


@pytest.mark.parametrize("name", ["int8", "float32", "float16", "bfloat16"])
def test_what_torch_does_not_tell_dlpack(name, torch):
    dtype, kind = numpy_dtype(name), getattr(torch, name)
    x = torch.arange(24).reshape(4, 6).to(kind)
    stored = cuda_arrays.on_host("x", -x, dtype, 6)
    assert stored.dtype.name == stored_as(name)
    np.testing.assert_array_equal(stored.view(dtype).astype(int), -np.arange(24).reshape(4, 6))
    for rows in (x, x.repeat(1, 2)[:, :6]):
        found = cuda_arrays.on_host("x", torch._neg_view(rows), dtype, 6)
        np.testing.assert_array_equal(found, stored)
        assert found.flags.c_contiguous
    with pytest.raises(ArrayError, match="x is a Tensor without memory; expected numbers"):
        cuda_arrays.on_host("x", torch._efficientzerotensor((4, 6), dtype=kind), dtype, 6)
    if kind.is_floating_point:
        with pytest.raises(ArrayError, match=r"x requires a gradient.* pass x\.detach\(\)"):
            cuda_arrays.on_host("x", x.requires_grad_(), dtype, 6)


def test_negated_numbers_on_a_device_are_refused(monkeypatch):
    torch = emulated_torch.module(EmulatedDriver())
    monkeypatch.setitem(sys.modules, "torch", torch)
    x = torch.randint(0, 9, (4, 6), dtype=torch.int8, device="cuda")
    assert cuda_arrays.on_device("x", x).shape == (4, 6)
    monkeypatch.setattr(torch.Tensor, "is_neg", lambda self: True)
    with pytest.raises(ArrayError, match="x is a view of negated numbers; expected a tensor of"):
        cuda_arrays.on_device("x", x)


def test_numbers_on_a_device_are_used_in_place(monkeypatch):
    spec = dataclasses.replace(SPEC, activation_scale="row", activation_zero_point=True)
    kernel, gpu = built(spec)
    problem = Problem(spec, 5)
    x, w, call = problem.activation(), problem.weight(), problem.call_arguments()
    there = {name: OnDevice(gpu, value[:, None]) for name, value in call.items()}
    out = OnDevice(gpu, np.zeros((5, 24), np.float32))
    linear = kernel.bind(w)
    monkeypatch.setattr(gpu, "is_capturing", lambda device, stream: True)
    linear(OnDevice(gpu, x), out, **there)
    assert difference(out.get(), qmm.reference(spec, x, w, **call)) is None
    for name, value, message in [
        ("x_scale", np.zeros((4, 1), np.float32), r"x_scale is float32\(4, 1\) on a device; exp"),
        ("x_scale", np.zeros((5, 1)), r"x_scale is float64\(5, 1\) on a device; expected float32"),
        ("x_zero_point", np.zeros((5, 1), np.int8), r"expected int32\(5,\)"),
    ]:
        with pytest.raises(ArrayError, match=message):
            linear(OnDevice(gpu, x), out, **there | {name: OnDevice(gpu, value)})
    apart = OnDevice(gpu, call["x_scale"][:, None], stride=2)
    with pytest.raises(ArrayError, match="x_scale has stride 2 in elements; expected 1"):
        linear(OnDevice(gpu, x), out, **there | {"x_scale": apart})
    monkeypatch.setattr(OnDevice, "device", type("Second", (), {"id": 1}), raising=False)
    second = OnDevice(gpu, call["x_scale"][:, None])
    with pytest.raises(ArrayError, match="x_scale is on CUDA device 1; expected it on 0, as x"):
        cuda_arrays.numbers_on_device("x_scale", second, np.dtype("float32"), (5,), 0)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (0,), (2, 0)])
def test_any_dimensions_before_the_last(lead):
    spec = dataclasses.replace(SPEC, activation_zero_point=True, residual=True)
    kernel, gpu = built(spec)
    m = int(np.prod(lead))
    problem = Problem(spec, m)
    x, w = problem.activation().reshape(*lead, 256), problem.weight()
    call = problem.call_arguments()
    call = {name: each.reshape((*lead, *each.shape[1:])) for name, each in call.items()}
    linear = kernel.bind(w)
    expected = qmm.reference(spec, x, w, **call)
    assert difference(linear(x, **call), expected) is None
    out = Shaped(gpu, np.zeros((*lead, 24), np.float32), 24)
    there = {
        name: Shaped(gpu, each, 24 if name == "residual" else 1) for name, each in call.items()
    }
    assert linear(Shaped(gpu, x, 256), out, **there) is out
    assert difference(out.matrix.get().reshape(expected.shape), expected) is None


@pytest.mark.parametrize(("columns", "m", "fixed"), [(256, 40, None), (257, 17, 17)])
def test_rows_beyond_int32_are_computed_in_parts(monkeypatch, columns, m, fixed):
    # Once with x in place, once made ready first; rows of y lie further apart than those of x.
    for module in (cuda_info, cuda_executor):
        monkeypatch.setattr(module, "MAX_ELEMENTS", 16 * 600)
    spec = qmm.MatmulSpec(n=24, k=columns, activation_zero_point=True, residual=True, m=fixed)
    kernel, gpu = built(spec)
    problem = Problem(spec, m)
    x, w, call = problem.activation(), problem.weight(), problem.call_arguments()
    expected = qmm.reference(spec, x, w, **call)
    linear = kernel.bind(w)
    assert difference(linear(x, **call), expected) is None
    out = OnDevice(gpu, np.zeros((m, 24), np.float32), stride=600)
    gpu.launches.clear()
    there = {name: OnDevice(gpu, each.reshape(m, -1)) for name, each in call.items()}
    linear(OnDevice(gpu, x), out, **there)
    assert difference(out.get(), expected) is None
    assert len(gpu.launches) == -(-m // 16) * (1 if columns == 256 else 2)
    assert [row["m"] for row in kernel.report([m])] == [m]


@pytest.mark.parametrize("target", ["cuda-sm75-dp4a", "cuda-sm80"])
def test_a_weight_whose_last_offset_is_the_last_of_int32(monkeypatch, target):
    layout = plan_for(SPEC, ROWS[target]).layout
    size = int(np.prod(layout.shape))
    for module in (plans, frontend):
        monkeypatch.setattr(module, "MAX_ELEMENTS", size - 1)
    kernel = without_machine_code(SPEC, target, few_variants)
    on_emulation(kernel)
    for m in (1, 17):
        assert check(kernel, Problem(SPEC, m)) is None
    monkeypatch.setattr(plans, "MAX_ELEMENTS", size - 2)
    with pytest.raises(
        UnsupportedError, match=f"is {size} bytes with its padding; expected at most"
    ):
        qmm.compile(SPEC, target, cache=False)


def test_bound_numbers_are_repeated_for_every_row_once(monkeypatch):
    spec = dataclasses.replace(SPEC, activation_zero_point=True)
    kernel, gpu = built(spec)
    w, bound = Problem(spec, 1).weight(), {"x_scale": 0.5, "x_zero_point": -3}
    linear = kernel.bind(w, **bound)
    with monkeypatch.context() as patch:
        patch.setattr(gpu, "is_capturing", lambda device, stream: True)
        x = OnDevice(gpu, Problem(spec, 3).activation())
        with pytest.raises(CudaError, match="x_scale must be repeated for every row: call once"):
            linear(x, OnDevice(gpu, np.zeros((3, 24), np.float32)))
    for m, capturing in ((5, False), (3, True), (5, True), (9, False), (1, True)):
        x = Problem(spec, m).activation()
        out = OnDevice(gpu, np.zeros((m, 24), np.float32))
        with monkeypatch.context() as patch:
            patch.setattr(gpu, "is_capturing", lambda device, stream, now=capturing: now)
            linear(OnDevice(gpu, x), out)
        assert difference(out.get(), qmm.reference(spec, x, w, **bound)) is None


def test_what_is_bound_may_be_on_a_device():
    kernel, gpu = built(SPEC)
    scale = OnDevice(gpu, np.full((1, 1), 0.5, np.float32))
    problem = Problem(SPEC, 2)
    y = kernel.bind(problem.weight(), x_scale=scale)(problem.activation())
    expected = qmm.reference(SPEC, problem.activation(), problem.weight(), x_scale=0.5)
    assert difference(y, expected) is None


def test_files_hold_gpus_and_cpus(tmp_path, monkeypatch):
    kernel, _ = built(SPEC)
    other = compiled(SPEC, "cuda-sm90")
    path = tmp_path / "k.qmm"
    kernel.save(path, other, qmm.compile(SPEC))
    names = [stored.info.target for stored in kernel_file.contents(path)]
    assert names[:2] == ["cuda-sm90", "cuda-sm80"]
    assert isinstance(qmm.load(path, device="cpu"), qmm.Kernel)
    with pytest.raises(TargetError, match=r"has no kernel for this machine: cuda-sm90 cannot run"):
        qmm.load(path, device="cuda")
    with pytest.raises(TargetError, match="device='tpu'; expected 'cpu', 'cuda' or None"):
        qmm.load(path, device="tpu")
    gpu = EmulatedDriver({}, capability=(8, 6))
    monkeypatch.setattr(drivers, "driver", lambda: gpu)
    loaded = qmm.load(path)
    assert loaded.info == kernel.info
    assert (loaded.cubin, loaded.ptx) == (kernel.cubin, kernel.ptx)
    on_emulation(loaded, kernel.source, capability=(8, 6))
    assert check(loaded, Problem(SPEC, 5)) is None
    assert loaded.report() == kernel.report()


def by_pickle(value):
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, by_pickle], ids=lambda f: f.__name__)
def test_copies_compute_the_same(monkeypatch, copied):
    kernel, gpu = built(SPEC)
    monkeypatch.setattr(drivers, "driver", lambda: gpu)
    again = copied(kernel)
    assert (again.info, type(again)) == (kernel.info, qmm.Kernel)
    assert (again.cubin, again.ptx) == (kernel.cubin, kernel.ptx)
    problem = Problem(SPEC, 3)
    assert check(again, problem) is None
    assert not gpu.memories
    x = problem.activation()
    linear = kernel.bind(problem.weight(), x_scale=0.5)
    expected = linear(x)
    of_first = {*gpu.memories}
    same = copied(linear)
    np.testing.assert_array_equal(same(x), expected)
    assert ({*gpu.memories} == of_first) == (copied is copy.copy)
    del linear
    assert of_first.isdisjoint(gpu.memories) == (copied is not copy.copy)
    np.testing.assert_array_equal(same(x), expected)
    np.testing.assert_array_equal(same(x, x_scale=0.5), expected)
    del same
    assert not gpu.memories


def test_what_was_pickled_needs_a_gpu_where_it_is_called(monkeypatch):
    kernel, _ = built(SPEC)
    w = Problem(SPEC, 1).weight()
    content = pickle.dumps(kernel.bind(w))

    def lacking():
        raise TargetError("no CUDA driver")

    monkeypatch.setattr(drivers, "driver", lacking)
    again = by_pickle(kernel)
    assert again.report() == kernel.report()
    with pytest.raises(TargetError, match=r"^no CUDA driver$"):
        again.bind(w)
    with pytest.raises(TargetError, match=r"^no CUDA driver$"):
        pickle.loads(content)


def test_machine_code_is_for_its_generation_and_ptx_for_later_ones():
    kernel = qmm.compile(dataclasses.replace(SPEC, m=1), "cuda-sm80", cache=False)
    device = on_emulation(kernel).devices()[0]
    for capability, image in [
        ((8, 0), kernel.cubin),
        ((8, 9), kernel.cubin),
        ((9, 0), kernel.ptx),
        ((12, 1), kernel.ptx),
    ]:
        assert kernel.code.image_for(dataclasses.replace(device, capability=capability)) == image
    assert b".target sm_80" in kernel.ptx
    with pytest.raises(TargetError, match=r"needs compute capability 8.0; emulated has 7.5"):
        kernel.code.image_for(dataclasses.replace(device, capability=(7, 5)))


def test_without_a_gpu():
    if not why_no_gpu((7, 5)):
        pytest.skip("this machine has a GPU")
    kernel = compiled(SPEC, "cuda-sm86")
    with pytest.raises(TargetError, match="no CUDA driver"):
        kernel.bind(Problem(SPEC, 1).weight())
    with pytest.raises(TargetError, match="no CUDA driver"):
        qmm.compile(SPEC, "cuda")


def test_without_a_compiler(monkeypatch):
    monkeypatch.setattr(nvrtc, "bindings", lambda: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ToolError, match=r"pip install 'quantmm\[cuda\]'"):
        qmm.compile(SPEC, "cuda-sm86", cache=False)


def test_loading_needs_neither_tvm_nor_a_compiler(tmp_path):
    path = tmp_path / "k.qmm"
    kernel, _ = built(SPEC)
    kernel.save(path)
    code = (
        "import sys, quantmm as qmm\n"
        "from quantmm.runtime import kernel_file\n"
        "from quantmm.runtime.load import loaded\n"
        f"stored, = kernel_file.contents({str(path)!r})\n"
        "compilers = {'tvm', 'cuda.bindings.nvrtc'} & {*sys.modules}\n"
        "print(loaded(stored).plan(100).name, compilers)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [kernel.plan(100).name, "set()"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": np.zeros((2, 255), np.int8)}, r"x is int8\(2, 255\); expected int8\(M, 256\)"),
        ({"x": np.ma.zeros((2, 256), np.int8)}, "x is a masked array, whose mask has no meaning"),
        ({"x": np.zeros((2, 256), np.uint8)}, r"x is uint8\(2, 256\); expected int8\(M, 256\)"),
        ({"x": [[1]]}, "x is list; expected an array"),
        ({"out": np.zeros((2, 24), np.int32)}, r"out is int32\(2, 24\); expected a writable NumPy"),
        ({"out": np.zeros((2, 23), np.float32)}, r"out is float32\(2, 23\)"),
        ({"residual": np.zeros((2, 24))}, "a residual was given; the spec has residual=False"),
        ({"x_zero_point": 3}, "x_zero_point was given; the spec has activation_zero_point=False"),
        ({"x_scale": [1, 2, 3]}, r"x_scale has shape \(3,\); expected a scalar"),
        ({"x_scale": None}, "x_scale is missing; give it to bind or to the call"),
    ],
)
def test_messages(arguments, message):
    kernel, _ = built(SPEC)
    linear = kernel.bind(Problem(SPEC, 1).weight())
    call = {"x": np.ones((2, 256), np.int8), "x_scale": 0.5} | arguments
    with pytest.raises(ArrayError, match=message):
        linear(**call)


def test_messages_of_device_arrays():
    kernel, gpu = built(SPEC)
    linear = kernel.bind(Problem(SPEC, 1).weight(), x_scale=0.5)
    x = OnDevice(gpu, np.ones((2, 256), np.int8))
    with pytest.raises(ArrayError, match="out is on the host; expected it on CUDA device 0, as x"):
        linear(x, np.zeros((2, 24), np.float32))
    with pytest.raises(ArrayError, match="out is missing; tests has no new float32"):
        linear(x)
    wrong = OnDevice(gpu, np.zeros((2, 24), np.int32))
    with pytest.raises(ArrayError, match=r"out is int32\(2, 24\); expected float32\(2, 24\)"):
        linear(x, wrong)
    narrow = OnDevice(gpu, np.ones((2, 255), np.int8))
    with pytest.raises(ArrayError, match=r"x is int8\(2, 255\); expected int8\(M, 256\)"):
        linear(narrow)
    x.stride = 100
    with pytest.raises(ArrayError, match=r"strides \(100, 1\) in elements; expected contiguous"):
        linear(x)


def test_alignment_of_a_row_counts():
    array = cuda_arrays.DeviceArray(256, (2, 3), 3, "float32", 0, 0)
    assert not cuda_executor.is_aligned(array, 4)
    assert cuda_executor.is_aligned(dataclasses.replace(array, stride=4), 4)
    assert not cuda_executor.is_aligned(dataclasses.replace(array, stride=4, address=264), 4)


def test_the_command_line(quantmm, tmp_path):
    path = tmp_path / "k.qmm"
    sizes = ["--n", 24, "--k", 256]
    targets = "cuda-sm80,cuda-sm90"
    status, out, _ = quantmm("compile", *sizes, "--m", 1, "--target", targets, "-o", path)
    assert status == 0
    assert "cuda-sm90: mma.sync m16n8k32, cuda, " in out
    _, out, _ = quantmm("inspect", path, "--json")
    assert '"target": "cuda-sm90"' in out
    for form, text in [
        ("te", "acc"),
        ("tir", "blockIdx.x"),
        ("cuda", "__global__"),
        ("ptx", "dp4a"),
    ]:
        status, out, _ = quantmm("inspect", *sizes, "--target", "cuda-sm80", "--emit", form)
        assert status == 0
        assert text in out
    _, out, _ = quantmm("inspect", *sizes, "--target", "cuda-sm80", "--emit", "sass", "--m", 1)
    assert "  IDP.4A" in out
    status, _, err = quantmm("inspect", *sizes, "--target", "cuda-sm80", "--emit", "asm")
    assert (status, err.strip()) == (
        2,
        "quantmm: --emit asm: cuda-sm80 has te, tir, cuda, ptx, sass",
    )
    status, out, _ = quantmm("targets")
    assert status == 0
    assert "cuda-sm75-dp4a" in out
