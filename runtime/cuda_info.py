"""What a kernel for GPUs is, apart from its code."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..formats.spec import MatmulSpec
from ..schedules.cuda.cost import CudaCost
from ..schedules.cuda_records import function_for
from ..schedules.plan import MAX_ELEMENTS
from ..targets.cuda_layout import CudaLayout
from . import devices

#: The kernel that makes X ready for the others.
PREPARE = "prepare"
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
        """Rows of X that its tile has."""
        return self.cost.rows


@dataclass(frozen=True)
class CudaTiling:
    """How one M is computed: `mi` tiles of rows by the kernel `name`, in `blocks` thread blocks."""

    name: str
    strategy: str
    rows: int
    instruction: str
    mi: int
    blocks: int
    record: str | None = None

    @property
    def tiles(self) -> int:
        """Tiles of rows."""
        return self.mi

    def details(self, num_threads: int | None) -> dict[str, Any]:
        """What `Kernel.report` says of GPUs alone."""
        return {"thread_blocks": self.blocks}


@dataclass(frozen=True)
class CudaInfo:
    """What a kernel is, apart from its code; goes to and from JSON in a kernel file.

    Attributes
    ----------
    instruction : the product that stands for the target.
    capability : compute capability of its machine code.
    multiprocessors : that a grid should fill.
    x_dtype : in which the kernels read activations.
    prepared : what the kernel `PREPARE` writes.
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

    #: The kind of device that it is for.
    device = "cuda"
    #: Nothing is added to activations.
    x_offset = 0
    #: As in `KernelInfo`: what it runs on.
    architecture = "cuda"
    features: tuple[str, ...] = ()

    @property
    def most_rows(self) -> int:
        """Rows that a kernel computes at a time, as offsets are int32."""
        tallest = max(variant.rows for variant in self.variants)
        columns = max(self.layout.x_columns, self.spec.n)
        return min(MAX_ELEMENTS // columns, MOST_TILES * tallest)

    def tiling(self, m: int) -> CudaTiling:
        """How `m` rows, not more than `most_rows`, are computed."""
        fits = [v for v in self.variants if -(-m // v.rows) <= MOST_TILES]
        tuned = function_for(self.tuned, m)
        chosen = min(fits, key=lambda v: (v.name != tuned, v.cost.time(m, self.multiprocessors)))
        tiles = -(-m // chosen.rows)
        return CudaTiling(
            chosen.name,
            chosen.strategy,
            chosen.rows,
            chosen.instruction,
            tiles,
            tiles * chosen.cost.panels,
            self.record if tuned else None,
        )

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
        return devices.why_no_gpu(self.capability)
