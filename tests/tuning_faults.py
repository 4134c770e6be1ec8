"""Children for the tuning tests: a builder and a bench in which things go wrong on purpose.

What goes wrong is told by a parameter of the choice, `few_tiles`, that changes no result.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import time

from quantmm.schedules.cpu.plan import plan_for
from quantmm.tuning import candidate, measure, on_cpu

CRASHES_COMPILER, HANGS_COMPILER, FAILS_TO_BUILD = 100, 101, 102
IS_WRONG, CRASHES, HANGS = 110, 111, 112


class Builder(candidate.Builder):
    def candidate(self, spec, row, choice):
        fault = choice.parameters.few_tiles
        if fault == CRASHES_COMPILER:
            os.abort()
        if fault == HANGS_COMPILER:
            time.sleep(1000)
        if fault == FAILS_TO_BUILD:
            raise ValueError("no such tile")
        if fault == IS_WRONG:
            return self.mislabelled(spec, row, choice, activation_fn="relu")
        return super().candidate(spec, row, choice)

    def mislabelled(self, spec, row, choice, **other):
        """A kernel of another spec that says it were one of `spec`."""
        different = dataclasses.replace(spec, **other)
        plan = plan_for(different, row)
        variant = on_cpu.variant_of(plan, choice)
        choices = [(variant, self._cpu.function_of(variant, plan.layout))]
        kernel = self._cpu.kernel_of(plan, choices)
        layout = plan_for(spec, row, choice.k_block).layout
        kernel.info = dataclasses.replace(kernel.info, spec=spec, layout=layout)
        return candidate.content_of(kernel)


class Bench(measure.Bench):
    def calls_per_turn(self, name):
        return 3

    def load(self, name, content, check=True):
        if f"few_tiles {CRASHES} " in name:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().load(name, content, check)

    def turn(self, name, calls):
        if f"few_tiles {HANGS} " in name:
            time.sleep(1000)
        return super().turn(name, calls)


class SlowDefault(Bench):
    """Everything beats the default."""

    def turn(self, name, calls):
        return super().turn(name, calls) * (10 if name == "default" else 1)


class FastDefault(Bench):
    """Nothing beats the default."""

    def turn(self, name, calls):
        return super().turn(name, calls) * (0.1 if name == "default" else 1)
