"""The device-to-device distribution: a Gaussian mixture over offsets and scales, less their estimation noise."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import eigh
from scipy.special import ndtr

from memsim.fit.arrays import Floats

if TYPE_CHECKING:
    from sklearn.mixture import GaussianMixture

MOST_COMPONENTS = 6
DEVICES_PER_COMPONENT = 16
"""Least number of devices for each component: in eight dimensions it has 44 parameters, and its covariance matrix is
singular unless there are more devices than dimensions."""
LEAST_SHARE = 0.05
"""Least share of the observed variance, in any direction, that remains when the noise is subtracted."""
_RESTARTS = 8
_REGULARISATION = 1e-4  # of the variance of a coordinate


@dataclass(frozen=True)
class Mixture:
    """K Gaussians over F offsets and F scales, in order of falling weight."""

    weights: Floats  # [K]
    means: Floats  # [2F, K]
    cholesky: Floats  # [K, 2F, 2F] lower triangular
    bic: dict[int, float]  # number of components tried -> Bayesian information criterion; the least was chosen
    noise_share: Floats  # [2F] share of the observed variance that was estimation noise and was subtracted

    def negative_scales(self) -> Floats:
        """Return the share [F] of devices drawn from the mixture whose scale is below zero."""
        half = len(self.means) // 2
        std = np.sqrt(np.square(self.cholesky).sum(axis=2))  # [K, 2F]
        share: Floats = ndtr(-self.means[half:] / std.T[half:]) @ self.weights
        return share


def mixture_moments(weights: Floats, means: Floats, cholesky: Floats) -> tuple[Floats, Floats]:
    """Return (mean [D], covariance [D, D]) of a Gaussian mixture.

    Args:
        weights: [K] weights of the components.
        means: [D, K] means of the components.
        cholesky: [K, D, D] Cholesky factors of the components' covariances.
    """
    mean = means @ weights
    within = np.einsum("k,kij,klj->il", weights, cholesky, cholesky)
    return mean, within + (means * weights) @ means.T - np.outer(mean, mean)


def fit_mixture(offsets_and_scales: Floats, noise: Floats, components: int | None, seed: int) -> Mixture:
    """Fit a mixture to the estimated offsets and scales of devices.

    The mean noise of its devices is subtracted from the covariance of each component.

    Args:
        offsets_and_scales: [2F, devices] estimates.
        noise: [2F, 2F] covariance of the errors of the estimates for a device of unit scales; for another device, it is
            multiplied by the device's scales.
        components: number of components; None chooses by the Bayesian information criterion.
        seed: seed of the initialisation.
    """
    location, spread = offsets_and_scales.mean(axis=1), offsets_and_scales.std(axis=1)
    points = ((offsets_and_scales - location[:, None]) / spread[:, None]).T
    most = max(1, min(MOST_COMPONENTS, len(points) // DEVICES_PER_COMPONENT))
    candidates = range(1, most + 1) if components is None else [components]
    fitted = {k: _expectation_maximisation(points, k, seed) for k in candidates}
    bic = {k: float(mixture.bic(points)) for k, mixture in fitted.items()}
    best = fitted[min(bic, key=lambda k: bic[k])]
    heaviest_first = np.argsort(-best.weights_, kind="stable")
    responsibilities = best.predict_proba(points)[:, heaviest_first]
    scales = np.tile(offsets_and_scales[len(noise) // 2 :], (2, 1)) / spread[:, None]  # [2F, devices]
    cholesky = []
    for k, component in enumerate(heaviest_first):
        share = responsibilities[:, k] / responsibilities[:, k].sum()
        own_noise = noise * np.einsum("d,id,jd->ij", share, scales, scales)
        covariance = less_noise(best.covariances_[component], own_noise)
        cholesky.append(np.linalg.cholesky(covariance) * spread[:, None])
    observed_noise = noise.diagonal() * np.square(scales).mean(axis=1)
    return Mixture(
        weights=best.weights_[heaviest_first] / best.weights_.sum(),
        means=(best.means_[heaviest_first] * spread + location).T,
        cholesky=np.stack(cholesky),
        bic=bic,
        noise_share=observed_noise,  # the points have unit variance
    )


def _expectation_maximisation(points: Floats, components: int, seed: int) -> GaussianMixture:
    from sklearn.exceptions import ConvergenceWarning  # here, as a fit of levels and a refusal do without
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(
        components, n_init=_RESTARTS, reg_covar=_REGULARISATION, max_iter=500, random_state=seed % 2**32
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of single restarts
        return mixture.fit(points)


def less_noise(observed: Floats, noise: Floats) -> Floats:
    """Return `observed` - `noise`, but at least LEAST_SHARE of `observed` in every direction."""
    shares, directions = eigh(noise, observed)  # directions^T observed directions = 1
    back = np.linalg.inv(directions)
    return np.asarray((back.T * np.maximum(1 - shares, LEAST_SHARE)) @ back)
