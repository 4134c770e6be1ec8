"""A transformer encoder in float32 and quantized: how long a call of each takes.

The encoder has the shape of a small BERT (6 layers of 384, 12 heads, 1536 between) and random
weights, which cost the same time as trained ones. Four of it take turns in one process:

    torch float32         as it is
    torch dynamic int8    torch.ao.quantization.quantize_dynamic
    w8a8-dynamic          quantmm.nn.quantize_: int8 weights, one scale per row
    w4a8-g32              quantmm.nn.quantize_: int4 weights, one scale per 32 of them

Run it, with `pip install 'quantmm[torch]'`, as

    python examples/encoder.py --threads 2 --tokens 1x12 --tokens 1x128 --tokens 32x16

It prints the median of each in milliseconds, and how often it fits into torch's float32.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from quantmm.nn import quantize_
from torch import Tensor, nn
from torch.nn import functional

BASELINE = "torch float32"
FORMATS = ("w8a8-dynamic", "w4a8-g32")
#: Batch and tokens of each text.
TOKENS = ((1, 12), (1, 128), (32, 16))


@dataclass(frozen=True)
class Size:
    """Of an encoder: its layers, the width of a token, that between two linears, and the heads."""

    layers: int = 6
    width: int = 384
    hidden: int = 1536
    heads: int = 12


@dataclass(frozen=True)
class Row:
    """A line of the table: how long one contender takes for texts of this many tokens."""

    batch: int
    tokens: int
    contender: str
    milliseconds: float
    ratio: float


class Block(nn.Module):
    """Attention and two linears, each with a residual and a norm."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        width, self.heads = size.width, size.heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, size.hidden), nn.Linear(size.hidden, width)
        self.after_attention, self.after_linears = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) to the same."""
        query, key, value = (self.split(each(x)) for each in (self.query, self.key, self.value))
        attended = functional.scaled_dot_product_attention(query, key, value)
        x = self.after_attention(x + self.out(attended.transpose(1, 2).reshape(x.shape)))
        return self.after_linears(x + self.down(functional.gelu(self.up(x))))

    def split(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) to (batch, heads, tokens, width / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def contenders(size: Size) -> dict[str, nn.Module]:
    """The same encoder in every way, by name."""
    model = nn.Sequential(*[Block(size) for _ in range(size.layers)]).eval()
    rows: dict[str, nn.Module] = {BASELINE: model}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that torchao takes its place
        rows["torch dynamic int8"] = torch.ao.quantization.quantize_dynamic(
            copy.deepcopy(model), {nn.Linear}
        )
    for format in FORMATS:
        rows[format] = copy.deepcopy(model)
        quantize_(rows[format], format)
    return rows


def medians(
    calls: Mapping[str, Callable[[], object]], turns: int, calls_per_turn: int
) -> dict[str, float]:
    """Seconds of each call; they take turns, so that all see what else the machine does."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()  # which compiles
    for _ in range(turns):
        for name, call in calls.items():
            call()  # which brings its weights back into the cache
            for _ in range(calls_per_turn):
                begun = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(each) for name, each in times.items()}


def compare(
    size: Size,
    tokens: Sequence[tuple[int, int]] = TOKENS,
    *,
    turns: int = 6,
    calls_per_turn: int = 6,
) -> list[Row]:
    """Time every contender on texts of every size."""
    models = contenders(size)
    rows = []
    with torch.inference_mode():
        for batch, length in tokens:
            x = torch.randn(batch, length, size.width)
            calls = {name: lambda model=model, x=x: model(x) for name, model in models.items()}
            times = medians(calls, turns, calls_per_turn)
            rows += [
                Row(batch, length, name, 1e3 * seconds, times[BASELINE] / seconds)
                for name, seconds in times.items()
            ]
    return rows


def pair(text: str) -> tuple[int, int]:
    """BATCHxTOKENS as two numbers."""
    batch, _, tokens = text.partition("x")
    return int(batch), int(tokens)


def main(words: Sequence[str] | None = None, size: Size = Size()) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tokens", type=pair, action="append", metavar="BATCHxTOKENS")
    parser.add_argument("--turns", type=int, default=6)
    chosen = parser.parse_args(words)
    torch.manual_seed(0)
    torch.set_num_threads(chosen.threads)  # which quantmm's modules keep to
    rows = compare(size, chosen.tokens or TOKENS, turns=chosen.turns)
    print(f"{'batch':>6}{'tokens':>8}  {'':<20}{'ms':>10}{'ratio':>8}")
    for row in rows:
        print(
            f"{row.batch:>6}{row.tokens:>8}  {row.contender:<20}"
            f"{row.milliseconds:>10.2f}{row.ratio:>8.2f}"
        )


if __name__ == "__main__":
    main()
