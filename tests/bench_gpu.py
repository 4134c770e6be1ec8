"""Contenders on an emulated card, for child processes that the tests of `quantmm bench` start."""

from __future__ import annotations

import sys

import emulated_card
import emulated_torch
import pytest
from quantmm.bench import cuda_limits, gpu
from quantmm.bench.contenders import machine, ours, torch_gpu


def prepared(builder):
    """A builder that finds the card, where launches are slow."""

    def build(job, **options):
        patch = pytest.MonkeyPatch()
        card = emulated_card.install(patch, "cuda-sm80")
        patch.setitem(sys.modules, "torch", emulated_torch.module(card))
        patch.setattr(gpu, "BEYOND_L2", 0)
        patch.setattr(gpu, "GRAPH_CALLS", 1)
        patch.setattr(torch_gpu, "GRAPH_CALLS", 1)
        patch.setattr("quantmm.bench.contenders.job.TURN_SECONDS", 1e-6)
        small(patch)
        return builder(job, **options)

    return build


def small(patch):
    """Limits measured by little work."""
    for name, value in {"COPIED": 1 << 14, "IN_L2": 1 << 12, "PRODUCTS": 2, "ROUNDS": 1}.items():
        patch.setattr(cuda_limits, name, value)
    for name in ("L2_ROUNDS", "BLOCKS"):
        patch.setattr(cuda_limits, name, 1)


product, measured = prepared(ours.product), prepared(machine.measured)
floats, int_mm, int4pack = map(prepared, (torch_gpu.floats, torch_gpu.int_mm, torch_gpu.int4pack))
