"""Children for the tuning tests of GPUs: builders, and a bench with an emulated card in it.

What goes wrong is told by the band of a choice, which changes no result of a small problem.
"""

from __future__ import annotations

import os
import time

import emulated_card
import pytest
from quantmm.bench import gpu
from quantmm.errors import CudaError
from quantmm.tuning import candidate, measure

TARGET = "cuda-sm80"
IS_WRONG, CRASHES, HANGS, LOSES_THE_GPU = 8, 16, 24, 32


class Builder(candidate.Builder):
    def __init__(self):
        super().__init__()
        emulated_card.install(pytest.MonkeyPatch(), TARGET)


class Bench(measure.Bench):
    def __init__(self):
        self.gpu = emulated_card.install(pytest.MonkeyPatch(), TARGET)
        gpu.BEYOND_L2, gpu.GRAPH_CALLS = 0, 1  # launches are slow there
        super().__init__()

    def calls_per_turn(self, name):
        return 3

    def load(self, name, content, check=True):
        if f"band {IS_WRONG}" in name and check:
            return "wrong for 1 rows: all of it"
        return super().load(name, content, check)

    def turn(self, name, calls):
        if f"band {CRASHES}" in name:
            os.abort()
        if f"band {HANGS}" in name:
            time.sleep(1000)
        if f"band {LOSES_THE_GPU}" in name:

            def refused(*_):
                raise CudaError("cuGraphLaunch: CUDA_ERROR_ILLEGAL_ADDRESS")

            self.gpu.seconds = self.gpu.synchronize = refused
        return super().turn(name, calls) * (10 if name == "default" else 1)
