"""The normalisation of features: an offset and a scale for each device, and a polynomial for each feature.

In the model, y = mu + sigma g(x) with x normal (Hennen et al., Front. Neurosci. 16:941753, 2022). Only the product
sigma g is measurable. Here g has mean 0 and standard deviation 1, so that mu and sigma are a device's mean and standard
deviation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.polynomial import hermite_e
from scipy.optimize import nnls
from scipy.special import ndtr, ndtri

from memsim.fit.arrays import Floats

DEGREE = 4
NODES = 2001
"""Number of points on the normal axis, from the least to the greatest score of the data."""
LEAST_SLOPE = 1e-3
"""Least slope of a polynomial g over the range of the data, in standard deviations for each standard deviation."""


@dataclass(frozen=True)
class Standardised:
    """One feature in units of each device's own mean and standard deviation over its cycles."""

    z: Floats  # [devices, cycles], NaN in gaps
    mean: Floats  # [devices]
    std: Floats  # [devices]


def standardise(y: Floats) -> Standardised:
    """Standardise `y` [devices, cycles], NaN in gaps, by the mean and the standard deviation of each device."""
    mean: Floats = np.asarray(np.nanmean(y, axis=1, dtype=np.float64))
    z = (y - mean[:, None]).astype(np.float32)
    std: Floats = np.sqrt(np.nanmean(np.square(z), axis=1, dtype=np.float64))
    with np.errstate(invalid="ignore"):  # a device that does not change has no scores
        z /= std[:, None].astype(np.float32)
    return Standardised(z, mean, std)


def mid_distribution(values: Floats) -> tuple[Floats, Floats]:
    """Return (the distinct values in rising order, the share of all values below each plus half of the equal ones).

    With the halves, the distribution from a coarse instrument, which gives few distinct values, agrees with that from
    a fine one. NaN is left out.
    """
    different, count = np.unique(values[np.isfinite(values)], return_counts=True)
    return different.astype(np.float64), (np.cumsum(count) - count / 2) / count.sum()


@dataclass(frozen=True)
class NormalScores:
    """The distribution of a feature over all devices: its quantile function over the normal axis."""

    x: Floats  # [nodes] normal quantiles, rising
    quantiles: Floats  # [nodes] quantiles of the feature at the same probabilities

    @classmethod
    def of(cls, z: Floats) -> NormalScores:
        """Take the distribution of all values of `z`; NaN is left out."""
        values, share = mid_distribution(z)
        x = np.linspace(ndtri(share[0]), ndtri(share[-1]), NODES)
        return cls(x, np.interp(ndtr(x), share, values))

    def __call__(self, z: Floats) -> Floats:
        """Return the normal scores of `z`, NaN for NaN."""
        return np.interp(z, self.quantiles, self.x).astype(np.float32)

    def hermite(self) -> Floats:
        """Fit the polynomial g to the quantile function, in the mean square over a normal x.

        Its slope is at least `LEAST_SLOPE` over the range of the data.

        Returns:
            [5] coefficients of the Hermite polynomials He_0 ... He_4.
        """
        basis = hermite_e.hermevander(self.x, DEGREE)
        root = np.sqrt(np.exp(-np.square(self.x) / 2))[:, None]  # of the normal density
        slopes = np.stack([hermite_e.hermeval(self.x, hermite_e.hermeder(unit)) for unit in np.eye(DEGREE + 1)], axis=1)
        return _least_squares_above(basis * root, self.quantiles * root[:, 0], slopes, LEAST_SLOPE)


def normalised(coefficients: Floats) -> Floats:
    """Return Hermite `coefficients` [5] shifted and scaled to mean 0 and standard deviation 1 for a normal x."""
    variance = coefficients[1:] @ (coefficients[1:] * _FACTORIALS[1:])
    return np.asarray(np.concatenate([[0.0], coefficients[1:]]) / np.sqrt(variance))


def power_series(coefficients: Floats) -> Floats:
    """Convert Hermite coefficients [5] to coefficients [5] of powers of x, highest power first."""
    series = np.zeros(DEGREE + 1)
    powers = hermite_e.herme2poly(coefficients)
    series[: len(powers)] = powers
    return series[::-1]


_FACTORIALS = np.array([1.0, 1.0, 2.0, 6.0, 24.0])


def _least_squares_above(matrix: Floats, target: Floats, rows: Floats, bound: float) -> Floats:
    """Return the c that minimises |matrix c - target| subject to rows c >= bound.

    The method is least distance programming (Lawson & Hanson, Solving Least Squares Problems, 1974, chapter 23).
    """
    factor = np.linalg.cholesky(matrix.T @ matrix).T  # |matrix c - target| = |factor c - projected| + constant
    projected = np.linalg.solve(factor.T, matrix.T @ target)
    free: Floats = np.linalg.solve(factor, projected)
    if (rows @ free >= bound).all():
        return free
    system = np.linalg.solve(factor.T, rows.T).T  # rows c, for c = factor^-1 (u + projected)
    dual = np.vstack([system.T, bound - system @ projected])
    multipliers, _ = nnls(dual, np.eye(len(dual))[-1])
    residual = dual @ multipliers - np.eye(len(dual))[-1]
    bounded: Floats = np.linalg.solve(factor, projected - residual[:-1] / residual[-1])
    return bounded
