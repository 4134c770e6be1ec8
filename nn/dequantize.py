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


def as_qtensor(
    data: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    spec: MatmulSpec,
    offset: Tensor | None = None,
    order: Tensor | None = None,
) -> QTensor:
    """A weight over the memory of its tensors, those of the CPU."""
    given = zero_point, offset, order
    beside = [None if each is None else each.detach().numpy() for each in given]
    return QTensor(
        data.detach().numpy(),
        scale.detach().numpy(),
        beside[0],
        spec.weight,
        spec.group_size,
        (spec.w_rows, spec.k),
        *beside[1:],
    )


def compute(
    data: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    spec: str,
    offset: Tensor | None = None,
    order: Tensor | None = None,
) -> Tensor:
    """float32 (rows of W, k), see `quantmm.dequantize`."""
    zero_point, offset, order = (
        None if tensor is None else tensor.cpu() for tensor in (zero_point, offset, order)
    )
    w = as_qtensor(data.cpu(), scale.cpu(), zero_point, from_text(spec), offset, order)
    return torch.from_numpy(quantize.dequantize(w)).to(data.device)


def describe(
    data: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    spec: str,
    offset: Tensor | None = None,
    order: Tensor | None = None,
) -> Tensor:
    """The same without numbers."""
    fields = from_text(spec)
    return scale.new_empty((fields.w_rows, fields.k))


LIBRARY.define(
    "dequantize(Tensor data, Tensor scale, Tensor? zero_point, str spec, Tensor? offset=None,"
    " Tensor? order=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.impl("dequantize", compute, "CompositeExplicitAutograd")
library.register_fake("quantmm::dequantize", describe, lib=LIBRARY)
dequantize = torch.ops.quantmm.dequantize.default
