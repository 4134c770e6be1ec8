"""What a `MatmulSpec` means, in NumPy. Tests and `quantmm verify` compare every kernel with this.

    acc[m, n, g] = sum over k in group g of (qX[m, k] - zX[m]) * (qW[n, k] - zW[n, g])     int32
    t[m, n]      = acc[m, n, 0] * sW[n, 0];  t = fma(acc[m, n, g], sW[n, g], t) for g = 1, 2, ...
    y[m, n]      = t * sX[m],  with a bias fma(t, sX[m], bias[n]);  activation_fn;  + residual
                   (without bias and activation_fn  fma(t, sX[m], residual[m, n]))

Every step is one float32 rounding (half to even); int32 is converted to float32 first. fma rounds
once: it is computed here through float64, where the product is exact. A float16 or bfloat16 out is
y rounded once more; int8 and uint8 are clip(round(y / sY) + zY); int32 is acc itself.
"""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ..errors import ArrayError
from .quantize import QTensor, check_scale, check_zero_point, quantize, spread, unpack_int4
from .spec import INTEGER_RANGE, MatmulSpec

_erfc: Any = np.vectorize(math.erfc, otypes=[np.float64])


def reference(
    spec: MatmulSpec,
    x: npt.ArrayLike | QTensor,
    w: QTensor,
    *,
    bias: npt.ArrayLike | None = None,
    residual: npt.ArrayLike | None = None,
    x_scale: npt.ArrayLike | None = None,
    x_zero_point: npt.ArrayLike | None = None,
    out_scale: float | None = None,
    out_zero_point: int = 0,
) -> np.ndarray:
    """Y = X Wᵀ as `spec` defines it, (M, n) in `spec.out`.

    Parameters
    ----------
    x : (M, k) floats when `spec.input` is set; otherwise integers of `spec.activation` (int4 also
        packed, as uint8 of (M, ceil(k / 2))), or a `QTensor` that brings its scale and zero point.
    w : the quantized weight, (n, k).
    bias : float32 (n,), when `spec.bias`.   residual : (M, n), when `spec.residual`.
    x_scale, x_zero_point : scalar or (M,); not for dynamic specs.
    out_scale, out_zero_point : for int8 and uint8 outputs.

    Raises
    ------
    ArrayError
        What is given does not fit `spec`.
    """
    if w.shape != (spec.n, spec.k) or w.dtype != spec.weight:
        raise ArrayError(f"w is {w.dtype}{w.shape}; the spec has {spec.weight}{(spec.n, spec.k)}")
    qx, sx, zx = activations(spec, x, x_scale, x_zero_point)
    m = qx.shape[0]
    xs = qx.astype(np.float64) - zx
    ws = w.unpacked().astype(np.float64)
    if w.zero_point is not None:
        ws = ws - spread(w.zero_point, w.shape, w.group_size)

    # Sums below 2**31 of integers are exact in float64, in any order.
    if not isinstance(spec.group_size, int):
        acc = xs @ ws.T
        if spec.out == "int32":
            return acc.astype(np.int32)
        y = acc.astype(np.float32) * np.broadcast_to(w.scale, (spec.n,))
    else:
        y = np.zeros((m, spec.n), np.float32)
        for g in range(spec.groups):
            k = slice(g * spec.group_size, (g + 1) * spec.group_size)
            acc = xs[:, k] @ ws[:, k].T
            y = fma(acc.astype(np.float32), w.scale[:, g], y)
    added = np.zeros((), np.float32)
    if spec.residual:
        given = np.asarray(() if residual is None else residual)
        if given.shape != (m, spec.n):
            raise ArrayError(f"residual has shape {given.shape}; expected {(m, spec.n)}")
        added = given.astype(np.float32)
    if spec.bias:
        y = fma(y, sx, row_vector("bias", bias, spec.n))
    elif spec.residual and spec.activation_fn is None:
        return store(spec.out, fma(y, sx, added), out_scale, out_zero_point)
    else:
        y = y * sx
    y = apply(spec.activation_fn, y)
    if spec.residual:
        y = y + added
    return store(spec.out, y, out_scale, out_zero_point)


