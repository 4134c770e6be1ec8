"""Arrays on the first GPU, and times of calls between events, without Python's part of them."""

from __future__ import annotations

import functools
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import CudaError
from ..runtime import driver
from ..runtime.cuda_buffer import Buffer
from ..runtime.driver import Driver, Graph

#: Bytes of weights to rotate through on a GPU, as a multiple of its L2, and copies at the most.
BEYOND_L2, MOST_COPIES = 3, 256
#: Calls of a graph at least: launching it takes a few microseconds.
GRAPH_CALLS = 16
#: What a child says that ends because its GPU has failed.
LOST = "the GPU cannot be used any more"


class Captured:
    """Calls with every weight in turn, as one graph once they are timed."""

    def __init__(self, calls: Sequence[Callable[[], object]]) -> None:
        self.calls = [*calls] * math.ceil(GRAPH_CALLS / len(calls))
        self.graph: Graph | None = None


class Gpu:
    """The first GPU, with a stream of its own.

    A failure that leaves the GPU without a context, as an access outside of its memory does, ends
    the process: the next one has a new context.
    """

    def __init__(self, gpu: Driver) -> None:
        self.gpu, self.device = gpu, 0
        self.stream = gpu.new_stream(self.device)
        self.l2_bytes = gpu.devices()[self.device].l2_bytes

    def placed(self, array: np.ndarray) -> Buffer:
        """An array where calls take it."""
        return Buffer(self.gpu, array, device=self.device, stream=self.stream)

    def write(self, placed: Buffer, values: np.ndarray) -> None:
        """Put values into an array that was placed."""
        placed.write(values)

    def read(self, placed: Buffer) -> np.ndarray:
        """The values of an array that was placed."""
        return self._or_end(placed.read)

    def copies(self, weight_bytes: int, m: int = 1) -> int:
        """How many weights take turns: whatever M is, they come from memory, as a model's do."""
        enough = -(-BEYOND_L2 * self.l2_bytes // max(1, weight_bytes))
        return max(2, min(enough, MOST_COPIES))

    def seconds(self, contender: Captured, calls: int) -> float:
        """Seconds per call, of at least about so many."""
        return self._or_end(functools.partial(self._seconds, contender, calls))

    def _seconds(self, contender: Captured, calls: int) -> float:
        if contender.graph is None:
            # Once before, so that weights are on the device and code is loaded.
            work = functools.partial(run, contender.calls)
            work()
            contender.graph = self.gpu.captured(self.device, self.stream, work)
        launch = functools.partial(contender.graph.launch, self.stream)
        launch()
        rounds = max(1, round(calls / len(contender.calls)))
        work = functools.partial(run, [launch] * rounds)
        return self.gpu.seconds(self.device, self.stream, work) / (rounds * len(contender.calls))

    def _or_end(self, work: Callable[[], Any]) -> Any:
        """What `work` returns; the process ends where it leaves no context to go on with."""
        try:
            return work()
        except CudaError as error:
            try:
                self.gpu.synchronize(self.device, 0)
            except CudaError:
                print(f"{LOST}: {error}", file=sys.stderr, flush=True)
                os._exit(1)
            raise


def run(calls: Sequence[Callable[[], object]]) -> None:
    """Make calls one after the other."""
    for call in calls:
        call()


@functools.cache
def gpu_side() -> Gpu:
    """The side of this process's first GPU.

    Raises
    ------
    TargetError
        No driver, or no GPU.
    """
    return Gpu(driver.driver())
