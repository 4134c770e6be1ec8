"""`report`: what the quantized linears of a model are, and which are computed together."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from .formats import format_name
from .linear import Linear


@dataclass(frozen=True)
class LayerRow:
    """A quantized linear of a model, or several that are one call.

    Attributes
    ----------
    name : of the module.
    format : its name, or the fields of a spec that decide it.
    n, k : columns of the result and of x.
    nbytes : of the weight's integers, scales and all that belongs to them, and of the bias.
    computes : the linears that it stands for: itself, or those that `fuse_` put together.
    """

    name: str
    format: str
    n: int
    k: int
    nbytes: int
    computes: tuple[str, ...]


def report(model: nn.Module) -> tuple[LayerRow, ...]:
    """The quantized linears of a model, in its order; what is missing here is not quantized."""
    return tuple(
        LayerRow(
            name,
            format_name(replace(module.spec, gated=False, activation_fn=None)),
            module.spec.n,
            module.spec.k,
            sum(each.nbytes for each in module._buffers.values() if each is not None),
            tuple(piece.name for piece in module.pieces) or (name.rpartition(".")[2],),
        )
        for name, module in model.named_modules()
        if isinstance(module, Linear)
    )
