"""Float functions as TIR expressions, for vectors of any width and targets of any kind.

Roundings are explicit: `to_integer` rounds half to even, conversions between float formats too.
What LLVM would turn into a call of libm per element (rint) is written out; see `smooth` for exp.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.ir import Expr

from ...formats.integers import INTEGERS
from ...targets import Chip

#: 1.5 * 2**23: a float32 of small magnitude added to it is rounded to an integer, half to even, and
#: the sum's bits are those of this number plus that integer.
ROUNDER = 12582912.0


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


def not_below(target: Chip, least: Expr, value: Expr) -> Expr:
    """The greater of both; NaN where `value` is NaN."""
    if target.max_keeps_nan:
        return tirx.max(least, value)
    return tirx.Select(value < least, least, value)


def beneath(value: Expr, body: Callable[[Expr], Expr]) -> Expr:
    """`body(value)` inside what `value` binds: TVM cannot simplify a Let in what another binds."""
    if isinstance(value, tirx.Let):
        return tirx.Let(value.var, value.value, beneath(value.body, body))
    return body(value)


def let(name: str, value: Expr, body: Callable[[Expr], Expr]) -> Expr:
    """`body(value)` with `value` computed once."""
    var = tirx.Var(name, str(value.ty))
    return tirx.Let(var, value, body(var))
