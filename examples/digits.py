"""Handwritten digits, classified with 8- and 4-bit arithmetic: accuracy against size.

A multilayer perceptron (64 -> 128 -> 64 -> 10) is trained in NumPy, then its three layers are
quantized and compiled in four ways:

    W8A8          int8 weights, one scale per row; the kernel takes float32 and quantizes it
    W4A8 g=32     the same with int4 weights, one scale per 32 of them
    W4A4 g=32     int4 activations too
    W8A8 chained  every layer writes the uint8 that the next one reads: no floats in between

Bias and relu are in the kernels, so a layer is one call. Needs scikit-learn for the images; run it
with `python examples/digits.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import quantmm as qmm
from sklearn.datasets import load_digits

SIZES = (64, 128, 64, 10)
TESTED = 600  # of 1797 images
EPOCHS = 40
BATCH = 32


@dataclass(frozen=True, eq=False)
class Layer:
    """y = x weightᵀ + bias in float32: weight (N, K), bias (N,)."""

    weight: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True)
class Row:
    """One line of the table: test accuracy in %, and bytes of all weights, scales and biases."""

    variant: str
    accuracy: float
    bytes: int


@dataclass(frozen=True, eq=False)
class Digits:
    """Images (M, 64) in [0, 1] and their digits (M,), for training and for the test."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


def load(rng: np.random.Generator) -> Digits:
    """scikit-learn's 8 x 8 images, shuffled and split."""
    images, digits = load_digits(return_X_y=True)
    order = rng.permutation(len(images))
    x, y = (images[order] / 16).astype(np.float32), digits[order]
    return Digits(x[TESTED:], y[TESTED:], x[:TESTED], y[:TESTED])


def forward(layers: Sequence[Layer], x: np.ndarray) -> list[np.ndarray]:
    """The input and what each layer makes of it, in float32; relu after all but the last."""
    values = [x]
    for layer in layers:
        x = x @ layer.weight.T + layer.bias
        if layer is not layers[-1]:
            x = np.maximum(x, 0)
        values.append(x)
    return values


def train(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> list[Layer]:
    """Minimize the cross-entropy by stochastic gradient descent with momentum."""
    layers = [
        Layer(
            rng.standard_normal((n, k), np.float32) * np.float32(np.sqrt(2 / k)),
            np.zeros(n, np.float32),
        )
        for k, n in zip(SIZES, SIZES[1:], strict=False)
    ]
    momenta = [Layer(np.zeros_like(a.weight), np.zeros_like(a.bias)) for a in layers]
    wanted = np.eye(SIZES[-1], dtype=np.float32)[y]
    for epoch in range(EPOCHS):
        rate = np.float32(0.05 * (1 - epoch / EPOCHS))
        order = rng.permutation(len(x))
        for start in range(0, len(x), BATCH):
            batch = order[start : start + BATCH]
            *inputs, logits = forward(layers, x[batch])
            odds = np.exp(logits - logits.max(axis=1, keepdims=True))
            gradient = (odds / odds.sum(axis=1, keepdims=True) - wanted[batch]) / len(batch)
            for layer, momentum, value in zip(layers[::-1], momenta[::-1], inputs[::-1], strict=True):
                for total, new in (
                    (momentum.weight, gradient.T @ value),
                    (momentum.bias, gradient.sum(axis=0)),
                ):
                    total *= np.float32(0.9)
                    total += new
                # `value` is 0 where relu was: no gradient passes there. (Of the image nobody asks.)
                gradient = gradient @ layer.weight * (value > 0)
                layer.weight[...] -= rate * momentum.weight
                layer.bias[...] -= rate * momentum.bias
    return layers


def compiled(layer: Layer, **formats: Any) -> qmm.Linear:
    """One layer as a kernel with its weight packed."""
