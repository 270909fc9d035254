"""Features of fresh cells over their first cycles, drawn only where they are needed.

`memsim.device.cycles.cells` simulates cells with their whole history. A programmer that takes every cell through full
SETs and RESETs needs only a few features of a few cycles, whose normal variates are jointly Gaussian.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memsim.device.cycles.features import (
    History,
    component_bounds,
    draw_components,
    marginal_mixture,
    stationary_covariance,
    with_failures,
)
from memsim.device.cycles.model import DeviceModel
from memsim.device.cycles.normals import cell_normals
from memsim.portable.elementwise import random_words

Round = tuple[tuple[int, int], ...]
"""The (feature, cycle) pairs of a cell's first try, at most three. A fresh cell is in cycle 0, and every later try
takes the same features a cycle later."""

Row = tuple[np.float32, ...]


class FeatureLaw(NamedTuple):
    """The distribution of the F features of each try at fresh cells, in float32.

    A feature is mu + sigma g(x). The offsets mu and scales sigma of a cell come from a mixture of Gaussians, and x is a
    sum of standard normals: those of this try and of the tries before it. Tuples are for loops that compiled code
    unrolls.
    """

    bounds: NDArray[np.uint32]  # [K - 1] `component_bounds`
    mixture: tuple[tuple[Row, ...], ...]  # [2 F][K] rows of a mean and 2 F factors, for (mu, sigma)
    factor: NDArray[np.float32]  # [F tries, F tries], lower triangular
    gamma: tuple[Row, ...]  # [F] rows of coefficients, highest power first
    limits: tuple[Row, ...]  # [F] rows of the least and the greatest y
    is_exponent: NDArray[np.bool_]  # [F]: the feature is log10 of its ohms
    draws: int  # of four words each, for the offsets and scales


@lru_cache(maxsize=64)
def feature_law(device: DeviceModel, round_: Round, tries: int, history: History = "stationary") -> FeatureLaw:
    """Return the distribution of the features of `round_` and of the later tries."""
    features = tuple(feature for feature, _ in round_)
    assert len(features) <= 3  # a draw gives four normals, one of which is for a verify read
    places = [4 * (cycle + attempt) + feature for attempt in range(tries) for feature, cycle in round_]
    covariance = cycle_covariance(device, max(places) // 4 + 1, history)[places][:, places]
    means, cholesky = marginal_mixture(device, features)
    mixture = torch.cat([means.T[:, :, None], cholesky], dim=2).transpose(0, 1)  # (2 F, K, 1 + 2 F)
    return FeatureLaw(
        bounds=np.array(component_bounds(device), np.uint32),
        mixture=tuple(_rows(components) for components in mixture),
        factor=torch.linalg.cholesky(covariance).float().cpu().numpy(),
        gamma=_rows(device.gamma[list(features)]),
        limits=tuple(tuple(map(np.float32, device.limits_of(feature))) for feature in features),
        is_exponent=np.array([device.is_log10(feature) for feature in features]),
        draws=len(features) // 2 + 1,
    )


class CycleFeatures:
    """Features of fresh cells try by try, so that later tries can be drawn for some of the cells only.

    A cell draws its offsets and scales in the first draws of stream 0. Try t is the draw after them of stream t: a
    normal for each feature, and the next one for the first verify read. Further reads take the draws after that.
    """

    def __init__(
        self,
        device: DeviceModel,
        round_: Round,
        tries: int,
        cells: Tensor,
        key: int,
        history: History = "stationary",
    ) -> None:
        """Prepare `tries` tries at cells with the counters `cells` [n] (int64) of `key`."""
        self._device, self._cells, self._key = device, cells, key
        self._features = [feature for feature, _ in round_]
        self._law = law = feature_law(device, round_, tries, history)
        self._attempt = 0
        self._normals: list[Tensor] = []  # of the features of all tries so far: [n] each
        draws = [random_words(key, cells, 0, draw) for draw in range(law.draws)]
        component = draw_components(device, draws[0][0])
        normals = [normal for words in draws for normal in cell_normals(*words)]
        del normals[:2]  # the words of the component
        drawn = []
        for components in law.mixture:
            columns = torch.tensor(components, dtype=torch.float32, device=cells.device).T  # (1 + 2 F, K)
            mean, *factors = (column.index_select(0, component) for column in columns)
            for factor, normal in zip(factors, normals, strict=False):
                mean = mean + factor * normal
            drawn.append(mean)
        self._mu, self._sigma = torch.stack(drawn).chunk(2)  # (F, n) each

    def draw(self) -> tuple[Tensor, Tensor]:
        """Draw a try: the features [F, n], in ohm and volts, and the standard normals [n] of the first verify read."""
        size = len(self._features)
        normals = cell_normals(*random_words(self._key, self._cells, self._attempt, self._law.draws))
        self._normals += normals[:size]
        x = torch.zeros_like(self._mu)
        for row in range(size):
            weights = self._law.factor[size * self._attempt + row].tolist()
            for weight, normal in zip(weights, self._normals[: len(self._normals) - size + row + 1], strict=False):
                x[row] = x[row] + weight * normal
        drawn = self._device.denormalise(x, self._mu, self._sigma, self._features)
        for row, feature in enumerate(self._features):
            drawn[row] = with_failures(self._device, feature, drawn[row], self._cells, self._key, self._attempt)
        self._attempt += 1
        return drawn, normals[size]

    def read_normals(self, cells: Tensor, draw: int) -> list[Tensor]:
        """Return four normals [m] for the reads 4 draw + 1 to 4 draw + 4 of this try at `cells` (indices [m])."""
        counters = self._cells.index_select(0, cells)
        return cell_normals(*random_words(self._key, counters, self._attempt - 1, self._law.draws + 1 + draw))

    def keep(self, cells: Tensor) -> None:
        """Keep only `cells` (indices [m]) for the tries to come."""
        self._cells = self._cells.index_select(0, cells)
        self._mu, self._sigma = self._mu.index_select(1, cells), self._sigma.index_select(1, cells)
        self._normals = [normals.index_select(0, cells) for normals in self._normals]


def _rows(table: Tensor) -> tuple[Row, ...]:
    return tuple(tuple(np.float32(value) for value in row) for row in table.tolist())


@lru_cache(maxsize=64)
def cycle_covariance(
    device: DeviceModel, cycles: int, history: History = "stationary", order: int | None = None
) -> Tensor:
    """Return the covariance [4 cycles, 4 cycles], float64, of a fresh cell's normal features over its first cycles."""
    var = device.var_matrix(order)
    p = var.shape[1] // 4 - 1
    if history == "zero":
        past = var.new_zeros(4 * p, 4)
        past[-4:] = var[:, :4]
    else:
        past = torch.linalg.cholesky(stationary_covariance(device, order))
    # the vectors, from p - 1 cycles ago on, as sums of independent normals: those of the past, then each cycle's own
    response = var.new_zeros(4 * (p + cycles - 1), past.shape[1] + 4 * (cycles - 1))
    response[: 4 * p, : past.shape[1]] = past
    for start in range(0, 4 * (cycles - 1), 4):
        now, own = slice(start + 4 * p, start + 4 * p + 4), slice(past.shape[1] + start, past.shape[1] + start + 4)
        response[now] = var[:, 4:] @ response[start : start + 4 * p]
        response[now, own] = var[:, :4]
    cycle_rows = response[4 * (p - 1) :]
    return cycle_rows @ cycle_rows.T
