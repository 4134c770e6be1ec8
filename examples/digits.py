"""Handwritten digits in 8- and 4-bit arithmetic: what it costs in accuracy, and saves in bytes.

A multilayer perceptron (64 -> 128 -> 64 -> 10) is trained with NumPy. Its layers are then quantized
and compiled in four ways:

    W8A8          int8 weights, one scale per row of the weight. Activations are float32; the kernel
                  quantizes them to int8 inside the call, row by row ("dynamic").
    W4A8 g=32     int4 weights, one scale per 32 of them; otherwise the same.
    W4A4 g=32     int4 activations as well, with a zero point.
    W8A8 chained  int8 weights; every layer writes the uint8 that the next one reads, with scales
                  that were found on the training set ("static"). No floats in between.

Training is the same on every machine, and so is the table: its products are exact, see `product`.
Bias and relu are part of the kernels, so a layer is one call. The images come with scikit-learn:
`pip install 'quantmm[examples]'`. Run it as `python examples/digits.py`; it takes some ten seconds,
most of them to compile twelve kernels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import quantmm as qmm
from quantmm.extras import install

try:
    from sklearn.datasets import load_digits
except ModuleNotFoundError:
    raise SystemExit(f"the images come with scikit-learn: {install('examples')}") from None

SIZES = (64, 128, 64, 10)
TEST_IMAGES = 600  # of 1797
EPOCHS = 40
BATCH = 32
#: Training multiplies multiples of 1 / GRID.
GRID = 2.0**20

#: The formats of the variants that take and give float32.
DYNAMIC: dict[str, dict[str, Any]] = {
    "W8A8": {"weight": "int8"},
    "W4A8 g=32": {"weight": "int4", "group_size": 32},
    # Groups again, for accuracy: with one scale per row a little more is lost. The zero point is
    # there because no activation is negative: without one half of the range would go unused, which
    # 8 bits can afford and 4 hardly.
    "W4A4 g=32": {
        "weight": "int4",
        "group_size": 32,
        "activation": "int4",
        "activation_zero_point": True,
    },
}


@dataclass(frozen=True, eq=False)
class Digits:
    """Images (M, 64) in [0, 1] and the digits they show (M,)."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


@dataclass(frozen=True, eq=False)
class Layer:
    """y = x weightᵀ + bias, with float32 weight (N, K) and bias (N,)."""

    weight: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True)
class Row:
    """A line of the table: test accuracy in %, and bytes of all weights, scales and biases."""

    variant: str
    accuracy: float
    nbytes: int


