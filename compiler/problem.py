"""Problems: a spec, an M and a seed, from which the same arrays come everywhere.

`quantmm verify` checks kernels on them, `quantmm bench` times them. A failed check prints the line
that repeats it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from .kernel import Kernel
from .quantize import QTensor, pack_int4, scale_shape
from .reference import reference
from .spec import INTEGER_RANGE, MatmulSpec


@dataclass(frozen=True)
class Problem:
    """One matmul with its numbers: `seed` decides every array."""

    spec: MatmulSpec
    m: int
    seed: int = 0

    def line(self, target: str) -> str:
        """The command that checks this problem."""
        words = ["quantmm verify", f"--target {target}", f"--m {self.m}"]
        for field in dataclasses.fields(self.spec):
            value = getattr(self.spec, field.name)
            if value == field.default or field.name == "m":
                continue
            option = "--" + field.name.replace("_", "-")
            words.append(option if value is True else f"{option} {value}")
        return " ".join([*words, f"--seed {self.seed}"])

    def weight(self) -> QTensor:
        """A quantized weight with the extremes of its format in it."""
        spec, rng = self.spec, np.random.default_rng([self.seed, 1])
        integers = draw(rng, spec.weight, (spec.n, spec.k))
        shape = scale_shape((spec.n, spec.k), spec.group_size)
        scale = rng.uniform(0.001, 0.1, shape).astype(np.float32)
        zero = draw(rng, spec.weight, shape).astype(np.int32) if spec.weight_zero_point else None
        data = pack_int4(integers) if spec.weight.endswith("int4") else integers
        return QTensor(data, scale, zero, spec.weight, spec.group_size, (spec.n, spec.k))

    def activation(self) -> np.ndarray:
        """X: integers, or floats when the spec quantizes them."""
        spec, rng = self.spec, np.random.default_rng([self.seed, 2])
        if spec.input is not None:
            return rng.standard_normal((self.m, spec.k)).astype(np.float32)
        return draw(rng, spec.activation, (self.m, spec.k))

    def bind_arguments(self) -> dict[str, Any]:
        """What belongs to the weight: the bias."""
        rng = np.random.default_rng([self.seed, 3])
        return (
            {"bias": rng.standard_normal(self.spec.n).astype(np.float32)} if self.spec.bias else {}
        )

    def call_arguments(self) -> dict[str, Any]:
        """What belongs to the activation: its scale and zero point."""
        spec, rng = self.spec, np.random.default_rng([self.seed, 4])
        shape = (self.m,) if spec.activation_scale == "row" else ()
        arguments: dict[str, Any] = {}
        if spec.out != "int32":
            arguments["x_scale"] = rng.uniform(0.001, 0.1, shape).astype(np.float32)
        if spec.activation_zero_point:
            arguments["x_zero_point"] = draw(rng, spec.activation, shape).astype(np.int32)
        return arguments


def draw(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Integers of a format, a tenth of them its extremes."""
    least, greatest = INTEGER_RANGE[dtype]
    values = rng.integers(least, greatest + 1, shape)
    extremes = rng.choice([least, greatest], shape)
    values = np.where(rng.random(shape) < 0.1, extremes, values)
    return values.astype(np.int8 if dtype.startswith("int") else np.uint8)


def check(problem: Problem, kernel: Kernel) -> str | None:
    """Run `problem` on `kernel`; what differs from the reference, or None."""
    x, w = problem.activation(), problem.weight()
    bind, call = problem.bind_arguments(), problem.call_arguments()
    return difference(
        kernel.bind(w, **bind)(x, **call), reference(problem.spec, x, w, **bind, **call)
    )


def difference(y: np.ndarray, expected: np.ndarray) -> str | None:
    """How `y` differs: integers must be equal, floats at most one unit in the last place apart."""
    if y.shape != expected.shape or y.dtype != expected.dtype:
        return f"got {y.dtype.name}{y.shape}, expected {expected.dtype.name}{expected.shape}"
    if expected.dtype.kind in "iu":
        wrong = y != expected
    else:
        wrong = ~(np.abs(y - expected) <= np.spacing(np.abs(expected)))
    if not wrong.any():
        return None
    i, j = np.argwhere(wrong)[0]
    return (
        f"{np.count_nonzero(wrong)} of {y.size} differ, the first at [{i}, {j}]: "
        f"got {y[i, j]}, expected {expected[i, j]}"
    )
