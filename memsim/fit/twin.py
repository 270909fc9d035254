"""The bias that estimated offsets and scales cause in a fit, measured on a twin of the measurements.

Devices become comparable when the series of each is standardised by its own mean and standard deviation. But the series
has a long memory, so these two estimates are noisy even over thousands of cycles and absorb slow fluctuations, which
biases every later step. The bias is measured on a twin of the measurements: series of the same lengths and gaps are
drawn from the fitted model and processed twice, with their true and with estimated offsets and scales. The difference
is subtracted, and the fit is repeated until it converges (indirect inference: Gourieroux et al., J. Appl. Econometrics
8:S85, 1993).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from memsim.device import DeviceModel
from memsim.device.cycles.cells import draw_variates
from memsim.device.interface import polynomial
from memsim.fit.arrays import Floats
from memsim.fit.normalise import NormalScores, normalised, standardise
from memsim.fit.var import autocovariances, correlations
from memsim.rng import derive_seed

TWIN_CYCLES = 1_000_000
"""Least number of cycles of a twin; if the measurements have fewer, several copies are drawn."""


@dataclass(frozen=True)
class Statistics:
    """Statistics of measured or drawn series [F, devices, cycles]."""

    mean: Floats  # [F, devices]
    std: Floats  # [F, devices]
    hermite: Floats  # [F, 5] polynomials g with mean 0 and standard deviation 1, in Hermite coefficients
    correlations: Floats  # [order + 1, F, F] of the normal scores

    @classmethod
    def of(cls, y: Floats, order: int, *, known: bool = False) -> Statistics:
        """Compute the statistics of `y`; with `known`, `y` is standardised by its true offsets and scales already."""
        x = np.empty_like(y)
        mean, std = np.zeros(y.shape[:2]), np.ones(y.shape[:2])
        hermite = np.empty((len(y), 5))
        for i, series in enumerate(y):
            z = series
            if not known:
                own = standardise(series)
                z, mean[i], std[i] = own.z, own.mean, own.std
            scores = NormalScores.of(z)
            hermite[i] = normalised(scores.hermite())
            x[i] = scores(z)
        return cls(mean, std, hermite, correlations(autocovariances(x, order)))


@dataclass(frozen=True)
class Twin:
    """The bias and noise that estimated offsets and scales cause, measured on a twin of the measurements."""

    hermite_bias: Floats  # [F, 5]
    correlation_bias: Floats  # [order + 1, F, F]
    scale_bias: Floats  # [F] mean estimated scale of devices of scale 1
    noise: Floats  # [2F, 2F] covariance of the estimated offsets and scales of devices of offset 0 and scale 1

    @classmethod
    def of(cls, model: DeviceModel, y: Floats, measured: list[int], order: int, seed: int) -> Twin:
        """Draw a twin of `y` [F, devices, cycles] from the process and the polynomials of `model`."""
        _, devices, cycles = y.shape
        copies = max(1, -(-TWIN_CYCLES // (devices * cycles)))
        cells = torch.arange(devices * copies)
        x = draw_variates(model, cells, derive_seed(seed, "twin"), cycles, order=order)[measured]
        drawn = np.stack([polynomial(model.gamma[i], row).numpy() for i, row in zip(measured, x, strict=True)])
        gaps = np.isnan(y)
        if gaps.any():
            drawn[np.tile(gaps, (1, copies, 1))] = np.nan
        true = np.sqrt(np.nanmean(np.square(drawn), axis=(1, 2), dtype=np.float64))
        drawn /= true[:, None, None].astype(np.float32)
        known, estimated = Statistics.of(drawn, order, known=True), Statistics.of(drawn, order)
        scale_bias = estimated.std.mean(axis=1)
        errors = np.concatenate([estimated.mean, estimated.std / scale_bias[:, None]])
        return cls(
            estimated.hermite - known.hermite,
            estimated.correlations - known.correlations,
            scale_bias,
            np.cov(errors),
        )
