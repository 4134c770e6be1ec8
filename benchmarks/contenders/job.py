"""What a contender is asked to compute, the data for it, and the check of its result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

#: The scale of int8 activations that arrive quantized.
X_SCALE = 2.0**-7
#: Largest error of a result, relative to the exact one in the norm. The data can be quantized
#: without error in int8 and in symmetric int4 of -7 to 7; formats with other levels (ggml's) lose
#: 6 %. A transposed weight or a forgotten scale, block or zero point is off by far more.
TOLERANCE = 0.1
#: Least error of a result whose activations were quantized inside the call: less was float.
FLOAT_ERROR = 1e-4


@dataclass(frozen=True)
class Format:
    """A class of products Y = X Wᵀ.

    Attributes
    ----------
    bits : of a weight, 8 or 4.
    group : the number of consecutive k that share a weight's scale; None for the whole row.
    dynamic : float32 X, quantized to int8 inside the call; else X arrives as int8 with one scale.
    """

    bits: int
    group: int | None
    dynamic: bool

    def groups(self, k: int) -> int:
        """How many scales a row of `k` weights has."""
        return -(-k // self.group) if self.group else 1

    def weight_bytes(self, n: int, k: int) -> int:
        """Bytes of a packed weight; int8's few scales are left out."""
        return n * k if self.bits == 8 else n * k // 2 + 4 * n * self.groups(k)


FORMATS = {
    "int8": Format(8, None, dynamic=False),
    "w8a8-dynamic": Format(8, None, dynamic=True),
    "w4a8": Format(4, None, dynamic=True),
    "w4a8-g128": Format(4, 128, dynamic=True),
    "w4a8-g32": Format(4, 32, dynamic=True),
}


@dataclass(frozen=True, eq=False)
class Weight:
    """Symmetric W: `values` int8 (n, k) of `bits`, `scales` float32 (n, groups of `group` k)."""

    values: np.ndarray
    scales: np.ndarray
    bits: int
    group: int | None

    def floats(self) -> np.ndarray:
        """W in float32."""
        if self.group is None:
            return self.values * self.scales
        return self.values * np.repeat(self.scales, self.group, axis=1)[:, : self.values.shape[1]]

    def rolled(self, rows: int) -> Weight:
        """W with its rows moved on: other bytes that cost the same."""
        values, scales = (roll(array, rows) for array in (self.values, self.scales))
        return Weight(values, scales, self.bits, self.group)


def roll(array: np.ndarray, rows: int) -> np.ndarray:
    """A copy of `array` with its rows moved on."""
    return np.roll(array, rows, axis=0)


#: Targets for which peers multiply 8-bit weights by pmaddubsw, which saturates: they are right on
#: weights of 7 bits.
SATURATING = ("x86-avx2", "x86-avx512")


@dataclass(frozen=True)
class Job:
    """One shape of one format, with `copies` different weights to rotate through.

    `target` is quantmm's; peers are held to its instruction set or take no part.
    """

    format_name: str
    m: int
    n: int
    k: int
    threads: int
    copies: int
    target: str = "host"

    @property
    def format(self) -> Format:
        """The format's description."""
        return FORMATS[self.format_name]

    def x(self) -> np.ndarray:
        """X as the call gets it, float32 or int8."""
        rng = np.random.default_rng(1)
        if self.format.dynamic:
            return rng.standard_normal((self.m, self.k), np.float32)
        return rng.integers(-128, 128, (self.m, self.k), np.int8)

    def weight(self) -> Weight:
        """The first W.

        The greatest value occurs in every group, so that quantizers from floats find the same
        integers, and scales are powers of two, so that those of 16 bits are the same.
        """
        rng = np.random.default_rng(0)
        greatest = 7 if self.format.bits == 4 else 63 if self.target in SATURATING else 127
        values = rng.integers(-greatest, greatest + 1, (self.n, self.k), np.int8)
        values[:, :: self.format.group or self.k] = greatest
        exponents = rng.integers(-8, -4, (self.n, self.format.groups(self.k)))
        scales = np.exp2(exponents, dtype=np.float32)
        return Weight(values, scales, self.format.bits, self.format.group)

    def weights(self) -> Iterator[Weight]:
        """All copies; no two are the same, since some peers share constants that are."""
        first = self.weight()
        return (first.rolled(i) for i in range(self.copies))

    def scaled(self, integers: np.ndarray) -> np.ndarray:
        """What the bare int32 product with the last copy means."""
        return integers * roll(self.weight().scales, self.copies - 1).T * np.float32(X_SCALE)

    def error(self, result: np.ndarray) -> float:
        """The error of the product with the last copy, relative in the norm."""
        x = self.x() if self.format.dynamic else self.x() * np.float32(X_SCALE)
        exact = np.roll(x @ self.weight().floats().T, self.copies - 1, axis=1)
        if result.shape != exact.shape:
            raise ValueError(f"result of shape {result.shape}, not {exact.shape}")
        return float(np.linalg.norm(result - exact) / np.linalg.norm(exact))


@dataclass(frozen=True)
class Ready:
    """A contender that has packed its weights.

    Attributes
    ----------
    calls : to be called in turn.
    result : what the last of `calls` computes with the last copy, in the units of X Wᵀ.
    per_call : how many products one of `calls` computes.
    """

    calls: list[Callable[[], object]]
    result: Callable[[], np.ndarray]
    per_call: int = 1


Build = Callable[[Job], Ready]


def check(job: Job, ready: Ready, quantized: bool) -> None:
    """Refuse a contender that computes something else.

    `quantized` says whether activations have to be quantized inside the call.
    """
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
