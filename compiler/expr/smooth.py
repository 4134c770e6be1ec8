"""Smooth activation functions in float32, for vectors of any width and targets of any kind.

Every result is within 2 units in the last place of the function's exact value, for all float32
numbers; one that is smaller than 2**-126, the least normal number, is within 2**-126. At the
infinities they are their limits, and NaN stays NaN. Every product that is added to something is
fused with the addition, so that all targets compute the same numbers.

exp(x) is 2**n (1 + m) with n = round(x / ln 2) and m = expm1(x - n ln 2), where n ln 2 is
subtracted in two parts, the first of them exact (Cody and Waite, "Software Manual for the
Elementary Functions", 1980). What a sum or a quotient lost by rounding is computed where it
matters, by a difference or a fused multiply-add that is exact, and added later (T. J. Dekker, "A
floating-point technique for extending the available precision", 1971).

The polynomials are least squares fits at 200 Chebyshev nodes, whose weights were multiplied by the
errors 300 times (C. L. Lawson's iteration towards the least maximum).
benchmarks/smooth_functions.py computes them again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.runtime import convert

from ...targets import Chip
from ..rewrite.rounding import add_product
from .functions import ROUNDER, bits, from_bits, int32, not_below

#: (expm1(r) - r) / r**2 for |r| <= ln 2 / 2, lowest power first: relative error of expm1 2**-26.2.
EXPM1 = (0.49999997, 0.166665435, 0.0416672006, 0.00836658012, 0.00138825132)

LN2 = math.log(2)
#: ln 2 as a number of 15 bits, whose products with n are exact, and what is left of it.
LN2_HIGH = float.fromhex("0x1.62e4p-1")
LN2_LOW = LN2 - LN2_HIGH

#: 2 Phi(-a) exp(a * a / 2) (a + 1) - 1 as a function of w = a / (a + 1), where Phi is the normal
#: distribution: up to a = NEAR in powers of w - NEAR_CENTRE, beyond it up to FAR in those of
#: w - FAR_CENTRE, lowest first; errors 2**-26.1. Results beyond FAR are below 2**-126.
NEAR, NEAR_CENTRE = 1.375, 0.3125
NEAR_TAIL = (
    0.0474395677,
    0.0754545927,
    -0.348592013,
    -0.409010321,
    -0.26316905,
    -0.0388049372,
    0.183274403,
    0.363047272,
    0.322076112,
)
FAR, FAR_CENTRE = 13.2, 0.75
FAR_TAIL = (
    -0.0278884023,
    -0.514809787,
    -0.920130193,
    0.174642399,
    2.08943224,
    2.46077704,
    -2.13348556,
    -10.8822231,
    -10.1316681,
)

#: Where results are smaller than 2**-126 they are zero: computing with such numbers takes several
#: times as long.
LEAST = {"sigmoid": -87.34, "silu": -91.9, "gelu_tanh": -10.101}
#: Where exp(-v) does not count any more beside 1; exp(-u) for gelu_tanh.
MOST, CUBIC_MOST = 80.0, 8.0
#: Below it 1 + exp(-v) is computed in units of 2**-40, as it is not far from infinity.
LARGE, CUBIC_LARGE = -60.0, -8.0
#: 2 sqrt(2 / pi) as a number of 18 bits, and what is left; the same times 0.044715, of 24 bits.
LINE = float.fromhex("0x1.98848p+0")
LINE_LOW = 2 * math.sqrt(2 / math.pi) - LINE
CUBE = float.fromhex("0x1.2444f2p-4")
CUBE_LOW = 2 * math.sqrt(2 / math.pi) * 0.044715 - CUBE
#: Beyond it tanh rounds to 1.
TANH_MOST = 9.5

#: The bits of 1 and -1/2, as int32.
ONE, MINUS_HALF = 0x3F800000, 0xBF000000 - 2**32


class Steps:
    """Numbers that are computed once each, one after the other."""

    def __init__(self) -> None:
        self._bound: list[tuple[tirx.Var, Expr]] = []

    def __call__(self, value: Expr) -> tirx.Var:
        """`value`, to be used any number of times."""
        var = tirx.Var(f"step{len(self._bound)}", str(value.ty))
        self._bound.append((var, value))
        return var

    def then(self, value: Expr) -> Expr:
        """`value` with all of them before it."""
        for var, bound in reversed(self._bound):
            value = tirx.Let(var, bound, value)
        return value


@dataclass(frozen=True)
class Float32:
    """Arithmetic of float32 on a target, as steps of one function."""

    target: Chip
    step: Steps

    def fma(self, a: Expr, b: Expr, c: Expr) -> tirx.Var:
        """The sum a * b + c, rounded once."""
        return self.step(add_product(self.target, a, b, c))

    def at_least(self, least: float, value: Expr) -> tirx.Var:
        """The greater of both; NaN stays NaN."""
        return self.step(not_below(self.target, number(least), value))

    def at_most(self, greatest: float, value: Expr) -> tirx.Var:
        """The smaller of both; NaN stays NaN."""
        if self.target.max_keeps_nan:
            return self.step(tirx.min(number(greatest), value))
        most = number(greatest)
        return self.step(tirx.Select(value > most, most, value))

    def polynomial(self, coefficients: Sequence[Expr], x: Expr) -> Expr:
        """The sum of coefficients times powers of x, lowest first."""
        *others, result = coefficients
        for coefficient in reversed(others):
            result = self.fma(result, x, coefficient)
        return result

    def nearest(self, a: Expr, b: float) -> tuple[tirx.Var, tirx.Var]:
        """The product a * b rounded to an integer, as a float32 and in the lower bits of one."""
        shifted = self.fma(a, number(b), number(ROUNDER))
        return self.step(shifted - number(ROUNDER)), shifted

    def unit(self, large: Expr) -> tirx.Var:
        """A power of two whose product with a `large` number is far from infinity; else 1."""
        return self.step(tirx.Select(large, number(2.0**-40), number(1)))

    def expm1(self, r: Expr, rest: Expr | None = None) -> tirx.Var:
        """exp(r + rest) - 1 for |r| <= ln 2 / 2 and a `rest` that r is too small for."""
        power = self.step(self.polynomial([*map(number, EXPM1)], r) * r)
        return self.fma(power, r, r) if rest is None else self.step(self.fma(power, r, rest) + r)

    def inverse_expm1(self, r: Expr) -> tirx.Var:
        """exp(-r) - 1 for |r| <= ln 2 / 2."""
        signed = [number(value * (-1) ** power) for power, value in enumerate(EXPM1)]
        return self.fma(self.step(self.polynomial(signed, r) * r), r, r * number(-1))


def number(value: float) -> Expr:
    """A float32 constant."""
    return tirx.const(value, "float32")


def scaled_bits(shifted: Expr, one: Expr) -> Expr:
    """The number with the bits `one`, a power of two, times 2**n; n as `nearest` gives it."""
    return from_bits((bits(shifted) << 23) + one)


def gelu(f: Float32, v: Expr) -> Expr:
    """gelu(v) = v Phi(v) = max(v, 0) - a Phi(-a) with a = |v|.

    a Phi(-a) = exp(-a * a / 2) w (1 + p) / 2 with w = a / (a + 1) and p as NEAR_TAIL and FAR_TAIL.
    What the quotient w is too small by enters as much as w (1 + p) changes with w.
    """
    step, one = f.step, number(1)
    a = f.at_most(FAR, step(from_bits(bits(v) & 0x7FFFFFFF)))
    half = step(a * number(-0.5))
    n, shifted = f.nearest(step(a * half), 1 / LN2)
    r = f.fma(n, number(-LN2_LOW), f.fma(a, half, step(n * number(-LN2_HIGH))))
    m = f.expm1(r)
    scale = step(scaled_bits(shifted, int32(MINUS_HALF)))
    b = step(a + one)
    w = step(a / b)
    rest = f.fma(-w, step(step(a - b) + one), f.fma(-w, b, a))
    near = a < number(NEAR)  # TVM binds no vectors of bool

    def either(nearby: float, beyond: float) -> Expr:
        return tirx.Select(near, number(nearby), number(beyond))

    t = step(w - either(NEAR_CENTRE, FAR_CENTRE))
    p = f.polynomial([*map(either, NEAR_TAIL, FAR_TAIL)], t)
    beside = step(one - w)
    change = step(beside * tirx.min(beside * number(2.5), one))
    q = f.fma(w, p, step(rest * change))
    u = step(w + q)
    lost = step(step(w - u) + q)
    return add_product(
        f.target, scale, step(u + f.fma(u, m, lost)), not_below(f.target, number(0), v)
    )


def sigmoid(f: Float32, v: Expr) -> Expr:
    """sigmoid(v) = 1 / (1 + exp(-v))."""
    least, one = LEAST["sigmoid"], number(1)
    m, shifted = exp_of_minus(f, f.at_most(MOST, f.at_least(least, v)))
    return tirx.Select(v < number(least), number(0), one) / one_and_exp(f, one, m, shifted)


def silu(f: Float32, v: Expr) -> Expr:
    """silu(v) = v / (1 + exp(-v))."""
    least = LEAST["silu"]
    y = f.at_most(MOST, f.at_least(least, v))
    unit = f.unit(y < number(LARGE))
    divided = tirx.Select(v < number(least), number(0), v)
    return divided * unit / one_and_exp(f, unit, *exp_of_minus(f, y))


def gelu_tanh(f: Float32, v: Expr) -> Expr:
    """gelu_tanh(v) = v / (1 + exp(-u)) with u = 2 sqrt(2 / pi) (v + 0.044715 v**3).

    That is v / 2 (1 + tanh(u / 2)), as it is usually written. u is v times the sum of two numbers.
    """
    step, least = f.step, LEAST["gelu_tanh"]
    y = f.at_most(CUBIC_MOST, f.at_least(least, v))
    minus = step(y * number(-1))
    square = step(y * y)
    square_rest = f.fma(y, y, -square)
    factor = f.fma(square, number(CUBE), number(LINE))
    rest = f.fma(square, number(CUBE), step(number(LINE) - factor))
    rest = f.fma(square_rest, number(CUBE), rest)
    rest = f.fma(square, number(CUBE_LOW), step(rest + number(LINE_LOW)))
    n, shifted = f.nearest(step(minus * factor), 1 / LN2)
    high = f.fma(minus, factor, step(n * number(-LN2_HIGH)))
    low = f.fma(minus, rest, step(n * number(-LN2_LOW)))
    r = step(high + low)
    m = f.expm1(r, step(step(high - r) + low))
    unit = f.unit(y < number(CUBIC_LARGE))
    divided = tirx.Select(v < number(least), number(0), v)
    return divided * unit / one_and_exp(f, unit, m, shifted)


def tanh(f: Float32, v: Expr) -> Expr:
    """tanh(v) = (1 - exp(-2 a)) / (1 + exp(-2 a)) with the sign of v and a = |v|."""
    step = f.step
    a = f.at_most(TANH_MOST, step(from_bits(bits(v) & 0x7FFFFFFF)))
    x = step(a * number(-2))
    n, shifted = f.nearest(x, 1 / LN2)
    r = f.fma(n, number(-LN2_LOW), f.fma(n, number(-LN2_HIGH), x))
    m = f.expm1(r)
    scale = step(scaled_bits(shifted, int32(ONE)))
    one = number(1)
    above = f.fma(-scale, m, step(one - scale))
    quotient = step(above / f.fma(scale, m, step(one + scale)))
    return from_bits(bits(quotient) | (bits(v) & tirx.const(-(2**31), "int32")))


def exp_of_minus(f: Float32, y: Expr) -> tuple[Expr, Expr]:
    """exp(-y) = 2**n (1 + m): m, and n as `scaled_bits` reads it."""
    n, shifted = f.nearest(y, -1 / LN2)
    r = f.fma(n, number(LN2_LOW), f.fma(n, number(LN2_HIGH), y))
    return f.inverse_expm1(r), shifted


def one_and_exp(f: Float32, unit: Expr, m: Expr, shifted: Expr) -> Expr:
    """1 + 2**n (1 + m), times a power of two."""
    step = f.step
    scale = step(scaled_bits(shifted, bits(unit)))
    both = step(scale + unit)
    lost = step(unit - step(both - scale))
    return step(f.fma(scale, m, lost) + both)


#: The smooth functions by their names in a spec.
SMOOTH: dict[str, Callable[[Float32, Expr], Expr]] = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "silu": silu,
    "sigmoid": sigmoid,
    "tanh": tanh,
}


def activation(function: str | None, value: Expr, target: Chip) -> Expr:
    """`spec.activation_fn` of a float32."""
    if function is None:
        return value
    if function == "relu":
        return not_below(target, tirx.const(0, "float32"), value)
    step = Steps()
    result = SMOOTH[function](Float32(target, step), step(convert(value)))
    return step.then(result)
