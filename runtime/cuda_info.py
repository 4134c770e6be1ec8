"""What a kernel for GPUs is, apart from its code."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..formats.spec import MatmulSpec
from ..schedules.cuda.cost import CudaCost
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
    """One kernel of a source that multiplies, and what it is chosen by.

    Attributes
    ----------
    first_m, last_m : it is not used for an M outside; no end where `last_m` is None.
    record : the tuned record that it comes from, None for a default.
    """

    name: str
    strategy: str
    instruction: str
    cost: CudaCost
    first_m: int = 1
    last_m: int | None = None
    record: str | None = None

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> CudaFunction:
        """From the fields of one, after a way through JSON."""
        return cls(**{**fields, "cost": CudaCost(**fields["cost"])})

    @property
    def rows(self) -> int:
        """Rows of X that its tile has."""
        return self.cost.rows

    def serves(self, m: int) -> bool:
        """Whether it may compute `m` rows."""
        within = self.first_m <= m and (self.last_m is None or m <= self.last_m)
        return within and -(-m // self.rows) <= MOST_TILES


def chosen(
    functions: Iterable[CudaFunction], m: int, multiprocessors: int, experts: int = 1
) -> CudaFunction:
    """The function for `m` rows: one that was tuned for it, else the one of least predicted time.

    Of several that were tuned, the one whose rows begin nearest below. So many `experts` have these
    rows each.
    """
    fits = [each for each in functions if each.serves(m)]
    tuned = [each for each in fits if each.record is not None]
    if tuned:
        return max(tuned, key=lambda each: each.first_m)
    return min(fits, key=lambda each: each.cost.time(m, multiprocessors, experts))


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
        # A unit of the work of experts may have a single row.
        tiles = MOST_TILES * tallest if self.spec.experts is None else MOST_TILES
        return min(MAX_ELEMENTS // columns, tiles)

    def tiling(self, m: int) -> CudaTiling:
        """How `m` rows, not more than `most_rows`, are computed."""
        if self.spec.experts is None:
            return self.of_experts(m, 1)
        return self.of_experts(self.spec.rows_of_each(m), min(m, self.spec.experts))

    def of_experts(self, rows: int, experts: int) -> CudaTiling:
        """How `rows` rows of each of so many experts are computed."""
        best = chosen(self.variants, rows, self.multiprocessors, experts)
        tiles = experts * -(-rows // best.rows)
        return CudaTiling(
            best.name,
            best.strategy,
            best.rows,
            best.instruction,
            tiles,
            tiles * best.cost.panels,
            best.record,
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
        # The last two are those of files of before, without a record as nothing had been tuned.
        without = ("architecture", "record", "tuned")
        given = {name: value for name, value in fields.items() if name not in without}
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
            }
        )

    def why_not_here(self) -> str | None:
        """Why no GPU of this machine can execute the kernel; None where one can."""
        return devices.why_no_gpu(self.capability)
