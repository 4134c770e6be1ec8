"""Where contenders of a tuning run are called and timed: on the host's CPU, or on a GPU."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..bench.gpu import Captured, Gpu, gpu_side
from ..bench.rotation import COLD_ROWS, copies_for
from ..runtime.memory import aligned


class Calls(NamedTuple):
    """Calls of a contender with one of its packed weights: on all rows, and on the first one."""

    whole: Callable[[], object]
    one_row: Callable[[], object]


class Host:
    """The CPU: arrays lie where the program has them, and the clock is the system's."""

    def placed(self, array: np.ndarray) -> Any:
        """An array where calls take it."""
        return aligned(array)

    def write(self, placed: Any, values: np.ndarray) -> None:
        """Put values into an array that was placed."""
        placed[...] = values

    def read(self, placed: Any) -> np.ndarray:
        """The values of an array that was placed."""
        return np.asarray(placed)

    def copies(self, weight_bytes: int, m: int) -> int:
        """How many weights of a contender take turns, for `m` rows."""
        return copies_for(weight_bytes) if m <= COLD_ROWS else 1

    def contender(self, calls: Sequence[Calls]) -> Iterator[Calls]:
        """What `seconds` takes, of the calls with each weight."""
        return itertools.cycle(calls)

    def seconds(self, contender: Iterator[Calls], calls: int) -> float:
        """Seconds per call.

        A call on one row comes before: it wakes the threads, and reads the weight once.
        """
        next(contender).one_row()
        start = time.perf_counter()
        for _ in range(calls):
            next(contender).whole()
        return (time.perf_counter() - start) / calls


HOST = Host()


class OnGpu(Gpu):
    """As `Host`, the first GPU."""

    def contender(self, calls: Sequence[Calls]) -> Captured:
        """As `Host`."""
        return Captured([each.whole for each in calls])


def on_gpu() -> OnGpu:
    """The side of this process's first GPU.

    Raises
    ------
    TargetError
        No driver, or no GPU.
    """
    return OnGpu(gpu_side().gpu)
