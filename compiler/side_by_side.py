"""Compiling on all cores: TVM, LLVM and NVRTC hold no lock meanwhile, Python's included."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import tvm

from ..targets import physical_cores

T = TypeVar("T")
R = TypeVar("R")


def side_by_side(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """`work` for every item, on all cores; it begins while later items are not made yet."""
    context = tvm.transform.PassContext.current()

    def within(item: T) -> R:
        with context:  # of the calling thread: others begin without
            return work(item)

    with ThreadPoolExecutor(physical_cores()) as pool:
        return [*pool.map(within, items)]
