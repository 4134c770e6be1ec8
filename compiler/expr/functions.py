"""Float functions as TIR expressions, for vectors of any width and targets of any kind.

Roundings are explicit: `to_integer` rounds half to even, conversions between float formats too. The
activation functions are computed in float64 and rounded once, so they equal the reference's
formulas in all but a few cases in a million, where they differ by one unit in the last place. What
LLVM would turn into a call of libm per element (exp, rint) is written out.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm import tirx
from tvm.ir import Expr

from ...formats.integers import INTEGERS
from ...targets import Chip

#: 1.5 * 2**23: a float32 of small magnitude added to it is rounded to an integer, half to even, and
#: the sum's bits are those of this number plus that integer.
ROUNDER = 12582912.0

#: Phi(-a) = exp(-a * a / 2) * p(t) with t = (a - TAIL) / (a + TAIL): Chebyshev interpolation of
#: erfcx(a / sqrt(2)) / 2 on 0 <= a <= 38, relative error below 1e-11, highest power first.
TAIL = 4.0
TAIL_COEFFICIENTS = (
    -2.0964180575085366e-08,
    1.1791694804025703e-07,
    5.036553721675895e-07,
    -7.630516684775405e-07,
    -4.143359342729587e-06,
    4.609121242484271e-06,
    2.8559390288616643e-05,
    -4.55533505300543e-05,
    -0.0001871561635052721,
    0.0006388148411845516,
    0.0005075571603993553,
    -0.008492095728139934,
    0.03086480453492827,
    -0.07170740731932715,
    0.12437925532483302,
    -0.1703977215487973,
    0.09441064130204953,
)


def bits(value: Expr) -> Expr:
    """A float32 as int32 with the same bits."""
    return tirx.reinterpret("int32", value)


def from_bits(value: Expr) -> Expr:
    """The inverse of `bits`."""
    return tirx.reinterpret("float32", value)


def clamp(value: Expr, least: Expr, greatest: Expr) -> Expr:
    """`value` within the bounds; the least for NaN."""
    return tirx.min(tirx.max(value, least), greatest)


def to_integer(value: Expr, zero_point: Expr, dtype: str, offset: int = 0) -> Expr:
    """clip(round(value) + zero_point) + offset for the format `dtype`, as int32.

    Only the lower half is meant to be used: the upper one is not cleared.
    """
    least, greatest = INTEGERS[dtype].range
    zero = zero_point.astype("float32")
    inside = clamp(value, tirx.const(least, "float32") - zero, greatest - zero)
    return bits(inside + tirx.const(ROUNDER, "float32")) + (zero_point + offset)


def widen(value: Expr, dtype: str, target: Chip) -> Expr:
    """A number of the float format `dtype` as float32; float16 and bfloat16 come as uint16."""
    if dtype == "float32":
        return value
    if dtype == "bfloat16":
        return from_bits(value.astype("int32") << 16)
    if target.half_floats:
        return tirx.reinterpret("float16", value).astype("float32")
    # The exponent is rebased by a multiplication, which also normalizes subnormal numbers
    # (F. Giesen, "half_to_float_fast5").
    half = value.astype("int32")
    magnitude = from_bits((half & 0x7FFF) << 13) * tirx.const(2.0**112, "float32")
    special = tirx.Select((half & 0x7FFF) >= 0x7C00, int32(255 << 23), int32(0))
    return from_bits(bits(magnitude) | special | ((half & 0x8000) << 16))


def narrow(value: Expr, dtype: str, target: Chip) -> Expr:
    """A float32 rounded half to even to `dtype`; float16 and bfloat16 as uint16."""
    if dtype == "float32":
        return value
    if dtype == "float16" and target.half_floats:
        return tirx.reinterpret("uint16", value.astype("float16"))
    rounded = to_bfloat16 if dtype == "bfloat16" else to_float16
    return let("raw", bits(value), rounded).astype("uint16")


def to_bfloat16(raw: Expr) -> Expr:
    """The bits of a float32 rounded to the upper 16; NaN stays NaN."""
    rounded = (raw + 0x7FFF + ((raw >> 16) & 1)) >> 16
    return tirx.Select((raw & 0x7FFFFFFF) > 0x7F800000, (raw >> 16) | 0x40, rounded)


def to_float16(raw: Expr) -> Expr:
    """The bits of a float32 rounded to those of a float16.

    Normal numbers are rounded by an addition to their bits, subnormal ones by adding a float whose
    last place is that of the smallest half (F. Giesen, "float_to_half_fast3_rtne").
    """
    magnitude = raw & 0x7FFFFFFF
    sign = (raw >> 16) & 0x8000
    normal = (magnitude + ((15 - 127) << 23) + 0xFFF + ((magnitude >> 13) & 1)) >> 13
    magic = tirx.const(0.5, "float32")
    subnormal = bits(from_bits(magnitude) + magic) - bits(magic)
    small = tirx.Select(magnitude < (113 << 23), subnormal, normal)
    infinite = tirx.Select(magnitude > 0x7F800000, int32(0x7E00), int32(0x7C00))
    return tirx.Select(magnitude >= (143 << 23), infinite, small) | sign


def int32(value: int) -> Expr:
    """An int32 constant."""
    return tirx.const(value, "int32")


def activation(function: str | None, value: Expr, target: Chip) -> Expr:
    """`spec.activation_fn` of a float32."""
    if function is None:
        return value
    if function == "relu":
        zero = tirx.const(0, "float32")
        if target.max_keeps_nan:
            return tirx.max(zero, value)
        return tirx.Select(value < zero, zero, value)
    smooth = {"silu": silu, "gelu": gelu, "gelu_tanh": gelu_tanh}[function]
    return let("v", value.astype("float64"), smooth).astype("float32")


def silu(v: Expr) -> Expr:
    """silu(v) = v / (1 + exp(-v)) in float64."""
    return sigmoid_times(v, v)


def gelu_tanh(v: Expr) -> Expr:
    """gelu_tanh(v) = v / (1 + exp(-2 u)) with u = sqrt(2 / pi) (v + 0.044715 v**3).

    That is v / 2 (1 + tanh(u)), as it is usually written.
    """
    cubic = v + v * v * v * double(0.044715)
    return sigmoid_times(v, cubic * double(2 * math.sqrt(2 / math.pi)))


def gelu(v: Expr) -> Expr:
    """gelu(v) = v Phi(v) in float64, where Phi is the normal distribution's share below v."""
    tail = normal_tail(tirx.max(v, -v))
    return let("tail", tail, lambda t: v * tirx.Select(v < double(0), t, double(1) - t))


