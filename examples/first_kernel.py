"""The first kernel: quantize a weight, compile, multiply, and compare with the floats.

python examples/first_kernel.py
"""

from __future__ import annotations

import numpy as np
import quantmm as qmm


def main() -> None:
    """Print how far the product is from that of the floats."""
    rng = np.random.default_rng(0)
    W = rng.standard_normal((512, 256), np.float32)  # weights, N x K
    X = rng.standard_normal((16, 256), np.float32)  # activations, M x K

    w = qmm.quantize(W, "int4", group_size=32)
    spec = w.spec(input="float32", dynamic=True)
    linear = qmm.compile(spec).bind(w)
    y = linear(X)

    assert np.array_equal(y, qmm.reference(spec, X, w))
    error = np.linalg.norm(y - X @ W.T) / np.linalg.norm(X @ W.T)
    print(f"{y.shape[0]} x {y.shape[1]} results, {error:.1%} from those of the floats")


if __name__ == "__main__":
    main()
