"""x has the gradient of the product with the dequantized weight; the weight has none."""

from __future__ import annotations

import pytest
import quantmm as qmm
from quantmm.errors import UnsupportedError

torch = pytest.importorskip("torch", reason="torch is not installed")
import torch_modules as tm
from torch.autograd import forward_ad

ACTIVATIONS = {
    None: lambda v: v,
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda v: torch.nn.functional.gelu(v, approximate="tanh"),
    "silu": torch.nn.functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
func = torch.func


@pytest.mark.parametrize("format", tm.FORMATS)
@pytest.mark.parametrize("shape", [(70,), (3, 70), (2, 3, 70), (0, 70)])
def test_the_gradient_is_that_of_the_dequantized_weight(format, shape):
    module = tm.one_layer(format)
    x = torch.randn(shape, requires_grad=True)
    upstream = torch.randn(*shape[:-1], 33)
    (found,) = torch.autograd.grad(module(x), x, upstream)
    (expected,) = torch.autograd.grad(tm.float_linear(module)(x), x, upstream)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_floats(dtype):
    module = tm.one_layer()
    x = torch.randn(3, 70).to(dtype).requires_grad_()
    upstream = torch.randn(3, 33).to(dtype)
    (found,) = torch.autograd.grad(module(x), x, upstream)
    expected = (upstream.float() @ module.dequantize()).to(dtype)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_through_an_activation_function(name):
    spec = qmm.MatmulSpec(n=33, k=70, input="float32", dynamic=True, bias=True, activation_fn=name)
    module = tm.layer(format=spec)
    plain, function = tm.float_linear(module), ACTIVATIONS[name]
    x, tangent = torch.randn(3, 70, requires_grad=True), torch.randn(3, 70)
    upstream = torch.randn(3, 33)
    (found,) = torch.autograd.grad(module(x), x, upstream)
    (expected,) = torch.autograd.grad(function(plain(x)), x, upstream)
    torch.testing.assert_close(found, expected)
    _, along = func.jvp(module, (x.detach(),), (tangent,))
    _, expected = func.jvp(lambda v: function(plain(v)), (x.detach(),), (tangent,))
    torch.testing.assert_close(along, expected)


def cubic(linear):
    """Something whose second derivatives depend on x."""
    return lambda x: (linear(x) ** 2 * x[..., :33]).sum()


TRANSFORMS = {
    "grad": func.grad,
    "jacrev": func.jacrev,
    "jacfwd": func.jacfwd,
    "forward over reverse": func.hessian,
    "reverse over reverse": lambda f: func.jacrev(func.jacrev(f)),
    "reverse over forward": lambda f: func.jacrev(func.jacfwd(f)),
    "forward over forward": lambda f: func.jacfwd(func.jacfwd(f)),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_nest(transform):
    module = tm.one_layer()
    # The quantized product, with the slope of the other one.
    plain = tm.float_linear(module)
    replaced = lambda x: plain(x) + (module(x.detach()) - plain(x)).detach()  # noqa: E731
    x = torch.randn(70)
    torch.testing.assert_close(transform(cubic(module))(x), transform(cubic(replaced))(x))


def test_gradients_of_samples():
    module = tm.one_layer()
    x = torch.randn(4, 70)
    found = func.vmap(func.grad(lambda v: module(v).sum()))(x)
    torch.testing.assert_close(found, module.dequantize().sum(0).expand(4, 70))


def test_dual_numbers():
    module = tm.one_layer()
    x, tangent = torch.randn(3, 70), torch.randn(3, 70)
    with forward_ad.dual_level():
        y, along = forward_ad.unpack_dual(module(forward_ad.make_dual(x, tangent)))
        assert forward_ad.unpack_dual(module(x)).tangent is None
    tm.assert_agrees(y, module, x)
    torch.testing.assert_close(along, tangent @ module.dequantize().T)


def test_the_gradient_is_exact_within_autocast():
    module = tm.one_layer()
    x = torch.randn(3, 70, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(x)
        (found,) = torch.autograd.grad(y, x, torch.ones_like(y))
    expected = module.dequantize().sum(0).to(torch.bfloat16).float().expand(3, 70)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-2)
    assert torch.equal(found, found.to(torch.bfloat16).float())


def test_through_layers_without_and_with_gradients():
    model = tm.network()
    embed = torch.nn.Linear(7, 40)
    model(embed(torch.randn(2, 7))).sum().backward()
    assert embed.weight.grad.abs().sum() > 0
    with torch.no_grad():
        assert not model(embed(torch.randn(2, 7))).requires_grad


def test_the_weight_has_no_tangent():
    module, x = tm.one_layer(), torch.randn(3, 70)
    with forward_ad.dual_level():
        scale = forward_ad.make_dual(module.scale.clone(), torch.ones(33))
        with pytest.raises(UnsupportedError, match="the weight has a tangent; expected x alone"):
            torch.ops.quantmm.linear(x, module.data, scale, None, module.bias, module._text)


@pytest.mark.parametrize("name", ["scale", "bias"])
def test_the_weight_has_no_gradient(name):
    module = tm.layer()
    x = torch.randn(3, 70)
    before = module(x)
    getattr(module, name).requires_grad_()
    with pytest.raises(UnsupportedError, match=f"{name} requires a gradient; expected x alone"):
        module(x)
    with torch.no_grad():
        assert torch.equal(module(x), before)
