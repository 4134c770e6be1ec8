"""torch on a GPU: its matmuls of floats, its int8 product, and its product with packed int4.

Every contender's calls with all of its weights are one graph, between events of its stream.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..gpu import GRAPH_CALLS
from .job import Job, Timed, Weight

#: k tiles that `_convert_weight_to_int4pack` puts side by side.
INNER_K_TILES = 8


class Events:
    """The clock of torch's current stream."""

    def seconds(self, contender: Any, calls: int) -> float:
        """Seconds per call of a graph of several."""
        import torch

        graph, count = contender
        graph.replay()
        rounds = max(1, round(calls / count))
        event: Any = torch.cuda.Event
        first, last = event(enable_timing=True), event(enable_timing=True)
        first.record()
        for _ in range(rounds):
            graph.replay()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3 / (rounds * count)


def timed(calls: list[Callable[[], Any]], result: Callable[[], np.ndarray]) -> Timed:
    """Calls as a graph."""
    import torch

    many = [*calls] * math.ceil(GRAPH_CALLS / len(calls))
    new_stream: Any = torch.cuda.Stream
    stream = new_stream()
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in many:
            call()
    return Timed(Events(), (graph, len(many)), [*calls], result, about=str(torch.__version__))


def floats(job: Job, dtype: str) -> Timed:
    """X Wᵀ of one float type, Y of this type too."""
    import torch

    kind = getattr(torch, dtype)
    x = torch.from_numpy(job.x_floats()).cuda().to(kind)
    weights = [torch.from_numpy(weight.floats()).cuda().to(kind).t() for weight in job.weights()]
    calls = [functools.partial(torch.matmul, x, w) for w in weights]
    return timed([*calls], lambda: calls[-1]().to(torch.float32).cpu().numpy())


def int_mm(job: Job) -> Timed:
    """torch._int_mm, int8 x int8 to int32 without a scale; refuses fewer than 17 rows."""
    import torch

    x = torch.from_numpy(job.x()).cuda()
    weights = [torch.from_numpy(weight.values).cuda().t() for weight in job.weights()]
    calls = [functools.partial(torch._int_mm, x, w) for w in weights]
    return timed([*calls], lambda: job.scaled(calls[-1]().cpu().numpy()))


def int4pack(job: Job) -> Timed:
    """torch._weight_int4pack_mm: weights of 4 bits in groups, X and Y bfloat16, float products."""
    import torch

    assert job.group is not None
    x = torch.from_numpy(job.x_floats()).cuda().to(torch.bfloat16)
    calls = []
    for weight in job.weights():
        packed, scales = int4_packed(weight)
        run = functools.partial(torch._weight_int4pack_mm, x, packed, job.group, scales)
        calls.append(run)
    return timed([*calls], lambda: calls[-1]().to(torch.float32).cpu().numpy())


def int4_packed(weight: Weight) -> tuple[Any, Any]:
    """Weights as torch packs them, and scale and zero of every group: (q - 8) scale + zero."""
    import torch

    signed = weight.zeros is None
    integers = (weight.values + 8 if signed else weight.values).astype(np.uint8)
    pairs = integers[:, ::2] << 4 | integers[:, 1::2]
    packed = torch._convert_weight_to_int4pack(torch.from_numpy(pairs).cuda(), INNER_K_TILES)
    zeros = np.zeros_like(weight.scales)
    if weight.zeros is not None:
        zeros = (8 - weight.zeros.astype(np.float32)) * weight.scales
    both = np.stack([weight.scales, zeros], axis=-1).transpose(1, 0, 2)
    scales = torch.from_numpy(np.ascontiguousarray(both)).cuda().to(torch.bfloat16)
    return packed, scales
