"""Problems: a spec, an M and a seed, from which the same arrays come everywhere.

`quantmm verify` checks kernels on them, `quantmm bench` times them, the tests draw them. A failed
check prints the line that repeats it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from .checks import shape_of, takes
from .integers import INTEGERS
from .nibbles import pack_int4
from .quantize import QTensor
from .ranges import scale_shape, spread
from .reference import Bounds, bounds
from .spec import CHOICES, FLOAT_TYPES, MatmulSpec
from .values import numpy_dtype

Choice = TypeVar("Choice")

#: Group sizes among which random problems choose: tuned ones, and odd multiples of 8.
GROUP_SIZES = (8, 16, 24, 32, 40, 64, 128, 256)


class Compiled(Protocol):
    """What a problem is checked on: a kernel, of whatever device."""

    @property
    def bind(self) -> Callable[..., Callable[..., Any]]:
        """Makes a callable for a weight."""


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
            # What a scale covers is always said: the line of another version may be repeated here.
            if field.name == "m" or (value == field.default and field.name != "activation_scale"):
                continue
            option = "--" + field.name.replace("_", "-")
            words.append(option if value is True else f"{option} {value}")
        return " ".join([*words, f"--seed {self.seed}"])

    def _random(self, what: int) -> np.random.Generator:
        """Numbers of their own for each array."""
        return np.random.default_rng([self.seed, what])

    def weight(self, rare: bool = False) -> QTensor:
        """A quantized weight with the extremes of its format in it; see `weight_scales`.

        Not `rare` where it is timed: there are chips on which subnormal numbers take longer.
        """
        return weight(self._random(1), self.spec, rare=rare)

    def activation(self) -> np.ndarray:
        """X as a kernel takes it: integers, packed ones, or floats."""
        return activation(self._random(2), self.spec, self.m)

    def bind_arguments(self) -> dict[str, Any]:
        """What is bound with the weight: the bias, and the output's scale."""
        return bind_arguments(self._random(3), self.spec)

    def call_arguments(self, rare: bool = False) -> dict[str, Any]:
        """What comes with the activation: its scale and zero point, residual, and rows of experts.

        Not `rare`, these are as many for each; see `random_offs`.
        """
        return call_arguments(self._random(4), self.spec, self.m, rare=rare)


def random_spec(
    pick: Callable[[Sequence[Any]], Any],
    n: int,
    k: int,
    experts: Sequence[int | None] = (None,),
) -> MatmulSpec:
    """Any valid combination of formats; `pick` chooses from a sequence."""
    out = pick(CHOICES["out"])
    bare = out == "int32"
    beside = pick([None, "zero points"] if bare else [None, "zero points", "offsets"])
    given = pick(CHOICES["input"])
    dynamic = given is not None and pick([False, True])
    group_size = pick([None, "tensor"] if bare else [None, "tensor", *GROUP_SIZES])
    without = {"tensor"} if dynamic else set[str]()
    without |= set[str]() if isinstance(group_size, int) else {"group"}
    fields = {
        "weight": pick(CHOICES["weight"]),
        "activation": pick(CHOICES["activation"]),
        "group_size": group_size,
        "weight_zero_point": beside == "zero points",
        "weight_offset": beside == "offsets",
        "activation_zero_point": pick([False, True]),
        "activation_scale": pick([s for s in CHOICES["activation_scale"] if s not in without]),
    }
    if not bare:
        fields |= {
            "bias": pick([False, True]),
            "activation_fn": pick(CHOICES["activation_fn"]),
            "residual": pick([False, True]),
            "gated": pick([False, True]),
        }
    bytes_of_x = given is not None or fields["activation"] != "int4"
    if bytes_of_x and fields["activation_scale"] != "group":
        fields["weight_order"] = pick([False, False, True])
    fields["experts"] = pick(experts)
    return MatmulSpec(n=n, k=k, input=given, dynamic=dynamic, out=out, **fields)


