"""What a `MatmulSpec` means, in NumPy. Tests and `quantmm verify` compare every kernel with this.

    acc[m, n, g] = sum over k in group g of (qX[m, k] - zX[m]) * (qW[n, k] - zW[n, g])     int32
    xsum[m, g]   = sum over k in group g of (qX[m, k] - zX[m])                             int32
                   with weight_order qX[m, order[k]] for qX[m, k]
    t[m, n]      = acc[m, n, 0] * sW[n, 0];  t = fma(acc[m, n, g], sW[n, g], t) for g = 1, 2, ...
    (offsets)      each followed by  t = fma(xsum[m, g], bW[n, g], t)
    y[m, n]      = t * sX[m],  with a bias fma(t, sX[m], bias[n]);  activation_fn;  + residual
                   (without bias and activation_fn  fma(t, sX[m], residual[m, n]))

Where X has a scale for each of several groups, they are applied group by group, and none is left:

    u[m, n, g]   = acc[m, n, g] * sW[n, g]           with zX[m, g] in acc
    t[m, n]      = u[m, n, 0] * sX[m, 0];  t = fma(u[m, n, g], sX[m, g], t) for g = 1, 2, ...
    (offsets)      each followed by  t = fma(xsum[m, g] * sX[m, g], bW[n, g], t)
    y[m, n]      = t,  with a bias t + bias[n];  activation_fn;  + residual

Gated, t has 2 N columns, and y of the first N is the gate and of the others "up":

    y[m, n]      = activation_fn(gate[m, n]) * up[m, n],  with a residual
                   fma(activation_fn(gate[m, n]), up[m, n], residual[m, n])

Every step is one float32 rounding (half to even); int32 is converted to float32 first. fma rounds
once: it is computed here through float64, where the product is exact. A float16 or bfloat16 out is
y rounded once more; int8 and uint8 are clip(round(y / sY) + zY); int32 is acc itself.

gelu, gelu_tanh, silu, tanh and sigmoid are computed here in float64 and rounded to float32. A
kernel computes them in float32, to 2 units in the last place, or to 2**-126 where that is more; so
what it stores is what the steps behind the function make of a number that is that near. `bounds`
has both ends of these: an int8 result, say, may be one of two neighbours, but only near a tie.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ..errors import ArrayError
from .checks import (
    check_bias,
    check_offs,
    check_weight,
    missing,
    numbers,
    opened,
    takes,
    takes_residual,
)
from .integers import INTEGERS
from .nibbles import unpack_int4
from .quantize import QTensor, quantize
from .ranges import spread
from .spec import MatmulSpec, check_spec
from .values import as_array, to_float32

_erfc: Any = np.vectorize(math.erfc, otypes=[np.float64])

#: The functions that a kernel computes to so many units in the last place, or to so much.
SMOOTH = ("gelu", "gelu_tanh", "silu", "tanh", "sigmoid")
UNITS, LEAST = 2, np.float32(2.0**-126)


@dataclass(frozen=True)
class Bounds:
    """The least and the greatest that a kernel's results may be, (..., n) each in `spec.out`."""

    low: np.ndarray
    high: np.ndarray

    def __getitem__(self, index: Any) -> Bounds:
        """The bounds of some results."""
        return Bounds(self.low[index], self.high[index])

    def reshape(self, *shape: int) -> Bounds:
        """The same bounds in another shape."""
        return Bounds(self.low.reshape(*shape), self.high.reshape(*shape))


def bounds(spec: MatmulSpec, x: npt.ArrayLike | QTensor, w: QTensor, **given: Any) -> Bounds:
    """What a kernel may return where `reference` has the same arguments; see the formula.

    Both ends are the reference unless the spec has a function of `SMOOTH`.
    """
    if spec.activation_fn not in SMOOTH:
        y = reference(spec, x, w, **given)
        return Bounds(y, y)
    ends = [reference(spec, x, w, **given, units=units) for units in (-UNITS, UNITS)]
    return Bounds(np.fmin(*ends), np.fmax(*ends))


