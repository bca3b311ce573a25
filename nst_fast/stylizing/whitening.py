"""Whitening and coloring: the linear map that gives features another picture's mean and covariance, in closed form.

Li et al. 2017, Universal style transfer via feature transforms, equations 1 and 2; in numpy, float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# The least variance that a direction of features is divided by. The encoder's taps give an average picture a variance
# of 1 in every direction: what has less than a tenth of that is mostly noise, amplified three times and more.
FLOOR = 0.1
Matrix = NDArray[np.float64]


class Statistics(NamedTuple):
    """Mean (C,) and covariance (C, C) of features over positions."""

    mean: Matrix
    covariance: Matrix


class Affine(NamedTuple):
    """x → matrix x + offset, of features (C,)."""

    matrix: Matrix
    offset: Matrix


class Moments:
    """Sums over positions, added part by part, of which `statistics` are those of the whole."""

    def __init__(self, channels: int) -> None:
        self.count, self.sum, self.products = 0, np.zeros(channels), np.zeros((channels, channels))

    def add(self, features: NDArray[np.float32]) -> None:
        """Add features (C, H, W) of a part of a picture."""
        flat = features.reshape(len(features), -1)
        self.count += flat.shape[1]
        self.sum += flat.sum(1, dtype=np.float64)
        self.products += flat @ flat.T

    def statistics(self) -> Statistics:
        """Return mean and covariance; of one position the covariance is 0."""
        mean = self.sum / self.count
        return Statistics(mean, self.products / self.count - np.outer(mean, mean))


def power(covariance: Matrix, exponent: float, floor: float = 0.0) -> Matrix:
    """Return the symmetric V max(Λ, floor)^exponent Vᵀ of a covariance V Λ Vᵀ."""
    variances, directions = np.linalg.eigh(covariance)
    return (directions * np.maximum(variances, floor) ** exponent) @ directions.T


def whitening_coloring(content: Statistics, style: Statistics) -> Affine:
    """Return the map that gives features of one picture the statistics of another, E_s Λ_s^½ E_sᵀ E_c Λ_c^-½ E_cᵀ."""
    matrix = power(style.covariance, 0.5) @ power(content.covariance, -0.5, FLOOR)
    return Affine(matrix, style.mean - matrix @ content.mean)


def adain(content: Statistics, style: Statistics) -> Affine:
    """Return its diagonal case, σ_s (x − μ_c) / σ_c + μ_s (Huang and Belongie 2017, equation 8)."""
    deviations = [s.covariance.diagonal().clip(floor) ** 0.5 for s, floor in ((content, FLOOR), (style, 0.0))]
    matrix = np.diag(deviations[1] / deviations[0])
    return Affine(matrix, style.mean - matrix @ content.mean)


def mixed(maps: Sequence[Affine], weights: Sequence[float]) -> Affine:
    """Return the sum of maps by weights that come to 1: Li et al. 2017, equation 3 and section 4.3."""
    matrix = np.tensordot(weights, [m.matrix for m in maps], 1)
    return Affine(matrix, np.tensordot(weights, [m.offset for m in maps], 1))
