"""Modules in what programs put around a call: modes, devices, threads, children."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from quantmm.errors import ArrayError

torch = pytest.importorskip("torch", reason="torch is not installed")
import torch_modules as tm
from quantmm import nn as qnn
from quantmm.nn import packed
from quantmm.runtime import threads


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, contextlib.nullcontext])
@pytest.mark.parametrize("shape", [(3, 70), (2, 3, 70), (0, 70)])
def test_modes_of_gradients(mode, shape):
    with mode():
        module = tm.layer()
        x = torch.randn(shape)
        tm.assert_agrees(module(x), module, x.clone())


def test_a_module_that_was_made_in_inference_mode_works_outside():
    with torch.inference_mode():
        model = torch.nn.Sequential(torch.nn.Linear(70, 33))
        qnn.quantize_(model)
        model.to(torch.float16).to("cpu")
    x = torch.randn(3, 70, requires_grad=True)
    model(x).sum().backward()
    tm.assert_agrees(model(x.detach()), model[0], x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", tm.DTYPES)
def test_autocast_casts_x(dtype, given):
    module = tm.one_layer()
    x = torch.randn(2, 3, 70).to(given)
    with torch.autocast("cpu", dtype=dtype):
        y = module(x)
        like_torch = torch.nn.functional.linear(x, torch.randn(33, 70).to(given))
    assert y.dtype == like_torch.dtype == dtype
    tm.assert_agrees(y, module, x.to(dtype))
    with torch.autocast("cpu", dtype=dtype, enabled=False):
        tm.assert_agrees(module(x), module, x)


def test_autocast_leaves_what_it_leaves_elsewhere():
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ArrayError, match="x is float64; expected one of"),
    ):
        tm.one_layer()(torch.randn(3, 70, dtype=torch.float64))


def test_a_default_device():
    module = tm.one_layer()
    x = [torch.randn(3, 70), torch.randn(2, 3, 70), torch.randn(0, 70), torch.randn(70)]
    x.append(torch.randn(3, 70, requires_grad=True))
    right = [module(each) for each in x]
    state = module.state_dict()
    torch.set_default_device("meta")
    try:
        found = [module(each) for each in x]
        found[-1].sum().backward()
        fresh = qnn.Linear.from_quantized(module.to_quantized(), module.bias, module.spec)
        fresh.load_state_dict(state)
        found.append(fresh(x[0]))
    finally:
        torch.set_default_device(None)
    right.append(right[0])
    for y, expected in zip(found, right, strict=True):
        assert torch.equal(y, expected)


def test_tensors_without_numbers_in_a_real_call():
    with pytest.raises(ArrayError, match="x is on meta, the weight on cpu; expected one device"):
        tm.one_layer()(torch.empty(3, 70, device="meta"))


@pytest.mark.parametrize("shape", [(3, 70), (2, 3, 70)])
def test_tensors_of_another_device(shape):
    mode = torch._subclasses.fake_tensor.FakeTensorMode()
    module = tm.one_layer()
    moved = [mode.from_tensor(each) for each in (module.data, module.scale, module.bias)]
    with mode:
        x = torch.empty(shape, device="cuda")
        with pytest.raises(ArrayError, match="x is on cuda:0, the weight on cpu"):
            torch.ops.quantmm.linear(x, moved[0], moved[1], None, moved[2], module._text)
        data, scale, bias = (torch.empty_like(each, device="cuda") for each in moved)
        with pytest.raises(ArrayError, match="x is on cuda:0; expected the CPU"):
            torch.ops.quantmm.linear(x, data, scale, None, bias, module._text)


def test_a_weight_of_another_device():
    module = tm.layer()
    data = module.data.to("meta")
    with pytest.raises(ArrayError, match="data is on meta; expected the CPU, where kernels run"):
        packed.pack(data, module.scale, None, module.bias, module.spec)


def test_threads_share_a_module():
    module = tm.layer()
    count = 6
    inputs = [torch.randn(n + 1, 70) for n in range(count)]
    together = Barrier(count)

    def call(x):
        together.wait()
        return [module(x) for _ in range(20)]

    with ThreadPoolExecutor(count) as pool:
        results = list(pool.map(call, inputs))
    for x, ys in zip(inputs, results, strict=True):
        tm.assert_agrees(ys[0], module, x)
        assert all(torch.equal(y, ys[0]) for y in ys)


def test_torchs_number_of_threads_is_a_limit():
    module = tm.layer()
    kernel = packed.kernel_for(module.spec)
    before = torch.get_num_threads()
    counts = []
    try:
        for limit in (1, 1000):
            torch.set_num_threads(limit)
            counts.append(kernel.num_threads)
    finally:
        torch.set_num_threads(before)
    assert counts == [1, threads.own_limit()]


WORKERS = """
import torch, quantmm.nn
from torch.utils.data import DataLoader, Dataset

torch.manual_seed(0)
module = quantmm.nn.Linear.from_float(torch.nn.Linear(70, 33))
x = torch.randn(8, 3, 70)
right = module(x)

class Layered(Dataset):
    def __len__(self):
        return len(x)
    def __getitem__(self, i):
        return module(x[i])

loader = DataLoader(Layered(), batch_size=2, num_workers=2, multiprocessing_context="fork")
for _ in range(2):
    print(torch.equal(torch.cat(list(loader)), right))
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forked_workers_of_a_data_loader():
    assert tm.run(WORKERS) == "True\nTrue\n"


LOCKED = """
import os, sys, threading, torch, quantmm.nn
from quantmm.nn import packed

module = quantmm.nn.Linear.from_float(torch.nn.Linear(70, 33))
torch.set_num_threads(1)
x = torch.randn(3, 70)
packed._packing.acquire()
child = os.fork()
if not child:
    os._exit(0 if module(x).shape == (3, 33) else 1)
packed._packing.release()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_child_that_is_forked_while_a_thread_packs():
    assert tm.run(LOCKED) == "0\n"
