"""A weight is packed once, again after it was changed, and not kept longer than its tensors."""

from __future__ import annotations

import gc
import weakref

import pytest
from quantmm.errors import ArrayError

torch = pytest.importorskip("torch", reason="torch is not installed")
import torch_modules as tm
from quantmm.nn import packed

X = torch.randn(3, 70)
WITH_ZERO_POINT = tm.qmm.MatmulSpec(
    n=33, k=70, weight="uint8", weight_zero_point=True, bias=True, input="float32", dynamic=True
)


@pytest.fixture
def packs(monkeypatch):
    """The specs of the kernels that something is packed for, as it happens."""
    specs = []
    pack = packed.pack

    def counted(*arguments):
        specs.append(arguments[4])
        return pack(*arguments)

    monkeypatch.setattr(packed, "pack", counted)
    return specs


def test_a_weight_is_packed_once_for_each_dtype(packs):
    module = tm.layer()
    for _ in range(3):
        for dtype in tm.DTYPES:
            module(X.to(dtype))
    assert [spec.input for spec in packs] == ["float32", "float16", "bfloat16"]


def test_modules_of_one_spec_share_a_kernel(packs):
    module, other = tm.layer(), tm.layer()
    module(X), other(X)
    first, second = (found_for(each).linear for each in (module, other))
    assert len(packs) == 2
    assert first is not second
    assert first.kernel is second.kernel


CHANGES = {
    "data": lambda module: module.data.copy_(module.data.flip(0)),
    "scale": lambda module: module.scale.mul_(2),
    "zero_point": lambda module: module.zero_point.add_(1),
    "bias": lambda module: module.bias.zero_(),
    "a view": lambda module: module.scale[3:].mul_(0.5),
    "another bias": lambda module: setattr(module, "bias", torch.ones(33)),
    "other memory": lambda module: setattr(module.scale, "data", torch.ones_like(module.scale)),
    "load_state_dict": lambda module: module.load_state_dict(like(module).state_dict()),
    "assign": lambda module: module.load_state_dict(like(module).state_dict(), assign=True),
    "in inference mode": torch.inference_mode()(lambda module: module.scale.mul_(2)),
}


def like(module):
    return tm.layer(format=module.spec)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_are_seen(change):
    module = tm.layer(format=WITH_ZERO_POINT)
    before = module(X)
    change(module)
    after = module(X)
    assert not torch.equal(after, before)
    tm.assert_agrees(after, module, X)


def found_for(module):
    """What is kept for a module and float32."""
    own = module._buffers
    names = ("data", "scale", "zero_point", "bias", "offset", "order")
    return packed._packed.get((*(id(own[name]) for name in names), module._text, torch.float32))


def test_nothing_is_kept_of_a_module_that_is_gone():
    module = tm.layer()
    module(X), module(X.half())
    entry = weakref.ref(found_for(module).linear)
    keys = {key for key in packed._packed if key[0] == id(module.data)}
    assert len(keys) == 2
    del module
    gc.collect()
    assert entry() is None
    assert not keys & packed._packed.keys()


def test_nothing_is_kept_of_a_weight_that_was_replaced():
    module = tm.layer()
    module(X)
    entry = weakref.ref(found_for(module).linear)
    module.load_state_dict(like(module).state_dict(), assign=True)
    gc.collect()
    assert entry() is None


def test_a_kernel_is_kept_as_long_as_something_is_packed_for_it():
    module, other = tm.layer(n=7), tm.layer(n=7)
    module(X), other(X)
    kernel = weakref.ref(found_for(module).linear.kernel)
    del module
    gc.collect()
    assert kernel() is found_for(other).linear.kernel
    del other
    gc.collect()
    assert kernel() is None


def test_a_bias_of_each_for_one_weight(packs):
    module, other = tm.layer(), tm.layer()
    other.data, other.scale = module.data, module.scale
    for _ in range(2):
        tm.assert_agrees(module(X), module, X)
        tm.assert_agrees(other(X), other, X)
    assert len(packs) == 2


def test_tensors_whose_changes_do_not_count():
    module = tm.layer()
    with torch.inference_mode():
        scale = module.scale.clone()
    with pytest.raises(ArrayError, match=r"made in torch\.inference_mode.*expected .* outside"):
        torch.ops.quantmm.linear(X, module.data, scale, None, module.bias, module._text)


def test_tensors_that_are_no_weight():
    module = tm.layer()
    with pytest.raises(ArrayError, match=r"scale is float32\(1,\); expected float32\(33,\)"):
        torch.ops.quantmm.linear(X, module.data, torch.ones(1), None, module.bias, module._text)
    with pytest.raises(ArrayError, match="bias is missing"):
        torch.ops.quantmm.linear(X, module.data, module.scale, None, None, module._text)
