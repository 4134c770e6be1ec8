"""A machine with a GPU, which is emulated: whatever asks for the driver or for NVRTC gets that."""

from __future__ import annotations

from quantmm.compiler import nvrtc
from quantmm.compiler.emulation.driver import EmulatedDriver
from quantmm.runtime import driver as drivers
from quantmm.targets import find


def install(patch, target="cuda-sm90", **fields):
    """Put the card of a target into this machine; its machine code is CUDA C++."""
    row = find(target)
    major, minor = row.capability

    def source_itself(source, arch, *, form="cubin"):
        return f"#define __CUDA_ARCH__ {100 * major + 10 * minor}\n{source}".encode()

    gpu = EmulatedDriver(capability=row.capability, shared_bytes=row.shared_bytes, **fields)
    patch.setattr(nvrtc, "compile_cuda", source_itself)
    patch.setattr(drivers, "driver", lambda: gpu)
    return gpu
