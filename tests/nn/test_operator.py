"""The operator as torch sees it: its schema, its fake, its keys."""

from __future__ import annotations

import pytest
from quantmm.errors import ArrayError, SpecError, UnsupportedError

torch = pytest.importorskip("torch", reason="torch is not installed")
import torch_modules as tm
from quantmm.nn import op
from torch import library
from torch._subclasses.fake_tensor import FakeTensorMode


def arguments(module, x):
    return (x, module.data, module.scale, module.zero_point, module.bias, module._text)


@pytest.mark.parametrize("shape", [(3, 70), (2, 3, 70), (70,), (0, 70)])
@pytest.mark.parametrize("wants_gradient", [False, True])
def test_torchs_own_checks(shape, wants_gradient):
    x = torch.randn(shape, requires_grad=wants_gradient)
    library.opcheck(op.linear, arguments(tm.one_layer(), x))


@pytest.mark.parametrize("dtype", tm.DTYPES)
def test_a_fake_has_the_shape_and_dtype_of_the_result(dtype):
    module = tm.one_layer("w4a8-g32")
    mode = FakeTensorMode()
    fakes = [mode.from_tensor(each) for each in (module.data, module.scale, module.bias)]
    with mode:
        x = torch.empty(2, 3, 70, dtype=dtype)
        y = op.linear(x, fakes[0], fakes[1], None, fakes[2], module._text)
    real = module(torch.ones(2, 3, 70, dtype=dtype))
    assert (y.shape, y.dtype, y.stride()) == (real.shape, real.dtype, real.stride())


def test_plain_calls_go_from_one_kernel_to_the_other(monkeypatch):
    module = tm.one_layer()
    own = module._buffers
    weight = own["data"], own["scale"], own["zero_point"], own["bias"], module._text
    x = torch.randn(3, 70)
    direct = []

    def counted(*given):
        direct.append(given)
        return x

    monkeypatch.setattr(op, "compute", counted)
    op.linear(x, *weight)
    assert len(direct) == 1
    # The kernel that is registered is the unchanged one.
    tm.assert_agrees(op.linear(torch._neg_view(x), *weight), module, -x)
    assert len(direct) == 1


def test_a_mode_sees_the_operator():
    class Listener(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    seen = []
    module, x = tm.one_layer(), torch.randn(3, 70)
    with Listener():
        y = module(x)
    assert op.linear in seen
    tm.assert_agrees(y, module, x)


def test_functionalized():
    module, x = tm.one_layer(), torch.randn(3, 70)
    assert torch.equal(torch.func.functionalize(module)(x), module(x))


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_vmap_over_x(dim):
    module, x = tm.one_layer(), torch.randn(2, 3, 70)
    moved = x.movedim(0, dim) if dim < 2 else x.movedim(1, 0)
    moved = torch.randn(2, 3, 4, 70) if dim == 2 else moved
    y = torch.func.vmap(module, dim, dim)(moved)
    assert torch.equal(y, module(moved))


def test_vmap_over_the_weight():
    module, x = tm.one_layer(), torch.randn(3, 70)
    weights = torch.stack([module.data, module.data])
    call = lambda data: op.linear(x, data, module.scale, None, module.bias, module._text)  # noqa: E731
    with pytest.raises(UnsupportedError, match=r"vmap over the weight of a linear; expected .* x"):
        torch.func.vmap(call)(weights)


def test_a_spec_that_is_none():
    module, x = tm.one_layer(), torch.randn(3, 70)
    given = arguments(module, x)[:-1]
    with pytest.raises(SpecError, match="not a spec in JSON"):
        op.linear(*given, "w8a8")
    with pytest.raises(SpecError, match="expected a float input and dynamic=True"):
        op.linear(*given, '{"n": 33, "k": 70}')


def test_a_fake_refuses_what_a_call_would():
    module = tm.one_layer()
    x = torch.empty(3, 71, device="meta")
    moved = [each.to("meta") for each in (module.data, module.scale, module.bias)]
    with pytest.raises(ArrayError, match=r"x has shape \(3, 71\); expected \(\.\.\., 70\)"):
        op.linear(x, moved[0], moved[1], None, moved[2], module._text)