def reference(
    spec: MatmulSpec,
    x: npt.ArrayLike | QTensor,
    w: QTensor,
    *,
    bias: npt.ArrayLike | None = None,
    residual: npt.ArrayLike | None = None,
    x_scale: npt.ArrayLike | None = None,
    x_zero_point: npt.ArrayLike | None = None,
    out_scale: npt.ArrayLike | None = None,
    out_zero_point: npt.ArrayLike | None = None,
    offs: npt.ArrayLike | None = None,
    units: int = 0,
) -> np.ndarray:
    """Y = X Wᵀ as `spec` defines it, (..., n) in `spec.out`.

    What a kernel refuses is refused here too. Floats that are quantized must also be finite, where
    a kernel, which does not look for it, has results that mean nothing; see `Linear.__call__`.

    Parameters
    ----------
    x : (..., k) floats when `spec.input` is set; otherwise integers of `spec.activation` (int4
        also packed, as uint8 of (..., ceil(k / 2))), or a `QTensor` that brings its scale and zero
        point.
    w : the quantized weight, (n, k).
    bias : float32 (n,), when `spec.bias`.   residual : (..., n), when `spec.residual`.
    x_scale, x_zero_point : scalar, or `x.shape[:-1]` when `spec.activation_scale` is "row", and
        `(*x.shape[:-1], groups)` when it is "group"; not for dynamic specs.
    out_scale, out_zero_point : for int8 and uint8 outputs; an out_zero_point left out is 0.
    offs : (experts,) integers, when `spec.experts`: rows offs[e - 1] up to offs[e] of x are
        multiplied with rows e n up to (e + 1) n of w.
    units : by how many units in its last place the result of a smooth activation function is moved
        before what follows; see `bounds`.

    Raises
    ------
    ArrayError
        What is given does not fit `spec`.
    """
    check_weight(check_spec(spec), w)
    added_bias = check_bias(spec, bias)
    end = output_numbers(spec, out_scale, out_zero_point)
    if not isinstance(x, QTensor) and (given := as_array("x", x)).ndim != 2:
        if 0 in (given.ndim, *given.shape[-1:]):
            raise ArrayError(f"x has shape {given.shape}; expected (..., {spec.k})")
        lead = given.shape[:-1]
        arrays = {"bias": bias, "residual": of_rows("residual", residual, (*lead, spec.n), 1)}
        each = (*lead, spec.groups) if spec.activation_scale == "group" else lead
        for name, value in (("x_scale", x_scale), ("x_zero_point", x_zero_point)):
            arrays[name] = of_rows(name, value, each, len(each) - len(lead), scalar=True)
        rows = given.reshape(-1, given.shape[-1])
        arrays |= {"out_scale": out_scale, "out_zero_point": out_zero_point, "offs": offs}
        return reference(spec, rows, w, **arrays, units=units).reshape(*lead, spec.n)
    if spec.experts is not None or offs is not None:
        per_row = {"x_scale": x_scale, "x_zero_point": x_zero_point, "residual": residual}
        others = {"out_scale": out_scale, "out_zero_point": out_zero_point, "units": units}
        return of_experts(spec, x, w, offs, added_bias, per_row, others)
    qx, sx, zx = activations(spec, x, x_scale, x_zero_point)
    m = qx.shape[0]
    xs = qx.astype(np.float64) - spread(zx, qx.shape, spec.x_group_size)
    if w.order is not None:
        xs = xs[:, w.order]
    ws = w.unpacked().astype(np.float64)
    if w.zero_point is not None:
        ws = ws - spread(w.zero_point, w.shape, w.group_size)

    # Sums below 2**31 of integers are exact in float64, in any order.
    if spec.groups == 1:
        acc = xs @ ws.T
        if spec.out == "int32":
            return acc.astype(np.int32)
        y = acc.astype(np.float32) * np.broadcast_to(w.scale.reshape(-1), (spec.w_rows,))
        if w.offset is not None:
            y = fma(group_sum(xs), w.offset.reshape(-1), y)
    else:
        y = np.zeros((m, spec.w_rows), np.float32)
        for g in range(spec.groups):
            k = slice(g * spec.k_of_group, (g + 1) * spec.k_of_group)
            acc = (xs[:, k] @ ws[:, k].T).astype(np.float32)
            own = sx[:, [g]] if spec.x_groups > 1 else None
            y = fma(acc, w.scale[:, g], y) if own is None else fma(acc * w.scale[:, g], own, y)
            if w.offset is not None:
                xsum = group_sum(xs[:, k])
                y = fma(xsum if own is None else xsum * own, w.offset[:, g], y)
    added = check_residual(spec, residual, m)
    if spec.x_groups > 1:
        y = y if added_bias is None else y + added_bias
    elif added_bias is not None:
        y = fma(y, sx, added_bias)
    elif added is not None and spec.activation_fn is None and not spec.gated:
        return store(spec.out, fma(y, sx, added), *end)
    else:
        y = y * sx
    if spec.gated:
        y, up = apply(spec.activation_fn, y[:, : spec.n], units), y[:, spec.n :]
        y = y * up if added is None else fma(y, up, added)
    else:
        y = apply(spec.activation_fn, y, units)
        if added is not None:
            y = y + added
    return store(spec.out, y, *end)


