"""The cost model: how fast a choice will be, from the ones that were measured.

A Gaussian process over the logarithms of times (Rasmussen and Williams, "Gaussian Processes for
Machine Learning", 2006, algorithm 2.1), around a straight line: some hundred points at most, so
that NumPy solves it in milliseconds, and it says how sure it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

#: Distance in features at which two choices tell half as much of each other, and the share of the
#: variance of measured logarithms that is noise.
LENGTH, NOISE = 1.5, 0.01
#: How much of its own uncertainty a prediction is better by: what is not known is worth a trial.
CURIOSITY = 1.0


class Model:
    """Learns from logarithms of times, and predicts them."""

    def __init__(self) -> None:
        self._points: np.ndarray = np.empty((0, 0))
        self._line: np.ndarray = np.zeros(0)
        self._weights: np.ndarray = np.zeros(0)
        self._inverse: np.ndarray = np.zeros((0, 0))
        self._variance = 1.0

    def fit(self, points: Sequence[Sequence[float]], logs: Sequence[float]) -> None:
        """Learn anew."""
        self._points = np.array(points, np.float64)
        y = np.array(logs, np.float64)
        design = self._design(self._points)
        # A little ridge: there are fewer points than features at first.
        gram = design.T @ design + 0.1 * np.eye(design.shape[1])
        self._line = np.linalg.solve(gram, design.T @ y)
        rest = y - design @ self._line
        self._variance = max(float(rest.var()), 1e-4)
        covariance = self._kernel(self._points, self._points) + NOISE * np.eye(len(y))
        self._inverse = np.linalg.inv(covariance)
        self._weights = self._inverse @ rest

    def predict(self, points: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
        """Expected logarithms of times, and their standard deviations."""
        x = np.array(points, np.float64)
        if not len(self._points):
            # Nothing is known but what the strategies' own costs say, the first feature.
            return x[:, 0] * math.log(2), np.ones(len(x))
        near = self._kernel(x, self._points)
        mean = self._design(x) @ self._line + near @ self._weights
        explained = np.einsum("ij,jk,ik->i", near, self._inverse, near)
        return mean, np.sqrt(self._variance * np.maximum(1 - explained, 1e-6))

    @staticmethod
    def _design(x: np.ndarray) -> np.ndarray:
        """What the straight line is drawn through: one, and the analytic cost."""
        return np.stack([np.ones(len(x)), x[:, 0]], axis=1)

    @staticmethod
    def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """How much points tell of each other."""
        squares = ((a[:, None, 1:] - b[None, :, 1:]) ** 2).sum(axis=2)
        return np.exp(-squares / (2 * LENGTH**2))
