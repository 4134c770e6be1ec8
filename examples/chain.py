"""Two layers that hand integers to each other: quantize, multiply, requantize in one call.

The first layer writes the uint8 that the second one reads. Its scale is found on some examples.

    python examples/chain.py
"""

from __future__ import annotations

import numpy as np
import quantmm as qmm

INPUTS, HIDDEN, OUTPUTS = 64, 128, 10


def main() -> None:
    """Print how far the chain is from the floats."""
    rng = np.random.default_rng(0)
    first = rng.standard_normal((HIDDEN, INPUTS), np.float32)
    second = rng.standard_normal((OUTPUTS, HIDDEN), np.float32)
    bias = rng.standard_normal(HIDDEN, np.float32)
    examples = rng.standard_normal((256, INPUTS), np.float32)
    X = rng.standard_normal((8, INPUTS), np.float32)

    # Behind relu nothing is negative: 0 to the greatest number are 0 to 255.
    scale = np.maximum(examples @ first.T + bias, 0).max() / 255

    w1, w2 = qmm.quantize(first), qmm.quantize(second)
    one = w1.spec(input="float32", dynamic=True, bias=True, activation_fn="relu", out="uint8")
    two = w2.spec(activation="uint8", activation_scale="tensor")
    layer1 = qmm.compile(one).bind(w1, bias=bias, out_scale=scale)
    layer2 = qmm.compile(two).bind(w2, x_scale=scale)
    y = layer2(layer1(X))  # uint8 between them

    expected = np.maximum(X @ first.T + bias, 0) @ second.T
    error = np.linalg.norm(y - expected) / np.linalg.norm(expected)
    print(f"{error:.1%} from the floats")


if __name__ == "__main__":
    main()