def of_experts(
    spec: MatmulSpec,
    x: Any,
    w: QTensor,
    offs: npt.ArrayLike | None,
    bias: np.ndarray | None,
    per_row: dict[str, Any],
    others: dict[str, Any],
) -> np.ndarray:
    """The rows of every expert, multiplied with its weight as if that were the only one."""
    given: Any = x if isinstance(x, QTensor) else as_array("x", x)
    ends = check_offs(spec, offs, given.shape[0])
    one = dataclasses.replace(spec, experts=None, m=None)
    parts = []
    for e, (start, stop) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        rows, columns = slice(start, stop), slice(e * spec.w_rows, (e + 1) * spec.w_rows)
        of_e = {name: numbers_of(value, rows, ends[-1]) for name, value in per_row.items()}
        of_e["bias"] = None if bias is None else bias[columns]
        x_of_e = given.rows(rows) if isinstance(given, QTensor) else given[rows]
        parts.append(reference(one, x_of_e, w.rows(columns), **of_e, **others))
    return np.concatenate(parts)


def numbers_of(value: npt.ArrayLike | None, rows: slice, m: int) -> Any:
    """What comes for each of m rows, for some of them; one number for all stays."""
    if value is None or np.size(value) == 1 or np.shape(value)[0] != m:
        return value
    return as_array("a number per row", value)[rows]


def of_rows(
    name: str,
    value: npt.ArrayLike | None,
    shape: tuple[int, ...],
    columns: int,
    *,
    scalar: bool = False,
) -> np.ndarray | None:
    """What comes for each row of an x that is no matrix, for the rows of one.

    The last `columns` dimensions of `shape` are those of a row. One number stays one where
    `scalar` allows it.
    """
    if value is None:
        return None
    array = as_array(name, value)
    if array.shape == shape:
        return array.reshape(-1, *shape[len(shape) - columns :])
    if array.size == 1 and scalar:
        return array.reshape(-1)
    raise ArrayError(f"{name} has shape {array.shape}; expected {shape}")


