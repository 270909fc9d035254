"""Correlograms of series with gaps, computed by FFT."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft

from memsim.fit.arrays import Floats


@dataclass(frozen=True)
class Correlogram:
    """E[z_i(n) z_j(n - k)] of series z that are standardised for each device."""

    mean: Floats  # [lags + 1, F, F]
    standard_error: Floats  # [lags + 1, F, F]


class CorrelogramSums:
    """Sums for the correlogram of series [F, devices, cycles] with zero mean and unit variance, NaN in gaps."""

    def __init__(self, features: int, lags: int) -> None:
        self._lags = lags
        self._devices = 0
        self._total, self._square, self._pairs = (np.zeros((lags + 1, features, features)) for _ in range(3))

    def add(self, z: Floats) -> None:
        """Add the series `z` [F, devices, cycles] of more devices."""
        _, devices, cycles = z.shape
        size = scipy.fft.next_fast_len(cycles + self._lags, real=True)
        for start in range(0, devices, 64):
            part = z[:, start : start + 64]
            present = np.isfinite(part)
            sums = _lagged_products(np.where(present, part, np.float32(0)), size, self._lags)
            if present.all():
                counts = np.broadcast_to(cycles - np.arange(self._lags + 1.0), sums.shape)
            else:
                counts = np.maximum(np.rint(_lagged_products(present.astype(np.float32), size, self._lags)), 0)
            own = sums / np.maximum(counts, 1)  # [F, F, devices, lags + 1]
            for total, addend in ((self._total, sums), (self._pairs, counts), (self._square, np.square(own))):
                total += addend.sum(axis=2, dtype=np.float64).transpose(2, 0, 1)
        self._devices += devices

    def correlogram(self) -> Correlogram:
        """Return the correlogram of all devices added so far."""
        mean = self._total / np.maximum(self._pairs, 1)
        variance = np.maximum(self._square / self._devices - mean**2, 0)
        return Correlogram(mean, np.sqrt(variance / self._devices))


def _lagged_products(x: Floats, size: int, lags: int) -> Floats:
    """Return the sums over n of x_i(n) x_j(n - k) [F, F, devices, lags + 1]."""
    spectrum = scipy.fft.rfft(x, size, axis=2)
    features, devices = x.shape[:2]
    result = np.empty((features, features, devices, lags + 1), dtype=np.float32)
    for i in range(features):
        for j in range(i + 1):
            both = scipy.fft.irfft(spectrum[i] * spectrum[j].conj(), size, axis=1)
            result[i, j] = both[:, : lags + 1]
            result[j, i] = both[:, -np.arange(lags + 1)]
    return result