def integers(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Integers of a format: a tenth of them its extremes, and sometimes nothing else."""
    least, greatest = INTEGERS[dtype].range
    values = rng.integers(least, greatest + 1, shape)
    extremes = rng.choice([least, greatest], shape)
    share = 1.0 if rng.random() < 0.2 else 0.1
    values = np.where(rng.random(shape) < share, extremes, values)
    return values.astype(np.int8 if INTEGERS[dtype].signed else np.uint8)


def weight(rng: np.random.Generator, spec: MatmulSpec, *, rare: bool = True) -> QTensor:
    """A quantized weight for `spec`; see `weight_scales`."""
    whole = spec.weight_rows, spec.k
    values = integers(rng, spec.weight, whole)
    shape = scale_shape(whole, spec.group_size)
    scale = weight_scales(rng, shape, rare=rare, alone=not spec.weight_offset)
    zero = integers(rng, spec.weight, shape).astype(np.int32) if spec.weight_zero_point else None
    offset = rng.uniform(-1, 1, shape).astype(np.float32) if spec.weight_offset else None
    data = pack_int4(values) if spec.four_bit_weight else values
    order = rng.permutation(spec.k).astype(np.int32) if spec.weight_order else None
    return QTensor(data, scale, zero, spec.weight, spec.group_size, whole, offset, order)


def weight_scales(
    rng: np.random.Generator, shape: tuple[int, ...], *, rare: bool, alone: bool = True
) -> np.ndarray:
    """Positive scales; with `rare` sometimes also negative or zero ones, or only subnormal ones.

    Subnormal ones are not beside others, nor beside offsets: where a product lies halfway between
    two float32, a sum that float64 holds no more decides to which it is rounded, which
    `reference.fma` does not see.
    """
    scale = rng.uniform(0.001, 0.1, shape).astype(np.float32)
    if not rare:
        return scale
    if alone and rng.random() < 0.1:
        return scale * np.float32(2.0**-140)
    factors = rng.choice([-1.0, 0.0], shape).astype(np.float32)
    share = rng.choice([0.0, 0.3])
    return np.where(rng.random(shape) < share, factors * scale, scale).astype(np.float32)


def activation(rng: np.random.Generator, spec: MatmulSpec, m: int) -> np.ndarray:
    """X for `spec`: floats of very different sizes from scale to scale, or integers."""
    if spec.input is not None:
        values = rng.standard_normal((m, spec.k))
        sizes = 10.0 ** rng.integers(-3, 3, (m, spec.x_groups))
        values *= spread(sizes, values.shape, spec.k_of_group if spec.x_groups > 1 else spec.k)
        return values.astype(numpy_dtype(spec.input))
    values = integers(rng, spec.activation, (m, spec.k))
    return pack_int4(values) if spec.packed_activation else values


def bind_arguments(rng: np.random.Generator, spec: MatmulSpec) -> dict[str, Any]:
    """Bias, and an output scale that lets most results pass and some saturate."""
    arguments: dict[str, Any] = {}
    if spec.bias:
        arguments["bias"] = rng.standard_normal(spec.weight_rows).astype(np.float32)
    if spec.requantized:
        size = spread_of(spec.weight) * 0.05 * math.sqrt(spec.k)
        size *= 10.0 if spec.input is not None else spread_of(spec.activation) * 0.05
        size **= spec.matrices
        least, greatest = INTEGERS[spec.out].range
        arguments["out_scale"] = float(np.float32(size / 40 * rng.uniform(0.5, 2)))
        arguments["out_zero_point"] = int(rng.integers(least, greatest + 1))
    return arguments


def spread_of(dtype: str) -> float:
    """The standard deviation of an integer format's values."""
    least, greatest = INTEGERS[dtype].range
    return (greatest - least) / math.sqrt(12)


def call_arguments(
    rng: np.random.Generator, spec: MatmulSpec, m: int, *, rare: bool = True
) -> dict[str, Any]:
    """Scales and zero points of X that are given, the residual, and where experts' rows end."""
    shape = () if spec.activation_scale == "tensor" else shape_of("x_scale", spec, m)
    arguments: dict[str, Any] = {}
    if takes("x_scale", spec):
        arguments["x_scale"] = rng.uniform(0.001, 0.1, shape).astype(np.float32)
    if takes("x_zero_point", spec):
        arguments["x_zero_point"] = integers(rng, spec.activation, shape).astype(np.int32)
    if spec.residual:
        added = rng.standard_normal((m, spec.n)).astype(numpy_dtype(spec.residual_dtype))
        arguments["residual"] = added
    if spec.experts is not None:
        arguments["offs"] = random_offs(rng, spec.experts, m, rare=rare)
    return arguments


def random_offs(rng: np.random.Generator, experts: int, m: int, *, rare: bool) -> np.ndarray:
    """Where the rows of each expert end: m of them evenly shared out, or with `rare` anyhow."""
    if not rare:
        return (np.arange(1, experts + 1) * m // experts).astype(np.int32)
    ends = np.sort(rng.integers(0, m + 1, experts)).astype(np.int32)
    ends[-1] = m
    return ends


def check(problem: Problem, kernel: Compiled) -> str | None:
    """Run `problem` on `kernel`; what differs from the reference, or None."""
    x, w = problem.activation(), problem.weight(rare=True)
    bind, call = problem.bind_arguments(), problem.call_arguments(rare=True)
    return difference(kernel.bind(w, **bind)(x, **call), bounds(problem.spec, x, w, **bind, **call))


def difference(y: np.ndarray, expected: np.ndarray | Bounds) -> str | None:
    """How `y` differs: integers must be equal, floats at most one unit in the last place apart.

    Where bounds are expected, it must lie between what equals them in that sense.
    """
    if not isinstance(expected, Bounds):
        expected = Bounds(expected, expected)
    low, high = expected.low, expected.high
    if y.shape != low.shape or y.dtype != low.dtype:
        return f"got {y.dtype.name}{y.shape}, expected {low.dtype.name}{low.shape}"
    if low.dtype.name in FLOAT_TYPES:
        wrong = (places(y) < places(low) - 1) | (places(y) > places(high) + 1)
    else:
        wrong = (y < low) | (y > high)
    if not wrong.any():
        return None
    i, j = np.argwhere(wrong)[0]
    wanted = f"{low[i, j]}" if low[i, j] == high[i, j] else f"{low[i, j]} to {high[i, j]}"
    return (
        f"{np.count_nonzero(wrong)} of {y.size} differ, the first at [{i}, {j}]: "
        f"got {y[i, j]}, expected {wanted}"
    )


def places(values: np.ndarray) -> np.ndarray:
    """Floats as integers, neighbours one apart and both zeros the same; NaN counts as infinity."""
    bits = 8 * values.dtype.itemsize
    raw = np.ascontiguousarray(values).view(f"int{bits}").astype(np.int64)
    magnitude = raw & (2 ** (bits - 1) - 1)
    infinity = {"float32": 0x7F800000, "float16": 0x7C00, "bfloat16": 0x7F80}[values.dtype.name]
    return np.where(raw < 0, -1, 1) * np.minimum(magnitude, infinity)
