"""The gradient with respect to x, from the dequantized weight.

Rounding x to integers has no slope of its own and is taken for the identity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import UnsupportedError
from ..formats.spec import MatmulSpec
from .dequantize import dequantize
from .formats import from_text

aten = torch.ops.aten

#: For each activation function, what it makes of a gradient; given that and its argument.
SLOPES: dict[str | None, Callable[[Tensor, Tensor], Tensor]] = {
    None: lambda grad, v: grad,
    "relu": lambda grad, v: aten.threshold_backward(grad, v, 0),
    "gelu": lambda grad, v: aten.gelu_backward(grad, v),
    "gelu_tanh": lambda grad, v: aten.gelu_backward(grad, v, approximate="tanh"),
    "silu": lambda grad, v: aten.silu_backward(grad, v),
    "tanh": lambda grad, v: aten.tanh_backward(grad, torch.tanh(v)),
    "sigmoid": lambda grad, v: aten.sigmoid_backward(grad, torch.sigmoid(v)),
}

#: The functions themselves, which a gate's gradient is made with.
FUNCTIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda v: v,
    "relu": torch.relu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda v: functional.gelu(v, approximate="tanh"),
    "silu": functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


class Differentiable(torch.autograd.function._SingleLevelFunction):
    """The operator, called with itself below autograd and its arguments.

    It has one level, like the kernel that calls it: torch.func reaches that kernel once per level.
    """

    apply: ClassVar[Callable[..., Tensor]]

    @staticmethod
    def forward(
        operator: Callable[..., Tensor],
        x: Tensor,
        data: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        bias: Tensor | None,
        spec: str,
        offset: Tensor | None,
        order: Tensor | None,
    ) -> Tensor:
        """Compute y."""
        return operator(x, data, scale, zero_point, bias, spec, offset, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the weight, and x where the slope depends on it."""
        _, x, data, scale, zero_point, bias, spec, offset, order = inputs
        ctx.spec, ctx.text = from_text(spec), spec
        # None says that a tensor has no tangent; zeros would not.
        ctx.set_materialize_grads(False)
        x = x if ctx.spec.activation_fn or ctx.spec.gated else None
        kept = (x, data, scale, zero_point, bias, offset, order)
        ctx.save_for_backward(*kept)
        ctx.save_for_forward(*kept)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradient of x: that of y through the activation function, times W."""
        if grad is None:
            return (None,) * 9
        # The exact numbers, also within torch.autocast.
        with torch.autocast("cpu", enabled=False):
            x, data, scale, zero_point, bias, offset, order = ctx.saved_tensors
            weight = dequantize(data, scale, zero_point, ctx.text, offset, order)
            single = grad.to(torch.float32)
            if x is not None:
                single = sloped(ctx.spec, single, functional.linear(x.float(), weight, bias))
            grad_x = (single @ weight).to(grad.dtype)
        return None, grad_x, None, None, None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, operator: None, tangent: Tensor, *others: Tensor | None) -> Tensor:
        """The tangent of y: that of x times Wᵀ, through the activation function."""
        if any(other is not None for other in others):
            raise UnsupportedError(
                "the weight has a tangent; expected x alone to, because quantized weights are not "
                "trained"
            )
        with torch.autocast("cpu", enabled=False):
            x, data, scale, zero_point, bias, offset, order = ctx.saved_tensors
            weight = dequantize(data, scale, zero_point, ctx.text, offset, order)
            single = tangent.to(torch.float32) @ weight.T
            if x is not None:
                single = moved(ctx.spec, single, functional.linear(x.float(), weight, bias))
            return single.to(tangent.dtype)


def sloped(spec: MatmulSpec, grad: Tensor, v: Tensor) -> Tensor:
    """A gradient of y as one of v = X Wᵀ + bias."""
    slope = SLOPES[spec.activation_fn]
    if not spec.gated:
        return slope(grad, v)
    gate, up = v.split(spec.n, dim=-1)
    return torch.cat([slope(grad * up, gate), grad * FUNCTIONS[spec.activation_fn](gate)], dim=-1)


def moved(spec: MatmulSpec, tangent: Tensor, v: Tensor) -> Tensor:
    """The tangent of y that comes of one of v = X Wᵀ + bias."""
    slope = SLOPES[spec.activation_fn]
    if not spec.gated:
        return slope(tangent, v)
    (gate, up), (of_gate, of_up) = (each.split(spec.n, dim=-1) for each in (v, tangent))
    return slope(of_gate * up, gate) + FUNCTIONS[spec.activation_fn](gate) * of_up
