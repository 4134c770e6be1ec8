"""A transformer encoder in float32 and quantized: how long a call of each takes.

The encoder has the shape of a small BERT (6 layers of 384, 12 heads, 1536 between) and random
weights, which cost the same time as trained ones. Four of it take turns in one process:

    torch float32         as it is
    torch dynamic int8    torch.ao.quantization.quantize_dynamic
    quantmm w8a8-dynamic  quantmm.nn.quantize_: int8 weights, one scale per row
    quantmm w4a8-g32      quantmm.nn.quantize_: int4 weights, one scale per 32 of them

The model and its four forms are those of `quantmm bench --inside torch --check`.

Run it, with `pip install 'quantmm[torch]'`, as

    python examples/encoder.py --threads 2 --tokens 1x12 --tokens 1x128 --tokens 32x16

It prints the median of each in milliseconds, and how often it fits into torch's float32.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from quantmm.extras import install

try:
    import torch
except ModuleNotFoundError:
    raise SystemExit(f"this example needs torch: {install('torch')}") from None
from quantmm.bench.inside.encoder import VARIANTS, Size, encoder
from torch import nn

BASELINE = "torch float32"
SIZE = Size()
#: Batch and tokens of each text.
TOKENS = ((1, 12), (1, 128), (32, 16))


@dataclass(frozen=True)
class Row:
    """A line of the table: how long one contender takes for texts of this many tokens."""

    batch: int
    tokens: int
    contender: str
    milliseconds: float
    ratio: float


def contenders(size: Size) -> dict[str, nn.Module]:
    """The same encoder in every way, by name."""
    model = encoder(size)
    return {name: change(model) for name, change in VARIANTS.items()}


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


def main(words: Sequence[str] | None = None, size: Size = SIZE) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tokens", type=pair, action="append", metavar="BATCHxTOKENS")
    parser.add_argument("--turns", type=int, default=6)
    chosen = parser.parse_args(words)
    torch.set_num_threads(chosen.threads)  # which quantmm's modules keep to
    rows = compare(size, chosen.tokens or TOKENS, turns=chosen.turns)
    print(f"{'batch':>6}{'tokens':>8}  {'':<22}{'ms':>10}{'ratio':>8}")
    for row in rows:
        print(
            f"{row.batch:>6}{row.tokens:>8}  {row.contender:<22}"
            f"{row.milliseconds:>10.2f}{row.ratio:>8.2f}"
        )


if __name__ == "__main__":
    main()
