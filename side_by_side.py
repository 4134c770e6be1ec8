"""Work on all cores, by threads that end with it: NumPy, LLVM and NVRTC hold no lock meanwhile."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from .cores import physical_cores

T = TypeVar("T")
R = TypeVar("R")


def side_by_side(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """`work` for every item, on all cores; it begins while later items are not made yet.

    One item needs no thread.
    """
    remaining = iter(items)
    first = [*itertools.islice(remaining, 2)]
    if len(first) < 2:
        return [*map(work, first)]
    with ThreadPoolExecutor(physical_cores()) as pool:
        return [*pool.map(work, itertools.chain(first, remaining))]