def activations(
    spec: MatmulSpec,
    x: npt.ArrayLike | QTensor,
    x_scale: npt.ArrayLike | None,
    x_zero_point: npt.ArrayLike | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integers (M, K); scales float32 and zero points, (M or 1, 1) or (M, groups) each."""
    given: Any = x
    if isinstance(x, QTensor):
        given, x_scale, x_zero_point = opened(spec, x, x_scale, x_zero_point)
    q = as_array("x", given)
    scale = optional("x_scale", x_scale, spec, len(q))
    zero = optional("x_zero_point", x_zero_point, spec, len(q))
    if spec.input is not None:
        found = quantize(
            q,
            spec.activation,
            group_size=spec.x_group_size,
            scale=scale,
            zero_point=zero,
            symmetric=not spec.activation_zero_point,
        )
        q, scale, zero = found.unpacked(), found.scale, found.zero_point
    elif spec.packed_activation and q.dtype == np.uint8:
        q = unpack_int4(q, spec.k)
    least, greatest = INTEGERS[spec.activation].range
    if q.shape[1] != spec.k or q.dtype.kind not in "iu":
        raise ArrayError(f"x is {q.dtype.name}{q.shape}; expected integers of (M, {spec.k})")
    if q.size and not (least <= q.min() and q.max() <= greatest):
        raise ArrayError(f"x spans {q.min()} to {q.max()}; {spec.activation} does not")
    return q, columns(scale, np.float32(1), spec), columns(zero, np.int32(0), spec)


def optional(name: str, value: npt.ArrayLike | None, spec: MatmulSpec, m: int) -> np.ndarray | None:
    """A number that the spec takes, (1,) or (m,); None where it takes none."""
    if value is None and takes(name, spec):
        raise missing(name, spec)
    return None if value is None else numbers(name, value, spec, m)


def columns(values: np.ndarray | None, default: np.generic, spec: MatmulSpec) -> np.ndarray:
    """Numbers per row (and group) of X, or one for all, as they stand beside a matrix."""
    if values is None:
        return np.full((1, spec.x_groups), default)
    return np.reshape(values, (-1, spec.x_groups))


def output_numbers(
    spec: MatmulSpec, out_scale: npt.ArrayLike | None, out_zero_point: npt.ArrayLike | None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Scale and zero point of integer outputs."""
    if out_zero_point is None and spec.requantized:
        out_zero_point = 0
    scale = optional("out_scale", out_scale, spec, 1)
    return scale, optional("out_zero_point", out_zero_point, spec, 1)


def check_residual(spec: MatmulSpec, residual: npt.ArrayLike | None, m: int) -> np.ndarray | None:
    """The residual as float32 (m, n); None where the spec has none."""
    if not takes_residual(spec, residual, m):
        return None
    assert residual is not None
    given = as_array("residual", residual)
    if given.shape != (m, spec.n):
        raise ArrayError(f"residual has shape {given.shape}; expected {(m, spec.n)}")
    return to_float32("residual", given)


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """The sum a * b + c in float32, rounded once (double rounding through float64 aside)."""
    return (a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)).astype(np.float32)


def group_sum(xs: np.ndarray) -> np.ndarray:
    """The sum of each row of exact integers, as a column of float32."""
    return xs.sum(axis=1, keepdims=True).astype(np.float32)


def apply(function: str | None, y: np.ndarray, units: int = 0) -> np.ndarray:
    """The activation function, evaluated in float64 and rounded to float32."""
    if function == "relu":
        return np.maximum(y, np.float32(0))
    if function not in SMOOTH:
        return y
    # At minus infinity the functions are their limits, which they reach long before.
    v = np.where(y == -np.inf, -1e4, y).astype(np.float64)
    if function == "gelu":
        exact = 0.5 * v * _erfc(-v / math.sqrt(2))
    elif function == "gelu_tanh":
        exact = v * sigmoid(2 * math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))
    elif function == "silu":
        exact = v * sigmoid(v)
    else:
        exact = np.tanh(v) if function == "tanh" else sigmoid(v)
    return moved(exact.astype(np.float32), units)


def sigmoid(u: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-u)) in float64; exp(-u) may be infinite."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-u))


def moved(y: np.ndarray, units: int) -> np.ndarray:
    """`y` and so many units in its last place; where that is less than `LEAST`, and `LEAST`."""
    if not units:
        return y
    finite = np.isfinite(y)
    distance = np.maximum(
        abs(units) * np.spacing(np.abs(y), where=finite, out=np.zeros_like(y)), LEAST
    )
    with np.errstate(over="ignore"):
        return np.where(finite, y + np.float32(np.sign(units)) * distance, y)


def store(
    out: str, y: np.ndarray, scale: np.ndarray | None, zero_point: np.ndarray | None
) -> np.ndarray:
    """Y (float32) in the output format."""
    if scale is not None and zero_point is not None:
        least, greatest = INTEGERS[out].range
        q = np.rint(y / scale) + zero_point
        return np.clip(q, least, greatest).astype(out)
    with np.errstate(over="ignore"):  # what float16 cannot hold is infinite
        return y.astype(ml_dtypes.bfloat16 if out == "bfloat16" else out)
