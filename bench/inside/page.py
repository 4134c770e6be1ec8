"""The tables of docs/performance.md that are measured inside torch."""

from __future__ import annotations

from collections.abc import Iterator

from ..check import Section, Shape
from .encoder import Size

HOST = "torch"
ROWS, SIDES = (1, 16, 128, 512), (384, 1536, 4096)

#: Weights are the same in every call: what company costs would be lost in the reads from memory.
CALLS = Section(
    f"Inside {HOST}: w8a8-dynamic, calls right after a parallel float32 operation",
    "w8a8-dynamic",
    tuple(Shape(rows, n, k, hot=True) for n in SIDES for k in SIDES for rows in ROWS),
)
SIZE = Size()
ENCODER = (
    f"Inside {HOST}: an encoder of {SIZE.layers} layers, {SIZE.width} wide, {SIZE.hidden} in the "
    f"feed-forward part, {SIZE.heads} heads, random weights"
)
#: Batch and tokens of each.
INPUTS = ((32, 16), (1, 128), (1, 12))


def inputs(threads: list[int]) -> Iterator[tuple[int, int, int]]:
    """Batch, tokens and threads of every line of the encoder's table."""
    return ((batch, tokens, count) for count in threads for batch, tokens in INPUTS)
