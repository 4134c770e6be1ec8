"""What a contender is asked to compute, the data for it, and the check of its result."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ...formats.integers import INTEGERS
from ...formats.named import weight_bytes
from ...formats.spec import MatmulSpec
from ...runtime import devices
from ...targets import CudaTarget, Target
from ..gpu import gpu_side
from ..rotation import COLD_ROWS, copies_for

#: The scale of int8 activations that arrive quantized.
X_SCALE = 2.0**-7
#: Largest error of a result, relative to the exact one in the norm. The data can be quantized
#: without error in int8 and in symmetric int4 of -7 to 7; formats with other levels (ggml's) lose
#: 6 %. A transposed weight or a forgotten scale, block or zero point is off by far more.
TOLERANCE = 0.1
#: How long a contender is called before its turn is timed, and how long a turn takes at least; one
#: call where a call takes longer.
WAKE_SECONDS, TURN_SECONDS = 0.005, 0.03
#: Least error of a result whose activations were quantized inside the call: less was float.
FLOAT_ERROR = 1e-4


@dataclass(frozen=True, eq=False)
class Weight:
    """W: `values` int8 (n, k) of `bits`, `scales` float32 (n, groups of `group` k).

    Where it is not symmetric, `zeros` int8 (n, groups) are the values that stand for zero.
    """

    values: np.ndarray
    scales: np.ndarray
    bits: int
    group: int | None
    zeros: np.ndarray | None = None

    def floats(self) -> np.ndarray:
        """W in float32."""
        values = self.values
        if self.zeros is not None:
            values = values - self._spread(self.zeros)
        return values * self._spread(self.scales)

    def _spread(self, numbers: np.ndarray) -> np.ndarray:
        """Numbers of groups, or one of a row, as they stand beside `values`."""
        if self.group is None:
            return numbers
        return np.repeat(numbers, self.group, axis=1)[:, : self.values.shape[1]]

    def rolled(self, rows: int) -> Weight:
        """W with its rows moved on: other bytes that cost the same."""
        values, scales = (roll(array, rows) for array in (self.values, self.scales))
        zeros = None if self.zeros is None else roll(self.zeros, rows)
        return Weight(values, scales, self.bits, self.group, zeros)


def roll(array: np.ndarray, rows: int) -> np.ndarray:
    """A copy of `array` with its rows moved on."""
    return np.roll(array, rows, axis=0)


#: Targets for which peers multiply 8-bit weights by pmaddubsw, which saturates: they are right on
#: weights of 7 bits.
SATURATING = ("x86-avx2", "x86-avx512")


@dataclass(frozen=True)
class Job:
    """One shape of one format; all that a machine has to know to measure it.

    Attributes
    ----------
    spec : the format, N and K.
    m, threads : rows of X, and threads of every contender.
    cold : whether the weights come from memory in every call.
    target : quantmm's; peers are held to its instructions or take no part.
    layer : where the shape comes from, for tables.
    """

    spec: MatmulSpec
    m: int
    threads: int
    cold: bool
    target: str = "host"
    layer: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Job:
        """The job that `to_dict` wrote."""
        return cls(**{**fields, "spec": MatmulSpec(**fields["spec"])})

    @property
    def n(self) -> int:
        """Rows of W."""
        return self.spec.w_rows

    @property
    def k(self) -> int:
        """Columns of X and W."""
        return self.spec.k

    @property
    def title(self) -> str:
        """The shape, and whether the weights come from memory where that is not clear."""
        where = " cold" if self.cold else " hot" if self.m <= COLD_ROWS else ""
        return f"{self.m} x {self.n} x {self.k}{where}"

    @property
    def bits(self) -> int:
        """Bits of a stored weight, 8 or 4."""
        return INTEGERS[self.spec.weight].bits

    @property
    def group(self) -> int | None:
        """The number of consecutive k that share a weight's scale; None for the whole row."""
        return self.spec.group_size if isinstance(self.spec.group_size, int) else None

    @property
    def dynamic(self) -> bool:
        """Whether X is float32 and quantized in the call; else it is int8 with one scale."""
        return self.spec.dynamic

    @property
    def row(self) -> Target | CudaTarget:
        """The target, looked up on the machine that measures."""
        return devices.find(self.target)

    @property
    def copies(self) -> int:
        """How many weights to rotate through on the machine that measures."""
        size = weight_bytes(self.spec)
        if self.row.device == "cuda":
            return gpu_side().copies(size) if self.cold else 1
        return copies_for(size) if self.cold else 1

    def x(self) -> np.ndarray:
        """X as the call gets it, float32 or int8."""
        rng = np.random.default_rng(1)
        if self.dynamic:
            return rng.standard_normal((self.m, self.k), np.float32)
        return rng.integers(-128, 128, (self.m, self.k), np.int8)

    def x_floats(self) -> np.ndarray:
        """What X means, in float32."""
        return self.x() if self.dynamic else self.x() * np.float32(X_SCALE)

    def weight(self) -> Weight:
        """The first W.

        The greatest value occurs in every group, and with offsets the least one, so that quantizers
        from floats find the same integers, and scales are powers of two, so that those of 16 bits
        are the same. Offsets are multiples of them, so that zero points say the same.
        """
        rng = np.random.default_rng(0)
        least, greatest = INTEGERS[self.spec.weight].range
        if self.row.name in SATURATING:
            greatest = min(greatest, 63)
        if not self.spec.weight_offset:
            least = -greatest
        values = rng.integers(least, greatest + 1, (self.n, self.k), np.int8)
        values[:, :: self.group or self.k] = greatest
        groups = -(-self.k // self.group) if self.group else 1
        exponents = rng.integers(-8, -4, (self.n, groups))
        scales = np.exp2(exponents, dtype=np.float32)
        if not self.spec.weight_offset:
            return Weight(values, scales, self.bits, self.group)
        values[:, 1 :: self.group or self.k] = least
        zeros = rng.integers(least, greatest + 1, (self.n, groups), np.int8)
        return Weight(values, scales, self.bits, self.group, zeros)

    def weights(self) -> Iterator[Weight]:
        """All copies; no two are the same, since some peers share constants that are."""
        first = self.weight()
        return (first.rolled(i) for i in range(self.copies))

    def scaled(self, integers: np.ndarray) -> np.ndarray:
        """What the bare int32 product with the last copy means."""
        return integers * roll(self.weight().scales, self.copies - 1).T * np.float32(X_SCALE)

    def error(self, result: np.ndarray) -> float:
        """The error of the product with the last copy, relative in the norm."""
        exact = np.roll(self.x_floats() @ self.weight().floats().T, self.copies - 1, axis=1)
        if result.shape != exact.shape:
            raise ValueError(f"result of shape {result.shape}, not {exact.shape}")
        return float(np.linalg.norm(result - exact) / np.linalg.norm(exact))


class Turns(Protocol):
    """What a builder makes: `turn` gives a sample, as JSON types."""

    @property
    def about(self) -> str:
        """What is worth saying of it, such as a version."""

    def turn(self) -> Any:
        """Measure for a moment."""


@dataclass(frozen=True)
class Ready:
    """A contender that has packed its weights.

    Attributes
    ----------
    calls : to be called in turn.
    result : what the last of `calls` computes with the last copy, in the units of X Wᵀ; None from
        a builder that has compared it itself.
    per_call : how many products one of `calls` computes.
    about : what is worth saying of how it computes, such as a version.
    """

    calls: list[Callable[[], object]]
    result: Callable[[], np.ndarray] | None
    per_call: int = 1
    about: str = ""

    def turn(self) -> float:
        """Seconds per product: calls to wake everything, then enough to trust the clock."""
        rotation = itertools.cycle(self.calls)
        count, awake = repeated(rotation, 1, WAKE_SECONDS)
        count, seconds = repeated(rotation, round(TURN_SECONDS * count / awake), 0)
        return seconds / count / self.per_call


class Clock(Protocol):
    """What times calls on a device."""

    def seconds(self, contender: Any, calls: int) -> float:
        """Seconds per call of a contender, of about so many calls."""


@dataclass(frozen=True)
class Timed:
    """A contender on a GPU, which a clock of its own times; else as `Ready`."""

    clock: Clock
    contender: Any
    calls: list[Callable[[], object]]
    result: Callable[[], np.ndarray] | None
    about: str = ""

    def turn(self) -> float:
        """Seconds per product."""
        once = self.clock.seconds(self.contender, 1)
        return self.clock.seconds(self.contender, max(1, round(TURN_SECONDS / once)))


def repeated(calls: Iterator[Callable[[], object]], count: int, least: float) -> tuple[int, float]:
    """Make at least `count` calls, and one, for at least `least` seconds: how many, how long."""
    done = 0
    start = time.perf_counter()
    while True:
        for _ in range(max(1, count - done)):
            next(calls)()
            done += 1
        seconds = time.perf_counter() - start
        if seconds >= least:
            return done, seconds


def check(job: Job, ready: Ready | Timed, quantized: bool) -> None:
    """Refuse a contender that computes something else.

    `quantized` says whether activations have to be quantized inside the call.
    """
    if ready.result is None:
        return
    for call in ready.calls * 2:  # a second time in case that the first overwrote its inputs
        call()
    error = job.error(np.asarray(ready.result(), np.float32))
    if not error <= TOLERANCE:
        raise ArithmeticError(f"wrong result, relative error {error:.2g}")
    if quantized and error < FLOAT_ERROR:
        raise ArithmeticError(f"computes in float, relative error {error:.2g}")


def nibbles(values: np.ndarray) -> np.ndarray:
    """4-bit values in a row, two per byte, the first in the low half; the last may be alone."""
    flat = values.reshape(-1).view(np.uint8) & 15
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return flat[0::2] | flat[1::2] << 4
