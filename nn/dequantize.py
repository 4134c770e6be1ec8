"""`torch.ops.quantmm.dequantize`: a weight's float32 matrix, which gradients are computed from.

An operator, because there is a function that computes it; and because torch 2.13's inductor leaves
columns out where it compiles scales that are repeated along K (docs/decisions.md, "torch").
"""

from __future__ import annotations

import torch
from torch import Tensor, library

from ..formats import quantize
from ..formats.quantize import QTensor
from ..formats.spec import MatmulSpec
from .formats import from_text
from .namespace import LIBRARY


def as_qtensor(data: Tensor, scale: Tensor, zero_point: Tensor | None, spec: MatmulSpec) -> QTensor:
    """A weight over the memory of its tensors, those of the CPU."""
    return QTensor(
        data.detach().numpy(),
        scale.detach().numpy(),
        None if zero_point is None else zero_point.detach().numpy(),
        spec.weight,
        spec.group_size,
        (spec.n, spec.k),
    )


def compute(data: Tensor, scale: Tensor, zero_point: Tensor | None, spec: str) -> Tensor:
    """float32 (n, k), see `quantmm.dequantize`."""
    there = None if zero_point is None else zero_point.cpu()
    w = as_qtensor(data.cpu(), scale.cpu(), there, from_text(spec))
    return torch.from_numpy(quantize.dequantize(w)).to(data.device)


def describe(data: Tensor, scale: Tensor, zero_point: Tensor | None, spec: str) -> Tensor:
    """The same without numbers."""
    fields = from_text(spec)
    return scale.new_empty((fields.n, fields.k))


LIBRARY.define(
    "dequantize(Tensor data, Tensor scale, Tensor? zero_point, str spec) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.impl("dequantize", compute, "CompositeExplicitAutograd")
library.register_fake("quantmm::dequantize", describe, lib=LIBRARY)
dequantize = torch.ops.quantmm.dequantize.default