def load_images(rng: np.random.Generator) -> Digits:
    """The 8 x 8 images of scikit-learn, shuffled and split."""
    images, digits = load_digits(return_X_y=True)
    order = rng.permutation(len(images))
    x, y = (images[order] / 16).astype(np.float32), digits[order]
    return Digits(x[TEST_IMAGES:], y[TEST_IMAGES:], x[:TEST_IMAGES], y[:TEST_IMAGES])


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A @ b of both rounded to the grid, exact in float64 and so the same from every BLAS.

    Numbers are below 32, 25 bits of the grid, their products 50 bits, and sums below 2**13 fit 53.
    """
    steps = [np.rint(np.asarray(each, np.float64) * GRID) for each in (a, b)]
    return steps[0] @ steps[1] / GRID**2


def forward(layers: Sequence[Layer], x: np.ndarray) -> list[np.ndarray]:
    """The input of every layer, and the output of the last: relu lies between them."""
    values = [x]
    for layer in layers[:-1]:
        values.append(np.maximum(product(values[-1], layer.weight.T) + layer.bias, 0))
    return [*values, product(values[-1], layers[-1].weight.T) + layers[-1].bias]


def train(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> list[Layer]:
    """Minimize the cross-entropy by stochastic gradient descent with momentum."""
    layers = []
    for k, n in itertools.pairwise(SIZES):
        weight = rng.standard_normal((n, k)) * np.sqrt(2 / k)
        layers.append(Layer(weight, np.zeros(n)))
    parameters = [array for layer in layers for array in (layer.weight, layer.bias)]
    momenta = [np.zeros_like(array) for array in parameters]
    expected = np.eye(SIZES[-1])[y]
    for epoch in range(EPOCHS):
        rate = 0.1 * (1 - epoch / EPOCHS)
        order = rng.permutation(len(x))
        for start in range(0, len(x), BATCH):
            batch = order[start : start + BATCH]
            found = gradients(layers, x[batch], expected[batch])
            for array, momentum, gradient in zip(parameters, momenta, found, strict=True):
                momentum *= 0.9
                momentum += gradient
                array -= rate * momentum
    return [Layer(*map(np.float32, (layer.weight, layer.bias))) for layer in layers]


def gradients(layers: Sequence[Layer], x: np.ndarray, expected: np.ndarray) -> list[np.ndarray]:
    """How the mean cross-entropy changes with each weight and bias."""
    *values, logits = forward(layers, x)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    # On the grid, because the last bits of exp are not the same everywhere.
    slope = np.rint((odds / odds.sum(axis=1, keepdims=True) - expected) * GRID) / GRID
    found: list[np.ndarray] = []
    for layer, value in zip(reversed(layers), reversed(values), strict=True):
        found = [product(slope.T, value), slope.sum(axis=0), *found]
        # Where relu gave 0 it passes nothing on.
        slope = product(slope, layer.weight) * (value > 0)
    return [gradient / len(x) for gradient in found]


def compile_dynamic(layers: Sequence[Layer], formats: dict[str, Any]) -> list[qmm.Linear]:
    """Kernels from float32 to float32, each with the weight of its layer packed."""
    linears = []
    for layer in layers:
        n, k = layer.weight.shape
        spec = qmm.MatmulSpec(
            n=n,
            k=k,
            m=TEST_IMAGES,  # of every call, so one function is compiled; left out, M is any
            input="float32",
            dynamic=True,
            bias=True,
            activation_fn="relu" if layer is not layers[-1] else None,
            **formats,
        )
        w = qmm.quantize(layer.weight, spec.weight, group_size=spec.group_size)
        linears.append(qmm.compile(spec).bind(w, layer.bias))
    return linears


def compile_chained(layers: Sequence[Layer], scales: Sequence[float]) -> list[qmm.Linear]:
    """Kernels from uint8 to uint8, the last one to float32; `scales` are those of their inputs."""
    linears = []
    for layer, x_scale, out_scale in zip(layers, scales, [*scales[1:], None], strict=True):
        n, k = layer.weight.shape
        last = out_scale is None
        spec = qmm.MatmulSpec(
            n=n,
            k=k,
            m=TEST_IMAGES,
            activation="uint8",
            activation_scale="tensor",
            bias=True,
            activation_fn=None if last else "relu",
            out="float32" if last else "uint8",
        )
        linear = qmm.compile(spec).bind(
            qmm.quantize(layer.weight, spec.weight),
            layer.bias,
            x_scale=x_scale,
            out_scale=out_scale,  # the x_scale of the next layer
            out_zero_point=None if last else 0,  # the next layer has none
        )
        linears.append(linear)
    return linears


def measure(variant: str, linears: Sequence[qmm.Linear], x: np.ndarray, y: np.ndarray) -> Row:
    """Run the test set through the kernels."""
    for linear in linears:
        x = linear(x)
    return Row(variant, accuracy(x, y), sum(linear.nbytes for linear in linears))


def accuracy(logits: np.ndarray, y: np.ndarray) -> float:
    """How many of the digits are right, in %."""
    return 100 * float(np.mean(logits.argmax(axis=1) == y))


def compare(seed: int = 0) -> list[Row]:
    """Train a network, and test it in float32 and in every variant."""
    rng = np.random.default_rng(seed)
    images = load_images(rng)
    x, y = images.test_x, images.test_y
    layers = train(images.train_x, images.train_y, rng)
    nbytes = sum(layer.weight.nbytes + layer.bias.nbytes for layer in layers)
    rows = [Row("float32", accuracy(forward(layers, x)[-1], y), nbytes)]

    for variant, formats in DYNAMIC.items():
        rows.append(measure(variant, compile_dynamic(layers, formats), x, y))

    # The training set says how large inputs become; what exceeds that in the test is clipped.
    # Images and what relu gives are never negative, so uint8 needs no zero point.
    inputs = forward(layers, images.train_x)[:-1]
    scales = [float(value.max()) / 255 for value in inputs]
    q = qmm.quantize(x, "uint8", group_size="tensor", scale=scales[0], symmetric=True)
    rows.append(measure("W8A8 chained", compile_chained(layers, scales), q.data, y))
    return rows


def main() -> None:
    """Print the table."""
    rows = compare()
    print(f"{'variant':<14}{'accuracy %':>12}{'bytes':>10}")
    for row in rows:
        print(f"{row.variant:<14}{row.accuracy:>12.2f}{row.nbytes:>10,}")


if __name__ == "__main__":
    main()
