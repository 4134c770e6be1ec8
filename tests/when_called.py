"""Kernels whose functions are compiled one by one, when they are called: most tests call a few."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pytest
from quantmm.runtime.tvm_runtime import without_torch


def install(patch: pytest.MonkeyPatch) -> None:
    """Have kernels for CPUs built so, until `patch` is undone."""
    with without_torch():
        from quantmm.compiler import cpu

    built = cpu.Built

    def later(work: Callable[[Any], Any], items: Iterable[Any]) -> list[Callable[[], Any]]:
        return [functools.partial(work, item) for item in items]

    patch.setattr(cpu, "side_by_side", later)
    patch.setattr(cpu, "Built", lambda modules, *rest: built(Modules(modules), *rest))


class Modules(Mapping[str, Any]):
    """Modules by the names of their functions, each compiled when it is looked up."""

    def __init__(self, makers: Mapping[str, Callable[[], Any]]) -> None:
        self._makers = {name: functools.cache(maker) for name, maker in makers.items()}

    def __getitem__(self, name: str) -> Any:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)
