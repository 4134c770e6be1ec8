"""Compiling on all cores: TVM, LLVM and NVRTC hold no lock meanwhile, Python's included."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import tvm

from ..side_by_side import side_by_side as on_all_cores

T = TypeVar("T")
R = TypeVar("R")


def side_by_side(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """`work` for every item, on all cores; it begins while later items are not made yet."""
    context = tvm.transform.PassContext.current()

    def within(item: T) -> R:
        with context:  # of the calling thread: others begin without
            return work(item)

    return on_all_cores(within, items)