def activations(
    spec: MatmulSpec,
    x: npt.ArrayLike | QTensor,
    x_scale: npt.ArrayLike | None,
    x_zero_point: npt.ArrayLike | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integers (M, K), scales (M or 1, 1) float32 and zero points (M or 1, 1)."""
    if spec.input is not None and not isinstance(x, QTensor):
        x = quantize(
            np.asarray(x),
            spec.activation,
            group_size=None if spec.activation_scale == "row" else "tensor",
            scale=None if spec.dynamic else x_scale,
            zero_point=None if spec.dynamic else x_zero_point,
            symmetric=not spec.activation_zero_point,
        )
    if isinstance(x, QTensor):
        if x.dtype != spec.activation:
            raise ArrayError(f"x is {x.dtype}; the spec has {spec.activation} activations")
        q, x_scale, x_zero_point = x.unpacked(), x.scale, x.zero_point
    else:
        q = np.asarray(x)
        if spec.packed_activation and q.dtype == np.uint8:
            q = unpack_int4(q, spec.k)
    least, greatest = INTEGER_RANGE[spec.activation]
    if q.ndim != 2 or q.shape[1] != spec.k or q.dtype.kind not in "iu":
        raise ArrayError(f"x is {q.dtype.name}{q.shape}; expected integers of (M, {spec.k})")
    if q.size and not (least <= q.min() and q.max() <= greatest):
        raise ArrayError(f"x spans {q.min()} to {q.max()}; {spec.activation} does not")
    scale = np.float32(1) if x_scale is None else np.asarray(x_scale).astype(np.float32)
    zero = np.zeros((), np.int32) if x_zero_point is None else np.asarray(x_zero_point, np.int32)
    check_scale(np.asarray(scale), np.shape(scale))
    check_zero_point(zero, zero.shape, spec.activation)
    return q, np.reshape(scale, (-1, 1)), zero.reshape(-1, 1)


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """A * b + c in float32 with a single rounding (double rounding through float64 aside)."""
    return (a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)).astype(np.float32)


def apply(function: str | None, y: np.ndarray) -> np.ndarray:
    """The activation function, evaluated in float64 and rounded to float32."""
    v = y.astype(np.float64)
    if function == "relu":
        return np.maximum(y, np.float32(0))
    if function == "gelu":
        return (0.5 * v * _erfc(-v / math.sqrt(2))).astype(np.float32)
    if function == "gelu_tanh":
        return sigmoid_times(v, 2 * math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))
    if function == "silu":
        return sigmoid_times(v, v)
    return y


def sigmoid_times(v: np.ndarray, u: np.ndarray) -> np.ndarray:
    """V / (1 + exp(-u)), rounded to float32; exp(-u) may be infinite."""
    with np.errstate(over="ignore"):
        return (v / (1 + np.exp(-u))).astype(np.float32)


def store(out: str, y: np.ndarray, scale: float | None, zero_point: int) -> np.ndarray:
    """Y (float32) in the output format."""
    if out in INTEGER_RANGE:
        if scale is None or not (np.isfinite(scale) and scale > 0):
            raise ArrayError(f"out_scale={scale}; {out} outputs need a positive finite scale")
        least, greatest = INTEGER_RANGE[out]
        check_zero_point(np.asarray(zero_point, np.int32), (), out)
        q = np.rint(y / np.float32(scale)) + zero_point
        return np.clip(q, least, greatest).astype(out)
    with np.errstate(over="ignore"):  # what float16 cannot hold is infinite
        return y.astype(ml_dtypes.bfloat16 if out == "bfloat16" else out)


def row_vector(name: str, value: npt.ArrayLike | None, n: int) -> np.ndarray:
    """`value` as float32 of (n,)."""
    vector = np.asarray(() if value is None else value)
    if vector.shape != (n,):
        raise ArrayError(f"{name} has shape {vector.shape}; expected ({n},)")
    return vector.astype(np.float32)
