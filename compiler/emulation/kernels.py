"""Kernels for GPUs that run under emulation: what `verify --emulated` checks."""

from __future__ import annotations

from ...formats.spec import MatmulSpec
from ...runtime.cuda_code import CudaCode
from ...runtime.cuda_info import CudaInfo
from ...runtime.kernel import Kernel
from ...schedules.cuda.plan import plan_for
from ...targets.cuda import CudaTarget
from ..cuda import choose_variants, info_of, source, variant_named
from .driver import EmulatedDriver


def build(
    spec: MatmulSpec, target: CudaTarget, *, function: str | None = None, seed: int | None = None
) -> Kernel:
    """As `cuda.build`, a kernel on an emulated GPU; NVRTC is not needed.

    Parameters
    ----------
    function : the only one of the kernel; None takes those that `compile` does.
    seed : of the order of threads, see `Emulated.launch`.

    Raises
    ------
    ToolError
        No C++ compiler, once the kernel is called.
    UnsupportedError
        See `plan_for` and `variant_named`.
    """
    plan = plan_for(spec, target)
    variants = (variant_named(plan, function),) if function else choose_variants(plan)
    code, launches = source(plan, variants)
    image = with_architecture(code, target.capability).encode()
    info = info_of(plan, variants, launches, len(image))
    return Kernel(info, CudaCode(image, info, emulated_gpu(info, target, seed=seed)), source=code)


def with_architecture(code: str, capability: tuple[int, int]) -> str:
    """CUDA C++ that finds the macro by which it tells generations apart."""
    major, minor = capability
    return f"#define __CUDA_ARCH__ {100 * major + 10 * minor}\n{code}"


def emulated_gpu(info: CudaInfo, target: CudaTarget, *, seed: int | None = None) -> EmulatedDriver:
    """A GPU that has what the target has; images are sources."""
    return EmulatedDriver(capability=info.capability, shared_bytes=target.shared_bytes, seed=seed)
