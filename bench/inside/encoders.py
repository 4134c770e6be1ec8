"""The encoder's variants, which take turns in one process: torch's own, and those with quantmm."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...formats.named import fields_of
from ...formats.spec import MatmulSpec
from ...runtime.threads import pool_name
from ..compare import ROUNDS, load_by_others
from ..contenders import Contender, Job, reason
from ..contenders.job import TOLERANCE
from ..row import Ratio, as_json
from ..timing import Time
from .clock import median_call
from .company import Company, Facts, measured
from .encoder import OUR_VARIANTS, VARIANTS, Size, encoder
from .hosts import find_host, require

BUILDER = f"{__name__}:ready"


@dataclass(frozen=True)
class EncoderRow:
    """One number of tokens. Times in seconds for one call of the whole model.

    Attributes
    ----------
    times : of the variants that took part, by name.
    absent : why others took no part, by name.
    pool : on whose threads quantmm's kernels ran.
    busy_cores, stolen_cores : as those of `bench.row.Row`.
    """

    size: Size
    batch: int
    tokens: int
    threads: int
    times: Mapping[str, Time]
    absent: Mapping[str, str]
    pool: str
    busy_cores: float
    stolen_cores: float

    @property
    def format(self) -> str:
        """What was computed."""
        return "encoder"

    @property
    def title(self) -> str:
        """The shape of its input."""
        return f"{self.batch} x {self.tokens}"

    @property
    def best_torch(self) -> str | None:
        """The fastest variant that is torch's own."""
        theirs = [name for name in self.times if name not in OUR_VARIANTS]
        return min(theirs, key=lambda name: self.times[name].median, default=None)

    def ratio(self, name: str) -> Ratio | None:
        """The fastest of torch's over a variant; None where one of them took no part."""
        if self.best_torch is None or name not in self.times:
            return None
        return Ratio.of(self.times[self.best_torch], self.times[name])

    def to_dict(self) -> dict[str, Any]:
        """As JSON types: what was measured, and beside it what follows."""
        return {
            "best_torch": self.best_torch,
            "medians": {name: time.median for name, time in self.times.items()},
            "ratios": as_json({name: self.ratio(name) for name in OUR_VARIANTS}),
            "measured": dataclasses.asdict(self),
        }


def compare(size: Size, batch: int, tokens: int, threads: int, rounds: int = ROUNDS) -> EncoderRow:
    """Measure all variants at one number of tokens.

    Raises
    ------
    BenchError
        A process that ended.
    ToolError
        torch is not installed.
    """
    require(find_host("torch"), ())
    spec = MatmulSpec(n=size.width, k=size.width, **fields_of("w8a8-dynamic"))
    job = Job(spec, batch * tokens, threads, cold=False)
    options = {"size": dataclasses.asdict(size), "batch": batch}
    load: dict[str, float] = {}
    with load_by_others(load):
        contender = Contender("encoder", BUILDER, options=options)
        facts, samples = measured(contender, job, rounds)
    return EncoderRow(
        size=size,
        batch=batch,
        tokens=tokens,
        threads=threads,
        times={name: Time(tuple(samples[name])) for name in VARIANTS if name in samples},
        absent=facts.absent,
        pool=facts.pool,
        **load,
    )


def ready(job: Job, size: dict[str, int], batch: int) -> Company:
    """Make the variants in the process that measures; `job.m` is the number of all tokens."""
    import torch

    torch.set_num_threads(job.threads)
    torch.set_grad_enabled(False)
    shape = Size(**size)
    model = encoder(shape)
    x = torch.from_numpy(job.x()).reshape(batch, -1, shape.width)
    exact = model(x)
    samples: dict[str, Callable[[], float]] = {}
    facts = Facts({}, {}, "")
    for name, change in VARIANTS.items():
        try:
            call = functools.partial(change(model), x)
            check(call(), exact)
        except Exception as error:
            facts.absent[name] = reason(error)
            continue
        facts.about[name] = ""
        samples[name] = functools.partial(median_call, itertools.repeat(call), nothing)
    return Company(samples, dataclasses.replace(facts, pool=pool_name()))


def check(result: Any, exact: Any) -> None:
    """Refuse a variant that computes something else than the float32 model."""
    if result.shape != exact.shape:
        raise ValueError(f"result of shape {tuple(result.shape)}, not {tuple(exact.shape)}")
    error = float((result - exact).norm() / exact.norm())
    if not error <= TOLERANCE:
        raise ArithmeticError(f"wrong result, relative error {error:.2g}")


def nothing() -> None:
    """Before a call: the model's own operations stand between its linears."""
