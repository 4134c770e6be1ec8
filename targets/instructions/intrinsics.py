"""What an instruction needs of TVM."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Intrinsics:
    """Names to tensorize with: the dot product, and where vectors are not what holds the sums,
    what zeroes a fragment and what stores it.
    """

    dot: str
    zero: str | None = None
    store: str | None = None
