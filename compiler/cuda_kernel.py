"""Kernels for GPUs at run time: machine code for one architecture, and PTX for later ones.

This module and what it imports need NumPy and the CUDA driver, no compiler and no TVM.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from ..errors import ArrayError, TargetError
from ..schedules.cuda_cost import CudaCost
from ..targets import cuda, driver
from ..targets.cuda_layout import CudaLayout
from ..targets.driver import Device, Driver, Function, Module
from .arrays import MAX_ELEMENTS
from .cuda_linear import CudaLinear
from .cuda_records import function_for
from .quantize import QTensor
from .spec import MatmulSpec

if TYPE_CHECKING:
    from .kernel import Kernel

#: What a grid's second size may be (CUDA C++ Programming Guide, "Technical Specifications").
MOST_TILES = 65535


@dataclass(frozen=True)
class Launch:
    """One kernel of a source.

    Attributes
    ----------
    arguments : names of its arguments, in order: pointers to arrays, and int32 numbers.
    grid : thread blocks along x, y and z; a name is that of a number among the arguments.
    block : threads along x, y and z.
    shared_bytes : of dynamic shared memory.
    """

    name: str
    arguments: tuple[str, ...]
    grid: tuple[int | str, int | str, int | str]
    block: tuple[int, int, int]
    shared_bytes: int

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Launch:
        """From the fields of one, after a way through JSON."""
        arguments, grid, block = (tuple(fields[name]) for name in ("arguments", "grid", "block"))
        return cls(fields["name"], arguments, grid, block, fields["shared_bytes"])

    @property
    def parameters(self) -> str:
        """The kinds of its arguments, as `struct` writes them."""
        return "".join("i" if name in NUMBERS else "P" for name in self.arguments)


#: Arguments that are numbers.
NUMBERS = ("m", "mi", "aligned", "columns", "x_stride", "y_stride", "residual_stride")


@dataclass(frozen=True)
class CudaFunction:
    """One kernel of a source that multiplies, and what it is chosen by."""

    name: str
    strategy: str
    instruction: str
    cost: CudaCost

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> CudaFunction:
        """From the fields of one, after a way through JSON."""
        return cls(**{**fields, "cost": CudaCost(**fields["cost"])})

    @property
    def rows(self) -> int:
        """Of its tile."""
        return self.cost.rows


@dataclass(frozen=True)
class CudaInfo:
    """What a kernel is, apart from its code; goes to and from JSON in a kernel file.

    Attributes
    ----------
    instruction : the product that stands for the target.
    capability : compute capability of its machine code.
    multiprocessors : that a grid should fill.
    x_dtype : in which the kernels read activations.
    prepared : what the kernel `cuda_linear.PREPARE` writes.
    arguments : names of what a caller brings, in order.
    variants : the other kernels.
    cubin_bytes : of the machine code, behind which the PTX lies.
    record : the tuned record that `tuned` comes from.
    tuned : for numbers of rows, the kernel that serves them (`cuda_records.function_for`).
    """

    spec: MatmulSpec
    target: str
    instruction: str
    capability: tuple[int, int]
    multiprocessors: int
    layout: CudaLayout
    x_dtype: str
    prepared: tuple[str, ...]
    arguments: tuple[str, ...]
    launches: dict[str, Launch]
    variants: tuple[CudaFunction, ...]
    cubin_bytes: int
    versions: dict[str, str]
    record: str | None = None
    tuned: tuple[tuple[int, str], ...] = ()

    #: Nothing is added to activations.
    x_offset = 0
    #: As in `KernelInfo`: what it runs on.
    architecture = "cuda"
    features: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {"architecture": self.architecture, **dataclasses.asdict(self)} | {
            "spec": self.spec.to_json()
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> CudaInfo:
        """The inverse of `to_dict`, also after a way through JSON."""
        launches = {name: Launch.from_dict(each) for name, each in fields["launches"].items()}
        given = {name: value for name, value in fields.items() if name != "architecture"}
        return cls(
            **{
                **given,
                "spec": MatmulSpec.from_json(fields["spec"]),
                "layout": CudaLayout(**fields["layout"]),
                "capability": tuple(fields["capability"]),
                "prepared": tuple(fields["prepared"]),
                "arguments": tuple(fields["arguments"]),
                "features": tuple(fields["features"]),
                "launches": launches,
                "variants": tuple(map(CudaFunction.from_dict, fields["variants"])),
                "tuned": tuple(tuple(each) for each in fields["tuned"]),
            }
        )

    def why_not_here(self) -> str | None:
        """Why no GPU of this machine can execute the kernel; None where one can."""
        return cuda.why_not_here(self.capability)


@dataclass(frozen=True)
class CudaPlan:
    """How one M is computed: `mi` tiles of rows by the kernel `name`, in `blocks` thread blocks."""

    name: str
    strategy: str
    rows: int
    instruction: str
    mi: int
    blocks: int


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
        self, info: CudaInfo, library: bytes, gpu: Driver | None = None, source: str | None = None
    ) -> None:
        self.info = info
        self.spec = info.spec
        self.origin = "built"
        self.source = source
        #: Machine code and compressed PTX.
        self._library: bytes = library
        self._gpu = gpu
        self._lock = threading.Lock()
        self._plans: dict[int, CudaPlan] = {}
        self._modules: dict[int, Module] = {}
        self._functions: dict[tuple[int, str], Function] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its file's content, without the source; see `Kernel.__reduce__`."""
        from .kernel_file import packed, unpickled

        return unpickled, (packed([self]),)

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
        return self._library[: self.info.cubin_bytes]

    @property
    def ptx(self) -> bytes:
        """Code that the driver compiles, for GPUs of later generations."""
        return zlib.decompress(self._library[self.info.cubin_bytes :])

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

    def plan(self, m: int) -> CudaPlan:
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

    def plan_of_part(self, m: int) -> CudaPlan:
        """The plan of `m` of a call's rows."""
        found = self._plans.get(m)
        if found is None:
            found = self._plans[m] = self._planned(m)
        return found

    def _planned(self, m: int) -> CudaPlan:
        """As `plan_of_part`, which is asked in every call."""
        info = self.info
        fits = [v for v in info.variants if -(-m // v.rows) <= MOST_TILES]
        tuned = function_for(info.tuned, m)
        chosen = min(fits, key=lambda v: (v.name != tuned, v.cost.time(m, info.multiprocessors)))
        tiles = -(-m // chosen.rows)
        return CudaPlan(
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

    def save(self, path: str | os.PathLike[str], *others: Kernel | CudaKernel) -> None:
        """Write the kernel to one file that `load` reads; see `Kernel.save`."""
        from .kernel_file import save

        save(path, [self, *others])


def library(cubin: bytes, ptx: bytes) -> bytes:
    """Machine code and PTX as a kernel keeps them."""
    return cubin + zlib.compress(ptx, 9)


def dotted(capability: tuple[int, int]) -> str:
    """As NVIDIA writes it: 8.6."""
    return ".".join(map(str, capability))