def double(value: float) -> Expr:
    """A float64 constant."""
    return tirx.const(value, "float64")


def sigmoid_times(v: Expr, u: Expr) -> Expr:
    """The quotient v / (1 + exp(-u)) in float64."""
    return v / (double(1) + exp(-u))


def exp(x: Expr) -> Expr:
    """exp(x) in float64 with a relative error below 1e-12; 0 below -700, finite above 700.

    x = n ln 2 + r with |r| <= ln 2 / 2, exp(r) by its Taylor series, 2**n through the bits of the
    exponent (Cody and Waite, "Software Manual for the Elementary Functions", 1980).
    """
    high, low = 0.693147180369123816490, 1.90821492927058770002e-10  # ln 2; n * high is exact

    def power_of_two(n: Expr) -> Callable[[Expr], Expr]:
        def times(r: Expr) -> Expr:
            result = double(1 / math.factorial(11))
            for power in range(10, -1, -1):
                result = result * r + double(1 / math.factorial(power))
            exponent = n.astype("int64") << tirx.const(52, "int64")
            return tirx.reinterpret("float64", tirx.reinterpret("int64", result) + exponent)

        return times

    def reduced(x: Expr) -> Expr:
        # As ROUNDER, for float64; the difference would be simplified away, so n is read as bits.
        shifted = x * double(1 / math.log(2)) + double(1.5 * 2.0**52)
        return let(
            "n",
            tirx.reinterpret("int64", shifted).astype("int32"),
            lambda n: let(
                "r",
                x - n.astype("float64") * double(high) - n.astype("float64") * double(low),
                power_of_two(n),
            ),
        )

    return let("x", clamp(x, double(-700), double(700)), reduced)


def let(name: str, value: Expr, body: Callable[[Expr], Expr]) -> Expr:
    """`body(value)` with `value` computed once."""
    var = tirx.Var(name, str(value.ty))
    return tirx.Let(var, value, body(var))


def normal_tail(a: Expr) -> Expr:
    """The standard normal distribution's share beyond a >= 0, in float64."""

    def polynomial(t: Expr) -> Expr:
        result = double(TAIL_COEFFICIENTS[0])
        for coefficient in TAIL_COEFFICIENTS[1:]:
            result = result * t + double(coefficient)
        return result

    def tail(a: Expr) -> Expr:
        t = (a - double(TAIL)) / (a + double(TAIL))
        return exp(-(a * a) * double(0.5)) * let("t", t, polynomial)

    return let("a", tirx.min(a, double(38)), tail)
