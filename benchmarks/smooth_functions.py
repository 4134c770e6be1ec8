"""The coefficients of compiler/expr/smooth.py, and how far their functions are off.

    python benchmarks/smooth_functions.py              the polynomials, fitted again
    python benchmarks/smooth_functions.py 64           every 64th float32 through compiled code

Fits need SciPy, for erfc and erfcx.
"""

from __future__ import annotations

import math
import sys

import numpy as np
import quantmm as qmm
from quantmm.compiler.expr.smooth import FAR, FAR_CENTRE, NEAR, NEAR_CENTRE, SMOOTH
from scipy import special

NODES, STEPS = 200, 300


def nodes(low: float, high: float) -> np.ndarray:
    """Chebyshev's, between two bounds."""
    unit = np.cos((np.arange(NODES) + 0.5) * np.pi / NODES)
    return (low + high) / 2 + (high - low) / 2 * unit


def fit(x: np.ndarray, y: np.ndarray, weight: np.ndarray, degree: int) -> tuple[float, list[float]]:
    """The least greatest error times `weight` that was found, and its coefficients as float32."""
    largest, shares = np.abs(x).max(), np.full(len(x), 1 / len(x))
    powers = (x[:, None] / largest) ** np.arange(degree + 1)
    best = math.inf, np.zeros(degree + 1)
    for _ in range(STEPS):
        scale = np.sqrt(shares) * weight
        found, *_ = np.linalg.lstsq(powers * scale[:, None], y * scale, rcond=None)
        error = np.abs(powers @ found - y) * weight
        best = min(
            best, (error.max(), found / largest ** np.arange(degree + 1)), key=lambda f: f[0]
        )
        shares *= error + 1e-3 * error.max()
        shares /= shares.sum()
    return best[0], [float(f"{np.float32(value):.9g}") for value in best[1]]


def show(name: str, found: tuple[float, list[float]]) -> None:
    """Print a fit."""
    print(f"{name} = {found[1]}  # error 2**{math.log2(found[0]):.1f}")


def tail(low: float, high: float, centre: float) -> tuple[float, list[float]]:
    """2 Phi(-a) exp(a * a / 2) (a + 1) - 1 for `low` <= a <= `high`."""
    w = nodes(low / (low + 1), high / (high + 1))
    a = w / (1 - w)
    return fit(w - centre, special.erfcx(a / math.sqrt(2)) * (a + 1) - 1, np.ones(NODES), 8)


def fits() -> None:
    """Print all of them."""
    r = nodes(-math.log(2) / 2, math.log(2) / 2)
    relative = r * r / np.abs(np.expm1(r))
    show("EXPM1", fit(r, (np.expm1(r) - r) / r**2, relative, 4))
    show("NEAR_TAIL", tail(0, NEAR, NEAR_CENTRE))
    show("FAR_TAIL", tail(NEAR, FAR, FAR_CENTRE))


def exact(function: str, v: np.ndarray) -> np.ndarray:
    """The function in float64."""
    if function == "gelu":
        return 0.5 * v * special.erfc(-v / math.sqrt(2))
    if function == "tanh":
        return np.tanh(v)
    u = 2 * math.sqrt(2 / math.pi) * (v + 0.044715 * v**3) if function == "gelu_tanh" else v
    return special.expit(u) * (1 if function == "sigmoid" else v)


def sweep(step: int) -> None:
    """Print the greatest errors over every `step`th finite number."""
    n = 1 << 16
    w = qmm.QTensor(np.zeros((n, 1), np.int8), np.ones(n, np.float32), None, "int8", None, (n, 1))
    x = np.zeros((1, 1), np.int8)
    for function in SMOOTH:
        kernel = qmm.compile(qmm.MatmulSpec(n=n, k=1, m=1, activation_fn=function, bias=True))
        normal, small = (0.0, 0.0), 0.0
        for start in range(0, 2**32, n * step):
            v = np.arange(start, start + n * step, step, dtype=np.uint32).view(np.float32)
            v = np.where(np.isfinite(v), v, 0)
            y = kernel.bind(w, v, x_scale=1.0)(x)[0]
            right = exact(function, v.astype(np.float64))
            off = np.abs(y - right)
            units = off / np.spacing(np.abs(right).astype(np.float32))
            units[np.abs(right) < 2.0**-126] = 0
            at = units.argmax()
            normal = max(normal, (units[at], v[at]))
            small = max(small, off[np.abs(right) < 2.0**-126].max(initial=0))
        print(f"{function}: {normal[0]:.3f} units at {normal[1]:.9g}, {small:.3g} below 2**-126")


if __name__ == "__main__":
    sweep(int(sys.argv[1])) if len(sys.argv) > 1 else fits()
