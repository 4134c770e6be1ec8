"""The limits of this machine for a row: of its CPU, or of its GPU."""

from __future__ import annotations

from ..runtime.tvm_runtime import without_torch
from ..targets import CudaTarget, Target
from . import cuda_limits
from .roofline import Limits


def measure(row: Target | CudaTarget, threads: int) -> Limits:
    """Operations and bytes per second; takes some seconds."""
    if row.device == "cuda":
        return cuda_limits.measure(row, cuda_limits.image(row))
    with without_torch():
        from . import limits
    return limits.measure(row, threads)
