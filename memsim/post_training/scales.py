"""The search for steps between levels that minimise the error of a product, for inputs that are not all alike."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from memsim.crossbar.scale_search import FRACTIONS
from memsim.portable.kernels import as_array, in_threads, is_compiled, kernel


def weighted_scale(values: Tensor, importance: Tensor, largest: int) -> Tensor:
    """Return the scale [columns] that minimises the error of each column of `values` [n, columns], float32.

    The error is the sum of `importance` [n] times (value - scale * level)^2 with levels up to +-`largest`. It is
    searched over `FRACTIONS` of the scale that has the largest value on the largest level, each with the scale of least
    squares for its levels. Values of no importance count as all others do where none has any. The result is 0 for a
    column of zeros.
    """
    values, importance = values.double().contiguous(), importance.double()
    if not (importance > 0).any():
        importance = torch.ones_like(importance)
    steps = torch.tensor(FRACTIONS, dtype=torch.float64)[:, None] * (values.abs().amax(dim=0) / largest)
    product, power = torch.zeros_like(steps), torch.zeros_like(steps)
    _add_up_all(values, importance, steps, float(largest), product, power)
    # the error is that of zeros less product^2 / power
    gained = torch.where(power > 0, product.square() / power, -1.0)
    best = gained.argmax(dim=0, keepdim=True)
    scale = product.gather(0, best) / power.gather(0, best)
    return torch.where(gained.gather(0, best) > 0, scale, 0.0)[0].float()


def _add_up_all(
    values: Tensor, importance: Tensor, steps: Tensor, largest: float, product: Tensor, power: Tensor
) -> None:
    """Do what `_add_up` does for all columns."""
    if is_compiled(values):
        arrays = (*map(as_array, (values, importance, steps)), largest, product.numpy(), power.numpy())

        def part(first: int, last: int) -> int:
            _add_up(*arrays, first, last)
            return 0

        in_threads(part, values.shape[1])
        return
    for weight, row in zip(importance, values, strict=True):
        levels = torch.where(steps > 0, (row / steps).round().clamp(-largest, largest), 0.0)
        product += weight * row * levels
        power += weight * levels * levels


def _add_up_of(values, importance, steps, largest, product, power, first, last):  # type: ignore[no-untyped-def]
    """Add value * level to `product` and level^2 to `power` [trials, columns], both times the importance."""
    for trial in range(steps.shape[0]):
        for i in range(values.shape[0]):
            weight = importance[i]
            for column in range(first, last):
                step = steps[trial, column]
                if step > 0:
                    level = min(max(np.rint(values[i, column] / step), -largest), largest)
                    product[trial, column] += weight * values[i, column] * level
                    power[trial, column] += weight * level * level


_add_up = kernel(_add_up_of)
