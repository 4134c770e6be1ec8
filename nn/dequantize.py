"""A weight's float32 matrix in torch's operations, which gradients are computed from.

It equals `quantmm.dequantize`, and can be traced.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..compiler.spec import MatmulSpec


def dequantize(data: Tensor, scale: Tensor, zero_point: Tensor | None, spec: MatmulSpec) -> Tensor:
    """float32 (n, k): scale * (data - zero_point), the product rounded once."""
    steps = integers(data, spec)
    if zero_point is not None:
        steps = steps - spread(zero_point.to(torch.float32), spec)
    return spread(scale, spec) * steps


def integers(data: Tensor, spec: MatmulSpec) -> Tensor:
    """The quantized integers as float32 (n, k)."""
    if not spec.four_bit_weight:
        return data.to(torch.float32)
    nibbles = torch.stack((data & 0xF, data >> 4), -1).flatten(-2)[:, : spec.k]
    if spec.weight == "uint4":
        return nibbles.to(torch.float32)
    return (nibbles ^ 8).to(torch.float32) - 8


def spread(values: Tensor, spec: MatmulSpec) -> Tensor:
    """Scales or zero points repeated so that they broadcast against (n, k)."""
    if isinstance(spec.group_size, int):
        return values.repeat_interleave(spec.k_of_group, 1)[:, : spec.k]
    return values[:, None] if values.dim() == 1 else values
