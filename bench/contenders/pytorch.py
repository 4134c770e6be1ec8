"""torch: its oneDNN and FBGEMM, and the floats that a user of quantmm leaves behind."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from .job import X_SCALE, Job, Ready, Weight


def onednn(job: Job) -> Ready:
    """OneDNN as torch brings it, int8 x int8 to float32 with scales, packed weight.

    X is uint8 with zero point 128: with int8 torch hands oneDNN a format that has no fast kernel.
    """
    import torch

    torch.set_num_threads(job.threads)
    unsigned = torch.from_numpy(job.x()).view(torch.uint8) ^ 128
    zero = torch.zeros(job.n, dtype=torch.int32)
    end: tuple[Any, ...] = (None, 1.0, 0, torch.float32, "none", [], "")
    run = torch.ops.onednn.qlinear_pointwise
    calls = []
    for weight in job.weights():
        packed = torch.ops.onednn.qlinear_prepack(torch.from_numpy(weight.values), [job.m, job.k])
        scale = torch.from_numpy(weight.scales[:, 0].copy())
        calls.append(functools.partial(run, unsigned, X_SCALE, 128, packed, scale, zero, *end))
    return Ready([*calls], lambda: calls[-1]().numpy(), about=version())


def version() -> str:
    """The version of oneDNN that torch brings."""
    import torch

    found = re.search(r"MKL-DNN (v[\d.]+)", torch.__config__.show())
    return f"oneDNN {found[1]}" if found else ""


def int_mm(job: Job) -> Ready:
    """torch._int_mm, int8 x int8 to int32, nothing packed; refuses some shapes."""
    import torch

    torch.set_num_threads(job.threads)
    x = torch.from_numpy(job.x())
    weights = [torch.from_numpy(weight.values).t() for weight in job.weights()]
    calls = [functools.partial(torch._int_mm, x, w) for w in weights]
    return Ready([*calls], lambda: job.scaled(calls[-1]().numpy()))


def dynamic(job: Job, engine: str) -> Ready:
    """The linear of torch's dynamic quantization: X becomes uint8 with one scale for all rows."""
    import torch

    torch.set_num_threads(job.threads)
    torch.backends.quantized.engine = engine
    x = torch.from_numpy(job.x())
    run = torch.ops.quantized.linear_dynamic
    # False: X keeps all 8 bits, which VNNI multiplies without overflow.
    calls = [functools.partial(run, x, qlinear_weight(w), False) for w in job.weights()]
    return Ready([*calls], lambda: calls[-1]().numpy())


def qlinear_weight(weight: Weight) -> Any:
    """The weight packed for the engine that is set."""
    import torch

    scales = torch.from_numpy(weight.scales[:, 0].astype(np.float64))
    zeros = torch.zeros(len(scales), dtype=torch.long)
    values = torch.from_numpy(weight.values)
    tensor = torch._make_per_channel_quantized_tensor(values, scales, zeros, 0)
    return torch.ops.quantized.linear_prepack(tensor, None)


def floats(job: Job, dtype: str) -> Ready:
    """Torch's linear of one float type, X and Y of this type too."""
    import torch

    torch.set_num_threads(job.threads)
    kind = getattr(torch, dtype)
    x = torch.from_numpy(job.x_floats()).to(kind)
    linear: Callable[..., Any] = torch.nn.functional.linear
    weights = (torch.from_numpy(weight.floats()).to(kind) for weight in job.weights())
    calls = [functools.partial(linear, x, w) for w in weights]
    return Ready([*calls], lambda: calls[-1]().float().numpy())
