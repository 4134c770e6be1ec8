"""Candidates on their way to the bytes of a kernel file.

Building runs in a child process: the compiler of a candidate may abort, and never come back.
"""

from __future__ import annotations

from ..formats.spec import MatmulSpec
from ..runtime.kernel import Kernel
from ..runtime.tvm_runtime import without_torch
from ..schedules.cpu.plan import plan_for
from ..schedules.cuda import plan as cuda_plan
from ..schedules.records import Record
from ..targets import CudaTarget, Target
from . import on_cpu, on_cuda
from .choice import Choice


class Builder:
    """Builds in the process that it lives in; see `processes`."""

    def __init__(self) -> None:
        with without_torch():
            from ..compiler import cpu

        self._cpu = cpu

    def candidate(self, spec: MatmulSpec, row: Target | CudaTarget, choice: Choice) -> bytes:
        """A kernel file with the one function of `choice`, for every M."""
        if row.device == "cuda":
            with without_torch():
                from ..compiler import cuda
            for_gpu = cuda_plan.plan_for(spec, row)
            return content_of(cuda.kernel_of(for_gpu, (on_cuda.variant_of(for_gpu, choice),)))
        plan = plan_for(spec, row, choice.k_block)
        variant = on_cpu.variant_of(plan, choice)
        function = self._cpu.function_of(variant, plan.layout)
        return content_of(self._cpu.kernel_of(plan, [(variant, function)]))

    def kernel(self, spec: MatmulSpec, row: Target, record: Record | None) -> bytes:
        """A CPU's kernel file with all functions that `compile` would give it."""
        return content_of(self._cpu.build(spec, row, record=record))


def content_of(kernel: Kernel) -> bytes:
    """The kernel file of one kernel."""
    from ..runtime.kernel_file import packed

    return packed([kernel])
