"""`torch.ops.quantmm.linear`: the operator that torch compiles, exports and traces as one step.

It is registered by hand, because `torch.library.custom_op` costs every call nearly three times as
much (docs/decisions.md, "torch").
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C import (
    DispatchKey,
    DispatchKeySet,
    _after_autograd_keyset,
    _AutoDispatchBelowAutograd,
    _ExcludeDispatchKeyGuard,
)
from torch._C._functorch import maybe_current_level
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad

from ..compiler.linear import Linear
from ..compiler.spec import MatmulSpec
from ..errors import ArrayError, UnsupportedError
from . import packed
from .formats import DTYPES, kernel_spec
from .gradient import Differentiable
from .library import LIBRARY

NAME = "quantmm::linear"
LIBRARY.define(
    "linear(Tensor x, Tensor data, Tensor scale, Tensor? zero_point, Tensor? bias, str spec)"
    " -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
#: The operator itself, which is quicker to call than what torch.ops looks up by its arguments.
linear = torch.ops.quantmm.linear.default

#: The keys of a call in which nothing but the autograd kernel and the CPU's have a say: no mode, no
#: transform, no subclass, no lazy negation. There one may call the other directly.
PLAIN = DispatchKeySet(DispatchKey.CPU) | DispatchKeySet(DispatchKey.AutogradCPU)
AUTOCAST = DispatchKeySet(DispatchKey.AutocastCPU)


def compute(
    x: Tensor,
    data: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    bias: Tensor | None,
    spec: str,
) -> Tensor:
    """Y = X Wᵀ on the CPU, for an x of (..., k)."""
    bound = packed.find(x.dtype, data, scale, zero_point, bias, spec)
    # Whoever limits torch's threads means those of its modules too.
    threads = min(bound.kernel.num_threads, torch.get_num_threads())
    if x.dim() == 2 and x.numel():
        return bound(x, num_threads=threads)
    return of_any_shape(bound, x, threads)


def of_any_shape(bound: Linear, x: Tensor, threads: int) -> Tensor:
    """The same where x is no matrix, or has no rows."""
    spec = bound.kernel.spec
    if x.layout is not torch.strided or not x.is_cpu:
        return bound(x)  # says what is wrong
    check_shape(x, spec)
    leading = x.shape[:-1]
    if not x.numel():
        return x.new_empty((*leading, spec.n))
    return bound(x.reshape(-1, spec.k), num_threads=threads).view(*leading, spec.n)


def check_shape(x: Tensor, spec: MatmulSpec) -> None:
    """Refuse an x whose last dimension is not k."""
    if not x.dim() or x.shape[-1] != spec.k:
        raise ArrayError(f"x has shape {(*x.shape,)}; expected (..., {spec.k})")


def describe(
    x: Tensor,
    data: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    bias: Tensor | None,
    spec: str,
) -> Tensor:
    """A result without numbers, for tensors without numbers."""
    if x.device != data.device:
        raise ArrayError(f"x is on {x.device}, the weight on {data.device}; expected one device")
    if x.device.type not in ("cpu", "meta"):
        raise ArrayError(f"x is on {x.device}; expected the CPU, where kernels run")
    fields = kernel_spec(spec, x.dtype)
    check_shape(x, fields)
    return x.new_empty((*x.shape[:-1], fields.n))


def differentiate(
    keys: DispatchKeySet,
    x: Tensor,
    data: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    bias: Tensor | None,
    spec: str,
) -> Tensor:
    """Record the gradient of x where one is wanted, and compute."""
    if torch.is_grad_enabled():
        for name, tensor in (("scale", scale), ("bias", bias)):
            if tensor is not None and tensor.requires_grad:
                raise UnsupportedError(
                    f"{name} requires a gradient; expected x alone to, because quantized weights "
                    "are not trained"
                )
        if x.requires_grad:
            return record(x, data, scale, zero_point, bias, spec)
    if forward_ad._current_level >= 0:
        return record(x, data, scale, zero_point, bias, spec)
    if keys == PLAIN:
        return compute(x, data, scale, zero_point, bias, spec)
    with _AutoDispatchBelowAutograd():
        return linear.redispatch(
            keys & _after_autograd_keyset, x, data, scale, zero_point, bias, spec
        )


def record(*arguments: Any) -> Tensor:
    """Compute so that gradients with respect to x, and its tangents, can follow."""
    with enable_single_level_autograd_function():
        return Differentiable.apply(without_gradient, *arguments)


def without_gradient(*arguments: Any) -> Tensor:
    """The operator as it is below autograd.

    torch records nothing within the forward of a function. Where a transform of torch.func is at
    work, the transforms around it still have to.
    """
    nested = maybe_current_level() is not None
    with (
        _AutoDispatchBelowAutograd(),
        torch.set_grad_enabled(nested),
        forward_ad._set_fwd_grad_enabled(nested),
    ):
        return linear(*arguments)


def cast(
    x: Tensor,
    data: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    bias: Tensor | None,
    spec: str,
) -> Tensor:
    """Within torch.autocast x gets its dtype, as for torch's own linear; the weight keeps its."""
    if x.dtype in DTYPES:
        x = x.to(torch.get_autocast_dtype("cpu"))
    with _ExcludeDispatchKeyGuard(AUTOCAST):
        return linear(x, data, scale, zero_point, bias, spec)


def batch(
    info: Any, in_dims: tuple[int | None, ...], x: Tensor, *others: Any
) -> tuple[Tensor, int]:
    """torch.func.vmap over x: one more leading dimension."""
    if any(dim is not None for dim in in_dims[1:]):
        raise UnsupportedError("vmap over the weight of a linear; expected it over x alone")
    assert in_dims[0] is not None
    return linear(x.movedim(in_dims[0], 0), *others), 0


def refuse_onnx(graph: Any, *arguments: Any) -> None:
    """Exporting the operator to ONNX."""
    raise UnsupportedError(
        f"{NAME} has no form in ONNX; export the float model, or use torch.export"
    )


LIBRARY.impl("linear", compute, "CompositeExplicitAutograd")
LIBRARY.impl("linear", differentiate, "Autograd", with_keyset=True)
LIBRARY.impl("linear", cast, "AutocastCPU")
torch.library.register_fake(NAME, describe, lib=LIBRARY)
torch.library.register_vmap(NAME, batch, lib=LIBRARY)
torch.onnx.register_custom_op_symbolic(NAME, refuse_onnx, opset_version=9)
