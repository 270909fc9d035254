"""The device-to-device distribution: a Gaussian mixture over offsets and scales, freed of their estimation noise."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from memsim.fit.arrays import Floats

MOST_COMPONENTS = 6
DEVICES_PER_COMPONENT = 16
"""The least: a component of eight dimensions has 44 parameters, and a covariance needs more devices than dimensions."""
LEAST_SHARE = 0.05
"""Of the observed variance, in any direction, that is left to the devices when the noise is taken out."""
_RESTARTS = 8
_REGULARISATION = 1e-4  # of the variance of a coordinate


@dataclass(frozen=True)
class Mixture:
    """K Gaussians over F offsets and F scales, the heaviest first."""

    weights: Floats  # [K]
    means: Floats  # [2F, K]
    cholesky: Floats  # [K, 2F, 2F] lower triangular
    bic: dict[int, float]  # components tried -> Bayesian information criterion; the least was chosen
    noise_share: Floats  # [2F] of the observed variance that was estimation noise, and is not in here

    @property
    def mean(self) -> Floats:
        """[2F] of the whole mixture."""
        return self.means @ self.weights

    @property
    def covariance(self) -> Floats:
        """[2F, 2F] of the whole mixture."""
        within = np.einsum("k,kij,klj->il", self.weights, self.cholesky, self.cholesky)
        between = (self.means * self.weights) @ self.means.T - np.outer(self.mean, self.mean)
        return np.asarray(within + between)

    def negative_scales(self) -> Floats:
        """[F] the share of devices drawn from the mixture whose scale is below zero."""
        from scipy.special import ndtr

        half = len(self.means) // 2
        std = np.sqrt(np.square(self.cholesky).sum(axis=2))  # (K, 2F)
        share: Floats = ndtr(-self.means[half:] / std.T[half:]) @ self.weights
        return share


def most_components(devices: int) -> int:
    """How many components this many devices support."""
    return max(1, min(MOST_COMPONENTS, devices // DEVICES_PER_COMPONENT))


def fit_mixture(offsets_and_scales: Floats, noise: Floats, components: int | None, seed: int) -> Mixture:
    """The mixture of devices whose estimated offsets and scales are `offsets_and_scales` [2F, devices].

    noise: [2F, 2F] the covariance of the estimates' errors on a device of unit scales; a device's own is that by its
        scales. Each component's covariance loses the mean noise of its devices.
    components: how many; None chooses by the Bayesian information criterion.
    """
    location, spread = offsets_and_scales.mean(axis=1), offsets_and_scales.std(axis=1)
    points = ((offsets_and_scales - location[:, None]) / spread[:, None]).T
    candidates = range(1, most_components(len(points)) + 1) if components is None else [components]
    fitted = {k: _expectation_maximisation(points, k, seed) for k in candidates}
    bic = {k: float(mixture.bic(points)) for k, mixture in fitted.items()}
    best = fitted[min(bic, key=lambda k: bic[k])]
    heaviest_first = np.argsort(-best.weights_, kind="stable")
    responsibilities = best.predict_proba(points)[:, heaviest_first]
    scales = np.tile(offsets_and_scales[len(noise) // 2 :], (2, 1)) / spread[:, None]  # (2F, devices)
    cholesky = []
    for k, component in enumerate(heaviest_first):
        share = responsibilities[:, k] / responsibilities[:, k].sum()
        own_noise = noise * np.einsum("d,id,jd->ij", share, scales, scales)
        covariance = _less_noise(best.covariances_[component], own_noise)
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
    mixture = GaussianMixture(
        components, n_init=_RESTARTS, reg_covar=_REGULARISATION, max_iter=500, random_state=seed % 2**32
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # one restart of several
        return mixture.fit(points)


def _less_noise(observed: Floats, noise: Floats) -> Floats:
    """`observed` - `noise`, but at least LEAST_SHARE of `observed` in every direction."""
    shares, directions = eigh(noise, observed)  # directions^T observed directions = 1
    back = np.linalg.inv(directions)
    return np.asarray((back.T * np.maximum(1 - shares, LEAST_SHARE)) @ back)
