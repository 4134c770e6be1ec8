"""A whole model on a program's threads: an encoder of BERT's shape with random weights.

It stands for what a user has: torch's own operations lie between the linears. torch is imported by
the functions only.
"""

from __future__ import annotations

import copy
import pkgutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: Whose linears are quantmm's; by name, as those of other contenders.
QUANTIZE = "quantmm.nn:quantize_"


@dataclass(frozen=True)
class Size:
    """An encoder's layers, their width, the width of the feed-forward part, and its heads."""

    layers: int = 6
    width: int = 384
    hidden: int = 1536
    heads: int = 12


def encoder(size: Size) -> Any:
    """A `torch.nn.Module` from (batch, tokens, width) to the same, float32; always the same one."""
    import torch
    from torch import nn

    width = size.width

    class Layer(nn.Module):
        """Attention and the feed-forward part, each with a residual and a norm after it."""

        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value, self.output = (
                nn.Linear(width, width) for _ in range(4)
            )
            self.up, self.down = nn.Linear(width, size.hidden), nn.Linear(size.hidden, width)
            self.attention_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)

        def forward(self, x: Any) -> Any:
            """(batch, tokens, width) to the same."""

            def by_head(y: Any) -> Any:
                return y.unflatten(-1, (size.heads, -1)).transpose(1, 2)

            attended = nn.functional.scaled_dot_product_attention(
                by_head(self.query(x)), by_head(self.key(x)), by_head(self.value(x))
            )
            x = self.attention_norm(x + self.output(attended.transpose(1, 2).flatten(-2)))
            return self.norm(x + self.down(nn.functional.gelu(self.up(x))))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(*(Layer() for _ in range(size.layers))).eval()


def torch_dynamic(model: Any) -> Any:
    """A copy whose linears are those of torch's dynamic quantization to int8."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that torchao takes its place
        return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear})


def quantized(model: Any, format: str) -> Any:
    """A copy whose linears are quantmm's."""
    model = copy.deepcopy(model)
    pkgutil.resolve_name(QUANTIZE)(model, format)
    return model


#: What becomes of a model, by name: as it is, with torch's int8, and with quantmm's formats.
VARIANTS: dict[str, Callable[[Any], Any]] = {
    "torch float32": lambda model: model,
    "torch dynamic int8": torch_dynamic,
    "quantmm w8a8-dynamic": lambda model: quantized(model, "w8a8-dynamic"),
    "quantmm w4a8-g32": lambda model: quantized(model, "w4a8-g32"),
}
#: Those that are quantmm's.
OUR_VARIANTS = tuple(name for name in VARIANTS if name.startswith("quantmm"))
