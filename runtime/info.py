"""What a kernel for CPUs is, apart from its code."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..formats.spec import MatmulSpec
from ..schedules.plan import MAX_ELEMENTS
from ..targets import WeightLayout, machine
from . import threads

#: Bytes of weights that one thread reads in a nanosecond where a cache holds them.
STREAM = 60.0
#: Bytes of a weight that a core keeps in a cache of its own beside what else it reads.
OWN_CACHE = 3 << 19
#: The share of tiles that blocks of equal size may add behind the last row.
SPARE_TILES = 1 / 32


@dataclass(frozen=True)
class Function:
    """One function of a kernel, and the M that it may compute.

    Attributes
    ----------
    rows : of its tiles.
    cost, fixed : of one tile of rows over all of W, and of what comes before the first one, in a
        unit that the functions of a kernel share, see `KernelInfo.cost_ns`.
    panels : parts into which the columns of W are cut; a task is one of them for a block of rows.
    block_rows : rows of X whose packed form stays in the cache while panels of W pass by.
    first_m, last_m : it is not used for an M outside; no end where `last_m` is None.
    record : the tuned record that it comes from, None for a default.
    """

    name: str
    strategy: str
    rows: int
    instruction: str
    cost: float
    block_rows: int
    panels: int
    first_m: int = 1
    last_m: int | None = None
    record: str | None = None
    fixed: float = 0.0

    def serves(self, m: int) -> bool:
        """Whether it may compute `m` rows."""
        return self.first_m <= m and (self.last_m is None or m <= self.last_m)

    def cost_of(self, m: int) -> float:
        """Relative time of `m` rows."""
        return self.fixed + -(-m // self.rows) * self.cost


@dataclass(frozen=True)
class Tiling:
    """How one M is computed: `mo` blocks of `mi` tiles of rows, by the function `name`.

    Attributes
    ----------
    work : its time on one thread, in nanoseconds, by estimate.
    best : the number of threads with the least predicted time.
    """

    name: str
    strategy: str
    rows: int
    instruction: str
    mo: int
    mi: int
    work: float
    best: int
    record: str | None = None

    @property
    def tiles(self) -> int:
        """Tiles of rows."""
        return self.mo * self.mi

    def details(self, num_threads: int | None) -> dict[str, Any]:
        """What `Kernel.report` says of CPUs alone, for a call of the calling thread."""
        count, _ = threads.count(num_threads, self.work, self.best)
        return {"threads": count, "pool": threads.pool_name()}


@dataclass(frozen=True)
class KernelInfo:
    """What a kernel is, apart from its code; goes to and from JSON in a kernel file.

    Attributes
    ----------
    instruction : the dot product that stands for the target.
    arguments : names of the array arguments, in order.
    x_offset : what the kernel adds to activations, which sums of the weight make up for.
    cost_ns : what one unit of `Function.cost` is in nanoseconds of one thread, by estimate.
    """

    spec: MatmulSpec
    target: str
    instruction: str
    features: tuple[str, ...]
    architecture: str
    layout: WeightLayout
    arguments: tuple[str, ...]
    x_offset: int
    functions: tuple[Function, ...]
    cost_ns: float
    versions: dict[str, str]

    #: The kind of device that it is for.
    device = "cpu"

    @property
    def most_rows(self) -> int:
        """Rows that a function computes at a time, as its offsets are int32.

        The last block of tiles may be whole blocks longer than M: half of the range is for that.
        """
        return MAX_ELEMENTS // 2 // max(self.layout.k_padded, self.spec.n)

    def tiling(self, m: int) -> Tiling:
        """How `m` rows, not more than `most_rows`, are computed."""
        if self.spec.experts is None:
            return self._tiling(m)
        return self.of_experts(self.spec.rows_of_each(m), min(m, self.spec.experts))

    def of_experts(self, rows: int, experts: int) -> Tiling:
        """How `rows` rows of each of so many experts are computed, in units of each."""
        one = self._tiling(rows)
        work = one.work * experts
        return dataclasses.replace(
            one, mo=experts, work=work, best=threads.best_of(work, threads.MAX_THREADS)
        )

    def _tiling(self, m: int) -> Tiling:
        """As `tiling`, for one weight."""
        # The one function of a kernel for a fixed M also computes the last part of that.
        fit = [each for each in self.functions if each.serves(m)] or self.functions
        best = min(fit, key=lambda each: each.cost_of(m))
        tiles = -(-m // best.rows)
        mo = -(-tiles // max(1, best.block_rows // best.rows))
        work = max(best.cost_of(m) * self.cost_ns, self.layout.nbytes / STREAM)
        count = threads.best_of(work, mo * best.panels)
        if mo == 1 and best.record is None and self.layout.nbytes <= OWN_CACHE:
            mo = blocks_of(tiles, min(count, threads.own_limit()))
        return Tiling(
            best.name,
            best.strategy,
            best.rows,
            best.instruction,
            mo,
            -(-tiles // mo),
            work,
            count,
            best.record,
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        fields = dataclasses.asdict(self)
        fields["spec"] = self.spec.to_json()
        return fields

    def why_not_here(self) -> str | None:
        """Why this machine cannot execute the kernel; None where it can."""
        return machine.why_not(self.architecture, self.features)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> KernelInfo:
        """The inverse of `to_dict`, also after a way through JSON."""
        return cls(
            **{
                **fields,
                "spec": MatmulSpec.from_json(fields["spec"]),
                "layout": WeightLayout(**fields["layout"]),
                "features": tuple(fields["features"]),
                "arguments": tuple(fields["arguments"]),
                "functions": tuple(Function(**each) for each in fields["functions"]),
            }
        )


def blocks_of(tiles: int, threads: int) -> int:
    """Into how many blocks of rows `tiles` are cut for so many threads, each with W to itself.

    A thread then multiplies the rows that it packed, which its own cache has. There is no block of
    one tile, and hardly a tile more than without blocks.
    """
    most = int(tiles * (1 + SPARE_TILES))
    counts = range(min(threads, tiles // 2), 1, -1)
    return next((count for count in counts if count * -(-tiles // count) <= most), 1)
