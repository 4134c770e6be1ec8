"""What quantization costs: the error that formats leave in a weight and in X Wᵀ, in a table."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import ArrayError, SpecError
from .quantize import QTensor, dequantize, quantize
from .ranges import pieces
from .spec import MatmulSpec
from .values import as_matrix

#: Elements of W that are held in float64 at a time.
BLOCK = 1 << 22
ROWS = 64


@dataclass(frozen=True)
class ErrorRow:
    """What one format costs.

    Attributes
    ----------
    format : of the weight: "float32", "int8 channel", "int4 g=128", "uint4 g=32 zero points".
    activation : of X: "float32", "int8 tensor", "uint8 row zero points".
    bytes : of the weight as `QTensor` stores it: integers, scales, and zero points or offsets.
    ratio : `bytes` over those of float32.
    snr_db : signal-to-noise ratio of the weight, 10 log10(sum w² / sum (w - dequantized)²); inf
        when nothing is lost.
    output_error : the norm of the error of X Wᵀ over the norm of X Wᵀ, both quantized.
    """

    format: str
    activation: str
    bytes: int
    ratio: float
    snr_db: float
    output_error: float


def error_report(
    W: npt.ArrayLike,
    specs: Iterable[MatmulSpec],
    x: npt.ArrayLike | None = None,
    *,
    method: str = "absmax",
    percentile: float | None = None,
) -> list[ErrorRow]:
    """Quantize a weight as each spec says, and compare it and its products with the original.

    Sums are taken in float64. What a spec says beside its formats (bias, out and so on) is ignored.

    Parameters
    ----------
    W : (N, K), finite numbers that float32 holds, in whatever `quantize` takes.
    specs : the formats; n and k are those of W.
    x : (M, K), finite activations; 64 rows of the standard normal distribution when left out. Each
        row has its own scale when the spec has activation_scale="row", and each group of a row
        with "group".
    method, percentile : how `quantize` finds the range of the weight. The range of activations is
        all of it, as in a kernel that quantizes them.

    Returns
    -------
    One row for float32 (without an error, unless W or x hold more than that), then one per spec.

    Raises
    ------
    SpecError
        A spec is for another shape, or what `quantize` refuses.
    ArrayError
        W or x is not a finite matrix, or their K differ.
    """
    weight = as_matrix("W", W)
    n, k = weight.shape
    if isinstance(specs, MatmulSpec):
        raise SpecError("specs is one MatmulSpec; expected several, as in [spec]")
    specs = list(specs)
    for spec in specs:
        if not isinstance(spec, MatmulSpec):
            raise SpecError(f"specs holds {spec!r}; expected MatmulSpec")
        if spec.gated or spec.experts is not None:
            raise SpecError("a spec is gated or has experts; expected those of one product each")
        if (spec.n, spec.k) != (n, k):
            raise SpecError(f"a spec has n={spec.n}, k={spec.k}; W has n={n}, k={k}")
    if x is None:
        x = np.random.default_rng(0).standard_normal((ROWS, k), np.float32)
    given = as_matrix("x", x)
    if given.shape[1] != k:
        raise ArrayError(f"x has K={given.shape[1]}; W has K={k}")
    original = Original(weight, given, product(given, weight))

    size = 4 * n * k
    single = weight.astype(np.float32), given.astype(np.float32)
    rows = [ErrorRow("float32", "float32", size, 1.0, *original.errors(*single))]
    for spec in specs:
        q = quantize_weight(weight, spec, method, percentile)
        qx = quantize(
            given,
            spec.activation,
            group_size=spec.x_group_size,
            symmetric=not spec.activation_zero_point,
        )
        count = q.data.nbytes + q.scale.nbytes
        for beside in (q.zero_point, q.offset):
            count += 0 if beside is None else beside.nbytes
        errors = original.errors(dequantize(q), dequantize(qx))
        labels = weight_label(spec), activation_label(spec)
        rows.append(ErrorRow(*labels, count, count / size, *errors))
    return rows


def quantize_weight(
    weight: np.ndarray, spec: MatmulSpec, method: str, percentile: float | None
) -> QTensor:
    """The weight in the formats of `spec`; `method` and `percentile` as `quantize` takes them."""
    return quantize(
        weight,
        spec.weight,
        group_size=spec.group_size,
        symmetric=None if spec.weight_offset else not spec.weight_zero_point,
        method=method,
        percentile=percentile,
        offset=spec.weight_offset,
    )


@dataclass(frozen=True, eq=False)
class Original:
    """What quantized matrices are compared with: W, X and X Wᵀ."""

    weight: np.ndarray
    x: np.ndarray
    y: np.ndarray

    def errors(self, weight: np.ndarray, x: np.ndarray) -> tuple[float, float]:
        """`ErrorRow.snr_db` and `ErrorRow.output_error` of dequantized matrices."""
        signal = noise = 0.0
        for rows in pieces(weight.shape[0], BLOCK // weight.shape[1]):
            w = self.weight[rows].astype(np.float64)
            signal += float(np.sum(w * w))
            w -= weight[rows]
            noise += float(np.sum(w * w))
        snr = 10 * math.log10(signal / noise) if noise else math.inf
        lost = float(np.linalg.norm(product(x, weight) - self.y))
        whole = float(np.linalg.norm(self.y))
        return snr, lost / whole if whole else math.inf if lost else 0.0


def product(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """X Wᵀ in float64, for some rows of W at a time."""
    n, k = weight.shape
    exact = x.astype(np.float64)
    parts = [exact @ weight[rows].astype(np.float64).T for rows in pieces(n, BLOCK // k)]
    return np.concatenate(parts, axis=1)


def weight_label(spec: MatmulSpec) -> str:
    """The format of a spec's weight, in words."""
    size = spec.group_size
    groups = f"g={size}" if isinstance(size, int) else size or "channel"
    beside = " zero points" if spec.weight_zero_point else " offsets" if spec.weight_offset else ""
    return f"{spec.weight} {groups}{beside}"


def activation_label(spec: MatmulSpec) -> str:
    """The format of a spec's activations, in words."""
    zero = " zero points" if spec.activation_zero_point else ""
    return f"{spec.activation} {spec.activation_scale}{zero}"
