"""Kernels for GPUs at run time: machine code for one architecture, and PTX for later ones.

This module and what it imports need NumPy and the CUDA driver, no compiler and no TVM.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from ..errors import ArrayError, TargetError
from ..formats.quantize import QTensor
from ..schedules.cuda_records import function_for
from ..schedules.plan import MAX_ELEMENTS
from ..targets import cuda
from . import driver, kernel_file
from .cuda_info import MOST_TILES, CudaInfo, CudaTiling
from .cuda_linear import CudaLinear
from .driver import Device, Driver, Function, Module
from .kernel_file import Saved


@dataclass(frozen=True)
class CudaCode:
    """Machine code, and compressed PTX behind it, as a kernel file has them."""

    stored: bytes

    def content(self) -> bytes:
        """The bytes of both."""
        return self.stored

    @classmethod
    def of(cls, cubin: bytes, ptx: bytes) -> CudaCode:
        """From machine code and PTX."""
        return cls(cubin + zlib.compress(ptx, 9))


class CudaKernel:
    """A compiled `MatmulSpec` for GPUs; `bind` a weight and call the result, or call it with both.

    Made by `compile` or `load`, on any machine; only calls need a GPU. One kernel serves every M.
    It can be copied and pickled, and so can a `CudaLinear`.

    Attributes
    ----------
    origin : where its code came from: "built", "cache" or "file".
    source : the CUDA C++ that it was built from; None unless it was built here.
    """

    def __init__(
        self, info: CudaInfo, code: CudaCode, gpu: Driver | None = None, source: str | None = None
    ) -> None:
        self.info = info
        self.spec = info.spec
        self.origin = "built"
        self.source = source
        self.code = code
        self._gpu = gpu
        self._lock = threading.Lock()
        self._plans: dict[int, CudaTiling] = {}
        self._modules: dict[int, Module] = {}
        self._functions: dict[tuple[int, str], Function] = {}

    def __copy__(self) -> CudaKernel:
        """The same code, which nothing changes, and where it is loaded."""
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> CudaKernel:
        return self.__copy__()

    def __repr__(self) -> str:
        return f"CudaKernel({self.spec.to_json()}, target={self.info.target!r})"

    @property
    def cubin(self) -> bytes:
        """Machine code for GPUs of `info.capability` and later ones of its generation."""
        return self.code.content()[: self.info.cubin_bytes]

    @property
    def ptx(self) -> bytes:
        """Code that the driver compiles, for GPUs of later generations."""
        return zlib.decompress(self.code.content()[self.info.cubin_bytes :])

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

    def plan(self, m: int) -> CudaTiling:
        """Which kernel computes `m` rows, and in how many tiles.

        Raises
        ------
        ArrayError
            Not an M of this kernel, or more rows than are computed at a time.
        """
        self.check_rows(m)
        if m < 1 or m > self.most_rows:
            raise ArrayError(f"x has {m} rows; expected 1 to {self.most_rows}")
        return self.plan_of_part(m)

    def check_rows(self, m: int) -> None:
        """Refuse an M that is not this kernel's."""
        if self.spec.m is not None and m != self.spec.m:
            raise ArrayError(f"x has {m} rows; this kernel was compiled for m={self.spec.m}")

    @property
    def most_rows(self) -> int:
        """Rows that a kernel computes at a time, as offsets are int32; a call has any M."""
        tallest = max(variant.rows for variant in self.info.variants)
        columns = max(self.info.layout.x_columns, self.spec.n)
        return min(MAX_ELEMENTS // columns, MOST_TILES * tallest)

    def plan_of_part(self, m: int) -> CudaTiling:
        """The plan of `m` of a call's rows."""
        found = self._plans.get(m)
        if found is None:
            found = self._plans[m] = self._planned(m)
        return found

    def _planned(self, m: int) -> CudaTiling:
        """The plan of `m` rows, found anew; `plan_of_part` keeps it."""
        info = self.info
        fits = [v for v in info.variants if -(-m // v.rows) <= MOST_TILES]
        tuned = function_for(info.tuned, m)
        chosen = min(fits, key=lambda v: (v.name != tuned, v.cost.time(m, info.multiprocessors)))
        tiles = -(-m // chosen.rows)
        return CudaTiling(
            chosen.name,
            chosen.strategy,
            chosen.rows,
            chosen.instruction,
            tiles,
            tiles * chosen.cost.panels,
        )

    def report(self, m: Sequence[int] = (1, 4, 16, 64, 512)) -> list[dict[str, Any]]:
        """For each M in `m`: the strategy, grid, instruction and tuned record that it uses."""
        rows = []
        for count in [self.spec.m] if self.spec.m else m:
            plan = (
                self.plan(count) if count <= self.most_rows else self.plan_of_part(self.most_rows)
            )
            rows.append(
                {
                    "m": count,
                    "strategy": plan.strategy,
                    "function": plan.name,
                    "tiles": plan.mi,
                    "thread_blocks": plan.blocks,
                    "instruction": plan.instruction,
                    "target": self.info.target,
                    "record": self.info.record if function_for(self.info.tuned, count) else None,
                }
            )
        return rows

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
                launch = self.info.launches[name]
                found = self._module(device).function(
                    launch.name, launch.parameters, launch.block, shared_bytes=launch.shared_bytes
                )
                self._functions[device, name] = found
        return found

    def _module(self, device: int) -> Module:
        """The kernel's code on a device."""
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
        if cuda.runs(self.info.capability, device.capability):
            return self.cubin
        if device.capability > self.info.capability:
            return self.ptx
        raise TargetError(
            f"this kernel ({self.info.target}) needs compute capability "
            f"{dotted(self.info.capability)}; {device.name} has {dotted(device.capability)}"
        )

    def bind(
        self,
        w: QTensor,
        bias: npt.ArrayLike | None = None,
        *,
        x_scale: npt.ArrayLike | None = None,
        x_zero_point: npt.ArrayLike | None = None,
        out_scale: npt.ArrayLike | None = None,
        out_zero_point: npt.ArrayLike | None = None,
    ) -> CudaLinear:
        """Pack a weight once for many calls; see `Kernel.bind`.

        Raises
        ------
        ArrayError
            The weight or bias does not fit the spec.
        TargetError
            No GPU, or none that can execute this kernel.
        """
        scalars = {
            "x_scale": x_scale,
            "x_zero_point": x_zero_point,
            "out_scale": out_scale,
            "out_zero_point": out_zero_point,
        }
        return CudaLinear(self, w, bias, scalars)

    def __call__(self, x: Any, w: QTensor, bias: npt.ArrayLike | None = None, **call: Any) -> Any:
        """`bind(w, bias)(x, **call)`: packs the weight anew in every call."""
        return self.bind(w, bias)(x, **call)

    def save(self, path: str | os.PathLike[str], *others: Saved) -> None:
        """Write the kernel to one file that `load` reads; see `Kernel.save`."""
        kernel_file.save(path, [self, *others])


def dotted(capability: tuple[int, int]) -> str:
    """As NVIDIA writes it: 8.6."""
    return ".".join(map(str, capability))
