"""The search for the step between levels that minimises the squared error of rounded weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from memsim.portable.kernels import as_array, float32, float64, in_threads, is_compiled, kernel

FRACTIONS = (*(1 - 0.005 * step for step in range(20)), *(0.9 - 0.02 * step for step in range(36)))
"""Scales to try, as fractions of the MinMax scale: dense near 1, where the error at many bits has many local minima."""

CLOSE = 1e-4
"""The relative difference of two errors from which float32 sums cannot exchange their order."""

_CHUNK_VALUES = 1 << 16  # a few of these stay in a core's cache
_PLAIN = (1e-12, 1e12)  # magnitudes whose squares neither underflow nor overflow in float32


def least_squares_scale(rows: Tensor, largest: int) -> Tensor:
    """Return the scale of each of `rows` [channels, values] that minimises ||row - scale * level||^2 over FRACTIONS.

    Levels are up to +-`largest`. The result is 0 for a row of zeros. On a CPU a kernel finds the best fraction of most
    rows in one pass; rows for which two are about equally good are searched as on any other device, by float32 sums.
    """
    if not is_compiled(rows) or len(rows) == 1:
        return _in_parts(rows, largest, torch.tensor(FRACTIONS, device=rows.device).expand(len(rows), -1))
    largest_of_row, errors = rows.abs().amax(dim=1), torch.empty(len(rows), len(FRACTIONS), dtype=torch.float64)
    steps = (largest_of_row / largest)[:, None] * torch.tensor(FRACTIONS)
    arrays = (as_array(rows), as_array(steps), np.float32(largest), errors.numpy())

    def part(first: int, last: int) -> int:
        _errors(*arrays, first, last)
        return 0

    in_threads(part, len(rows))
    least, best = errors.min(dim=1)
    is_plain = (largest_of_row > _PLAIN[0]) & (largest_of_row < _PLAIN[1])
    is_clear = is_plain & ((errors <= (1 + CLOSE) * least[:, None]).sum(dim=1) == 1)
    scale, fractions = torch.empty(len(rows)), torch.tensor(FRACTIONS)
    scale[is_clear] = _in_parts(rows[is_clear], largest, fractions[best[is_clear], None])
    scale[~is_clear] = _in_parts(rows[~is_clear], largest, fractions.expand(int((~is_clear).sum()), -1))
    return scale


def _in_parts(rows: Tensor, largest: int, fractions: Tensor) -> Tensor:
    """Return the best scale of each row over its own `fractions` [channels, n], for a few rows at a time."""
    size = max(1, _CHUNK_VALUES // rows.shape[1])
    parts = zip(rows.split(size), fractions.split(size), strict=True)
    return torch.cat([_search(part, largest, own) for part, own in parts])


def _search(rows: Tensor, largest: int, fractions: Tensor) -> Tensor:
    minmax = rows.abs().amax(dim=1, keepdim=True) / largest
    best_scale, best_error = minmax, torch.full_like(minmax, torch.inf)
    together = max(1, _CHUNK_VALUES // max(1, rows.numel()))  # in small matrices calls cost more than arithmetic
    for some in fractions.T[:, :, None].split(together):
        levels = (rows / (minmax * some)).round_().clamp_(-largest, largest).nan_to_num_()
        power = levels.square().sum(dim=2, keepdim=True)
        fitted = (rows * levels).sum(dim=2, keepdim=True) / power
        errors = (rows - fitted * levels).square_().sum(dim=2, keepdim=True)
        error, index = torch.where(power > 0, errors, torch.inf).min(dim=0)
        better = error < best_error
        best_scale = torch.where(better, fitted.gather(0, index[None])[0], best_scale)
        best_error = torch.where(better, error, best_error)
    return best_scale.squeeze(1)


def _errors_of(rows, steps, largest, errors, first, last):  # type: ignore[no-untyped-def]
    """Write the squared errors of rows `first` to `last` - 1 [channels, values] at `steps` [channels, n] to `errors`.

    The scale of the levels that a step gives is the one of least squares, so ||row - scale level||^2 is ||row||^2 -
    (row level)^2 / ||level||^2.
    """
    for row in range(first, last):
        for trial in range(steps.shape[1]):
            step, square, product, power = steps[row, trial], float64(0), float64(0), float64(0)
            for i in range(rows.shape[1]):
                value = rows[row, i]
                level = min(max(np.rint(float32(value / step)), -largest), largest)
                square += float64(value) * float64(value)
                product += float64(value) * float64(level)
                power += float64(level) * float64(level)
            errors[row, trial] = square - product * product / power if power > 0 else np.inf


_errors = kernel(_errors_of, fastmath={"reassoc", "contract", "nsz"})
