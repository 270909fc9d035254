"""Deviations of cells compiled for CPUs by numba; `Deviation` and `laws.Table` are their definition."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memsim.portable.kernels import as_array, inlined, kernel

_ZERO = np.float32(0)


class TableArguments(NamedTuple):
    """A `laws.Table` in float32; without values it is absent."""

    values: NDArray[np.float32]
    first: np.float32
    points_per_unit: np.float32
    last: np.float32  # the largest place among the values
    extrapolates: bool


class DeviationArguments(NamedTuple):
    """A `deviation.Deviation`."""

    mean: TableArguments
    spread: TableArguments
    transform: TableArguments
    factor: TableArguments
    tail_score: TableArguments
    tail_spread: TableArguments


def deviations(law: DeviationArguments, place: Tensor, score: Tensor, second: Tensor) -> Tensor:
    """Return the deviations [n] of cells at `place` [n] with normal scores [n]: see `Deviation`."""
    found = np.empty(len(place), np.float32)
    _deviations(found, as_array(place), as_array(score), as_array(second), law)
    return torch.from_numpy(found)


@kernel
def _deviations(found, place, score, second, law):  # type: ignore[no-untyped-def]
    has_transform, has_factor = len(law.transform.values) > 0, len(law.factor.values) > 0
    has_tail = len(law.tail_score.values) > 0
    for j in range(len(found)):
        spread = _look_up(law.spread, place[j])
        if has_tail and second[j] >= _look_up(law.tail_score, place[j]):
            spread = _look_up(law.tail_spread, place[j])
        z = score[j]
        if has_transform:
            z = _look_up(law.transform, z)
        if has_factor:
            z = z * _look_up(law.factor, second[j])
        found[j] = z * spread + _look_up(law.mean, place[j])


@inlined
def _look_up(table, x):  # type: ignore[no-untyped-def]
    at = (x - table.first) * table.points_per_unit
    if not table.extrapolates:
        at = min(max(at, _ZERO), table.last)
    below = np.int32(min(max(at, _ZERO), table.last - np.float32(1)))
    low, high = table.values[below], table.values[below + 1]
    return (high - low) * (at - np.float32(below)) + low
