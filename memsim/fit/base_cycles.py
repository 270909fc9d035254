"""The fit of the spread from device to device alone, with the changes from cycle to cycle of a base model.

Cells that were cycled once, or read at some cycles only, do not tell how a cell changes from cycle to cycle. Its
process and its distribution are then those of the base model, and so is its spread: relative to the mean of a voltage
or of a resistance in ohm, and as it is in decades of a resistance.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch

from memsim.device import DeviceModel
from memsim.device.cycles.features import stationary_autocovariances
from memsim.device.cycles.model import LRS
from memsim.device.interface import polynomial
from memsim.fit.arrays import Floats
from memsim.fit.mixture import Mixture, less_noise, mixture_moments


def base_cycles(y: Floats, measured: list[int], base: DeviceModel, lrs_is_log10: bool) -> tuple[DeviceModel, Mixture]:
    """Return (`base`, whose features have standard process and polynomials, the distribution of offsets and scales).

    Args:
        y: [F, devices, cycles] of the measured features, NaN in gaps.
        measured: the features in `y`.
        base: the base model.
        lrs_is_log10: whether LRS in `y` is in log10 ohm.
    """
    model = dataclasses.replace(_standardised(base), lrs_is_log10=lrs_is_log10, limits=None, failures=None)
    mean = np.asarray(np.nanmean(y, axis=2, dtype=np.float64))  # [F, devices]
    counts = np.isfinite(y).sum(axis=2)
    of_base, covariance = mixture_moments(
        *(part.numpy() for part in (model.mixture_weights, model.mixture_means, model.mixture_cholesky))
    )
    factor = np.array(
        [_scale_of(feature, row, of_base, base, lrs_is_log10) for feature, row in zip(measured, mean, strict=True)]
    )
    scales = np.array([4 + feature for feature in measured])
    own_scales = of_base[scales] * factor
    scale_covariance = covariance[np.ix_(scales, scales)] * np.outer(factor, factor)
    correlation = stationary_autocovariances(model, 0)[0].numpy()[np.ix_(measured, measured)]
    second_moments = scale_covariance + np.outer(own_scales, own_scales)
    noise = correlation * second_moments * float((1 / np.maximum(counts, 1)).mean())  # of the means of devices
    observed = np.atleast_2d(np.cov(mean))
    size = len(measured)
    whole = np.zeros((2 * size, 2 * size))
    whole[:size, :size] = less_noise(observed, noise)
    whole[size:, size:] = scale_covariance
    return model, Mixture(
        weights=np.ones(1),
        means=np.concatenate([mean.mean(axis=1), own_scales])[:, None],
        cholesky=np.linalg.cholesky(whole)[None],
        bic={},
        noise_share=np.concatenate([noise.diagonal() / observed.diagonal(), np.zeros(size)]),
    )


def _scale_of(feature: int, mean: Floats, of_base: Floats, base: DeviceModel, lrs_is_log10: bool) -> float:
    """Return the factor of the base model's scales of a feature with these means [devices] in the measurements."""
    if base.is_log10(feature):
        return float(mean.mean()) * math.log(10) if feature == LRS and not lrs_is_log10 else 1.0
    if feature == LRS and lrs_is_log10:
        return 1 / (float(of_base[feature]) * math.log(10))
    return float(abs(mean.mean() / of_base[feature]))


def _standardised(model: DeviceModel) -> DeviceModel:
    """Return the same model with polynomials g and variates x of mean 0 and standard deviation 1.

    Only sigma g can be measured: sigma takes the deviation of g, and mu its mean.
    """
    std = stationary_autocovariances(model, 0)[0].diagonal().sqrt()
    gamma = model.gamma * std[:, None] ** torch.arange(4, -1, -1)
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(20))
    weights = weights / weights.sum()
    g = torch.stack([polynomial(row, nodes) for row in gamma])
    mean = g @ weights
    deviation = ((g - mean[:, None]).square() @ weights).sqrt()
    gamma[:, -1] -= mean
    change = torch.eye(8, dtype=torch.float64)
    change[range(4), range(4, 8)] = mean
    change[range(4, 8), range(4, 8)] = deviation
    covariances = change @ model.mixture_cholesky @ model.mixture_cholesky.mT @ change.T
    return dataclasses.replace(
        model,
        gamma=gamma / deviation[:, None],
        var={
            p: torch.cat([matrix[:, :4], matrix[:, 4:] * std.repeat(p)], dim=1) / std[:, None]
            for p, matrix in model.var.items()
        },
        mixture_means=change @ model.mixture_means,
        mixture_cholesky=torch.linalg.cholesky(covariances),
    )
