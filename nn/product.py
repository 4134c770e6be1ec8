"""The product of a torch tensor and a bound weight, with as little as can be beside the kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ArrayError
from ..formats.spec import MatmulSpec
from ..runtime.linear import Linear

#: The dtypes that kernels take as integers of the same size.
STORED = {torch.float16: torch.uint16, torch.bfloat16: torch.uint16}


def product(bound: Linear, x: Tensor) -> Tensor:
    """Y = X Wᵀ for an x (..., k) of the kernel's dtype, in a new tensor (..., n).

    Nothing is recorded: neither a gradient nor a trace.
    """
    spec = bound.kernel.spec
    if not x.is_cpu or x.is_nested or x.layout is not torch.strided:
        return bound(x)  # says what is wrong
    shape = x.shape
    check_shape(shape, spec)
    matrix = len(shape) == 2
    # A single column may be contiguous at any distance from the next one, which kernels check.
    rows = x if x.is_contiguous() and spec.k > 1 else x.clone(memory_format=torch.contiguous_format)
    if not matrix:
        rows = rows.view(-1, spec.k)
    m = rows.shape[0]
    y = rows.new_empty((m, spec.n))
    stored = STORED.get(x.dtype)
    if stored is None:
        bound.compute(m, rows, y)
    else:
        bound.compute(m, rows.view(stored), y.view(stored))
    return y if matrix else y.view(*shape[:-1], spec.n)


def check_shape(shape: torch.Size, spec: MatmulSpec) -> None:
    """Refuse an x whose last dimension is not k."""
    if not shape or shape[-1] != spec.k:
        raise ArrayError(f"x has shape {(*shape,)}; expected (..., {spec.k})")
