"""`torch.ops.quantmm.linear`: the operator that torch compiles, exports and traces as one step.

It is registered by hand, because torch's `custom_op` costs every call twice as much
(docs/decisions.md, "torch").
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, library
from torch._C import (
    DispatchKey,
    DispatchKeySet,
    _after_autograd_keyset,
    _AutoDispatchBelowAutograd,
    _ExcludeDispatchKeyGuard,
    _get_tracing_state,
    _len_torch_dispatch_stack,
)
from torch._C._autograd import _profiler_enabled
from torch._C._functorch import maybe_current_level
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad

from ..errors import ArrayError, UnsupportedError
from . import inductor, packed
from .formats import DTYPES, kernel_spec
from .gradient import Differentiable
from .namespace import LIBRARY
from .product import check_shape, product

NAME = "quantmm::linear"
LIBRARY.define(
    "linear(Tensor x, Tensor data, Tensor scale, Tensor? zero_point, Tensor? bias, str spec,"
    " Tensor? offset=None, Tensor? order=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
#: The operator itself, which is quicker to call than what torch.ops looks up by its arguments.
linear = torch.ops.quantmm.linear.default

#: The keys of a call in which nothing but the autograd kernel and the CPU's have a say: no mode, no
#: transform, no subclass, no lazy negation. There one may call the other directly.
PLAIN = DispatchKeySet(DispatchKey.CPU) | DispatchKeySet(DispatchKey.AutogradCPU)
AUTOCAST = DispatchKeySet(DispatchKey.AutocastCPU)


def compute(x: Tensor, *weight: Any) -> Tensor:
    """Y = X Wᵀ on the CPU, for an x of (..., k); `weight` is what the operator takes after x."""
    return product(packed.find(x.dtype, *weight), x)


def is_plain(x: Tensor, scale: Tensor, bias: Tensor | None, offset: Tensor | None) -> bool:
    """Whether nobody but the kernel has a say in a call, and no gradient is recorded.

    Then a module may compute at once: torch's way into the operator and back takes as long as all
    else beside the kernel. Not so while torch compiles, traces, transforms, casts or profiles.
    """
    if torch.compiler.is_compiling() or type(x) is not Tensor:
        return False
    if torch.is_grad_enabled() and (
        x.requires_grad
        or scale.requires_grad
        or (bias is not None and bias.requires_grad)
        or (offset is not None and offset.requires_grad)
    ):
        return False
    return (
        x.is_cpu
        and scale.is_cpu
        and not x.is_neg()
        and _len_torch_dispatch_stack() == 0
        and _get_tracing_state() is None
        and maybe_current_level() is None
        and forward_ad._current_level < 0
        and not torch.is_autocast_enabled("cpu")
        and not _profiler_enabled()
    )


def describe(
    x: Tensor,
    data: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    bias: Tensor | None,
    spec: str,
    offset: Tensor | None = None,
    order: Tensor | None = None,
) -> Tensor:
    """A result without numbers, for tensors without numbers."""
    inductor.offer(linear)  # before it compiles a graph, it asks for the shapes in it
    if x.device != data.device:
        raise ArrayError(f"x is on {x.device}, the weight on {data.device}; expected one device")
    if x.device.type not in ("cpu", "meta"):
        raise ArrayError(f"x is on {x.device}; expected the CPU, where kernels run")
    fields = kernel_spec(spec, x.dtype)
    check_shape(x.shape, fields)
    return x.new_empty((*x.shape[:-1], fields.n))


def differentiate(
    keys: DispatchKeySet,
    x: Tensor,
    data: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    bias: Tensor | None,
    spec: str,
    offset: Tensor | None = None,
    order: Tensor | None = None,
) -> Tensor:
    """Record the gradient of x where one is wanted, and compute."""
    if torch.is_grad_enabled():
        for name, tensor in (("scale", scale), ("bias", bias), ("offset", offset)):
            if tensor is not None and tensor.requires_grad:
                raise UnsupportedError(
                    f"{name} requires a gradient; expected x alone to, because quantized weights "
                    "are not trained"
                )
        if x.requires_grad:
            return record(x, data, scale, zero_point, bias, spec, offset, order)
    if forward_ad._current_level >= 0:
        return record(x, data, scale, zero_point, bias, spec, offset, order)
    if keys == PLAIN:
        return compute(x, data, scale, zero_point, bias, spec, offset, order)
    with _AutoDispatchBelowAutograd():
        return linear.redispatch(
            keys & _after_autograd_keyset, x, data, scale, zero_point, bias, spec, offset, order
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


def cast(x: Tensor, *weight: Any) -> Tensor:
    """Within torch.autocast x gets its dtype, as for torch's own linear; the weight keeps its."""
    if x.dtype in DTYPES:
        x = x.to(torch.get_autocast_dtype("cpu"))
    with _ExcludeDispatchKeyGuard(AUTOCAST):
        return linear(x, *weight)


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
library.register_fake(NAME, describe, lib=LIBRARY)
library.register_vmap(NAME, batch, lib=LIBRARY)
torch.onnx.register_custom_op_symbolic(NAME, refuse_onnx, opset_version=9)
