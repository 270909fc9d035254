"""From features to normal variates and back: offsets and scales a device, one polynomial a feature.

The model says y = mu + sigma g(x) with x normal (Hennen et al., Front. Neurosci. 16:941753, 2022). Only sigma g is
measurable; here g has mean 0 and standard deviation 1, so mu and sigma are a device's mean and standard deviation.
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
"""How many points the normal axis is resolved with, from the least to the greatest score of the data."""
LEAST_SLOPE = 1e-3
"""Of a normalising polynomial over the data's range, in standard deviations a standard deviation."""


@dataclass(frozen=True)
class Standardised:
    """One feature in units of each device's own mean and standard deviation over its cycles."""

    z: Floats  # [devices, cycles], NaN where there is no measurement
    mean: Floats  # [devices]
    std: Floats  # [devices]


def standardise(y: Floats) -> Standardised:
    """`y` [devices, cycles], NaN in gaps, less each device's mean and by its standard deviation."""
    mean: Floats = np.asarray(np.nanmean(y, axis=1, dtype=np.float64))
    z = (y - mean[:, None]).astype(np.float32)
    std: Floats = np.sqrt(np.nanmean(np.square(z), axis=1, dtype=np.float64))
    z /= std[:, None].astype(np.float32)
    return Standardised(z, mean, std)


def mid_distribution(values: Floats) -> tuple[Floats, Floats]:
    """(the different values, rising; the share of all that lies below each, with half of those equal to it).

    Halves make a coarse instrument, which gives few different values, agree with a fine one. NaN is left out.
    """
    different, count = np.unique(values[np.isfinite(values)], return_counts=True)
    return different.astype(np.float64), (np.cumsum(count) - count / 2) / count.sum()


@dataclass(frozen=True)
class NormalScores:
    """The pooled distribution of a feature: its quantile function over the normal axis."""

    x: Floats  # [nodes] normal quantiles, rising
    quantiles: Floats  # [nodes] those of the feature at the same probabilities

    @classmethod
    def of(cls, z: Floats) -> NormalScores:
        """Of all values of `z` together; NaN is left out."""
        values, share = mid_distribution(z)
        x = np.linspace(ndtri(share[0]), ndtri(share[-1]), NODES)
        return cls(x, np.interp(ndtr(x), share, values))

    def __call__(self, z: Floats) -> Floats:
        """The normal scores of `z`, NaN for NaN."""
        return np.interp(z, self.quantiles, self.x).astype(np.float32)

    def hermite(self) -> Floats:
        """[5] the polynomial g that is nearest the quantile function in the mean square over a normal x.

        Coefficients of Hermite polynomials He_0 ... He_4; rising over the data's range (`LEAST_SLOPE`).
        """
        basis = hermite_e.hermevander(self.x, DEGREE)
        root = np.sqrt(_density(self.x))[:, None]
        slopes = np.stack([hermite_e.hermeval(self.x, hermite_e.hermeder(unit)) for unit in np.eye(DEGREE + 1)], axis=1)
        return _least_squares_above(basis * root, self.quantiles * root[:, 0], slopes, LEAST_SLOPE)


def normalised(coefficients: Floats) -> Floats:
    """Hermite coefficients [5] of a g(x) with mean 0 and standard deviation 1 for a standard normal x."""
    variance = coefficients[1:] @ (coefficients[1:] * _FACTORIALS[1:])
    return np.asarray(np.concatenate([[0.0], coefficients[1:]]) / np.sqrt(variance))


def power_series(coefficients: Floats) -> Floats:
    """[5] Hermite coefficients as powers of x, highest first."""
    series = np.zeros(DEGREE + 1)
    powers = hermite_e.herme2poly(coefficients)
    series[: len(powers)] = powers
    return series[::-1]


_FACTORIALS = np.array([1.0, 1.0, 2.0, 6.0, 24.0])


def _density(x: Floats) -> Floats:
    return np.exp(-np.square(x) / 2)


def _least_squares_above(matrix: Floats, target: Floats, rows: Floats, bound: float) -> Floats:
    """The c that minimises |matrix c - target| with rows c >= bound.

    By least distance programming: Lawson & Hanson, Solving Least Squares Problems (1974), chapter 23.
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
