"""The code of kernels for GPUs: machine code for one architecture, and PTX for later ones.

This module and what it imports need NumPy and the CUDA driver, no compiler and no TVM.
"""

from __future__ import annotations

import threading
import zlib

from ..errors import TargetError
from ..targets import cuda
from . import driver
from .cuda_info import CudaInfo
from .driver import Device, Driver, Function, Module


class CudaCode:
    """Machine code with compressed PTX behind it, which a device loads when it is first used there.

    Parameters
    ----------
    content : both, as a kernel file has them.
    gpu : the driver; None for that of the machine, at the first use.
    """

    def __init__(self, content: bytes, info: CudaInfo, gpu: Driver | None = None) -> None:
        self._content = content
        self._info = info
        self._gpu = gpu
        self._lock = threading.Lock()
        self._modules: dict[int, Module] = {}
        self._functions: dict[tuple[int, str], Function] = {}

    @classmethod
    def of(cls, cubin: bytes, ptx: bytes, info: CudaInfo) -> CudaCode:
        """From machine code and PTX."""
        return cls(cubin + zlib.compress(ptx, 9), info)

    def content(self) -> bytes:
        """The bytes of both."""
        return self._content

    @property
    def cubin(self) -> bytes:
        """Machine code for GPUs of `info.capability` and later ones of its generation."""
        return self._content[: self._info.cubin_bytes]

    @property
    def ptx(self) -> bytes:
        """Code that the driver compiles, for GPUs of later generations."""
        return zlib.decompress(self._content[self._info.cubin_bytes :])

    @property
    def gpu(self) -> Driver:
        """The CUDA driver.

        Raises
        ------
        TargetError
            There is none, or no GPU.
        """
        if self._gpu is None:
            self._gpu = driver.driver()
        return self._gpu

    def function(self, device: int, name: str) -> Function:
        """The kernel `name` on a device, loaded at its first use.

        Raises
        ------
        TargetError
            The device is older than the code, or of a generation for which there is only PTX that
            the driver does not know.
        """
        found = self._functions.get((device, name))
        if found is None:
            with self._lock:
                launch = self._info.launches[name]
                found = self._module(device).function(
                    launch.name, launch.parameters, launch.block, shared_bytes=launch.shared_bytes
                )
                self._functions[device, name] = found
        return found

    def _module(self, device: int) -> Module:
        """The code on a device."""
        if device not in self._modules:
            devices = {each.number: each for each in self.gpu.devices()}
            if device not in devices:
                raise TargetError(f"no CUDA device {device}; there are {len(devices)}")
            self._modules[device] = self.gpu.load(device, self.image_for(devices[device]))
        return self._modules[device]

    def image_for(self, device: Device) -> bytes:
        """Machine code if the device executes it, else PTX if it is newer.

        Raises
        ------
        TargetError
            It is older.
        """
        info = self._info
        if cuda.runs(info.capability, device.capability):
            return self.cubin
        if device.capability > info.capability:
            return self.ptx
        raise TargetError(
            f"this kernel ({info.target}) needs compute capability {dotted(info.capability)}; "
            f"{device.name} has {dotted(device.capability)}"
        )


def dotted(capability: tuple[int, int]) -> str:
    """As NVIDIA writes it: 8.6."""
    return ".".join(map(str, capability))
