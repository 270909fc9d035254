"""The cycle-to-cycle process: a vector autoregression, fitted to series with gaps by the Yule-Walker equations.

x_n = B eps_n + sum_{l = 1..p} A_l x_{n - l}, with autocovariances C(k) = E[x_n x_{n - k}^T] and C(-k) = C(k)^T:
C(k) = sum_l A_l C(k - l) for k = 1 ... p, and B B^T = C(0) - sum_l A_l C(l)^T (Luetkepohl, New Introduction to Multiple
Time Series Analysis, 2005, section 2.1).
"""

from __future__ import annotations

import numpy as np

from memsim.fit.arrays import Floats

LARGEST_RADIUS = 0.999
"""Largest spectral radius of a fitted process, at which half of a disturbance is left after 700 cycles."""


def autocovariances(x: Floats, lags: int) -> Floats:
    """Return E[x_n x_{n - k}^T] [lags + 1, F, F] of zero-mean `x` [F, devices, cycles], NaN in gaps.

    The mean is over all devices and all pairs of cycles without a gap. If two features have no such pair at some lag,
    their autocovariance there is 0.
    """
    features, cycles = x.shape[0], x.shape[2]
    present = np.isfinite(x)
    has_gaps = not present.all()
    filled = np.where(present, x, np.float32(0)) if has_gaps else x
    result = np.empty((lags + 1, features, features))
    for lag in range(lags + 1):
        sums, pairs = _products(filled, lag), np.full((features, features), float(x.shape[1] * max(cycles - lag, 0)))
        if has_gaps:
            pairs = _products(present.astype(np.float32), lag)
        result[lag] = sums / np.maximum(pairs, 1)
    return result


def _products(x: Floats, lag: int) -> Floats:
    """Return the sums [F, F] of x_i[n] x_j[n - lag] over devices and cycles, in float64 across devices."""
    now, before = x[:, :, lag:].swapaxes(0, 1), x[:, :, : x.shape[2] - lag].swapaxes(0, 1)
    per_device = now @ before.transpose(0, 2, 1)  # [devices, F, F]
    return np.asarray(per_device.sum(axis=0, dtype=np.float64))


def correlations(covariances: Floats) -> Floats:
    """Return autocovariances [lags + 1, F, F] in units of the process's standard deviations."""
    std = np.sqrt(covariances[0].diagonal())
    return covariances / np.outer(std, std)


def stabilised(covariances: Floats, order: int) -> tuple[Floats, float]:
    """Mix in as much white noise as makes the processes of all orders up to `order` stationary.

    The Yule-Walker equations give a stationary process if the block Toeplitz matrix of C is positive definite. Pairwise
    sums over gaps and bias corrections do not guarantee that.

    Returns:
        The autocovariances [lags + 1, F, F], in which every C(k) but C(0) is multiplied by 1 - share, and the share of
        white noise.
    """
    low, high = 0.0, 1.0
    if _is_stationary(covariances, order):
        return covariances, 0.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if _is_stationary(_whitened(covariances, middle), order) else (middle, high)
    return _whitened(covariances, high), high


def _whitened(covariances: Floats, share: float) -> Floats:
    return np.concatenate([covariances[:1], (1 - share) * covariances[1:]])


def _is_stationary(covariances: Floats, order: int) -> bool:
    if np.linalg.eigvalsh(_toeplitz(covariances, order + 1)).min() < 1e-4 * covariances[0].diagonal().min():
        return False
    return all(spectral_radius(yule_walker(covariances, p)) <= LARGEST_RADIUS for p in range(1, order + 1))


def _toeplitz(covariances: Floats, blocks: int) -> Floats:
    """Return the covariance [F blocks, F blocks] of `blocks` successive x, newest first: block (i, j) is C(j - i)."""
    return np.block(
        [[covariances[j - i] if j >= i else covariances[i - j].T for j in range(blocks)] for i in range(blocks)]
    )


def yule_walker(covariances: Floats, order: int) -> Floats:
    """Return [B | A_p ... A_1] [F, F (p + 1)] of order p from autocovariances [at least p + 1, F, F].

    B is lower triangular.

    Raises:
        numpy.linalg.LinAlgError: if they are not positive definite (see `stabilised`).
    """
    following = np.concatenate(list(covariances[1 : order + 1]), axis=1)  # C(1) ... C(p)
    newest_first = np.linalg.solve(_toeplitz(covariances, order).T, following.T).T  # A_1 ... A_p
    noise = covariances[0] - newest_first @ following.T
    size = covariances.shape[1]
    blocks = [newest_first[:, size * lag : size * (lag + 1)] for lag in reversed(range(order))]
    return np.concatenate([np.linalg.cholesky((noise + noise.T) / 2), *blocks], axis=1)


def spectral_radius(var: Floats) -> float:
    """Return the spectral radius of the process [F, F (p + 1)]; below 1 the process is stationary."""
    size = len(var)
    step = np.eye(var.shape[1] - size, k=size)
    step[-size:] = var[:, size:]
    return float(np.abs(np.linalg.eigvals(step)).max())


def information_criteria(vars_: dict[int, Floats], samples: int) -> dict[int, tuple[float, float]]:
    """Return order -> (AIC, BIC) for each cycle, of Gaussian processes fitted to `samples` cycles."""
    result = {}
    for order, var in vars_.items():
        size = len(var)
        fit = 2 * np.log(np.abs(np.diagonal(var[:, :size]))).sum()  # log det of the noise covariance
        parameters = size * size * order
        result[order] = (float(fit + 2 * parameters / samples), float(fit + np.log(samples) * parameters / samples))
    return result
