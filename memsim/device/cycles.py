"""Features of fresh cells over their first cycles, drawn only where they are needed.

`memsim.device.cells` simulates cells with their whole history. A programmer that takes every cell through full SETs and
RESETs needs only a few features of a few cycles, whose normal variates are jointly Gaussian.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Generator, Tensor

from memsim.device.features import History, draw_components, marginal_mixture, stationary_covariance
from memsim.device.model import DeviceModel

Round = tuple[tuple[int, int], ...]
"""The (feature, cycle) pairs that are drawn together; a fresh cell is in cycle 0."""


class CycleFeatures:
    """Features of `n` fresh cells in rounds, so that later rounds can be drawn for some of the cells only.

    Each round is drawn from its distribution given all earlier rounds of the same cell. No matrix product is used,
    because its rounding may depend on the number of threads.
    """

    def __init__(
        self,
        device: DeviceModel,
        n: int,
        rounds: Sequence[Round],
        generator: Generator,
        history: History = "stationary",
    ) -> None:
        self._device, self._generator = device, generator
        self._rounds = iter(rounds)
        self._features = tuple(dict.fromkeys(feature for round_ in rounds for feature, _ in round_))
        self._factor = _round_factor(device, tuple(rounds), history).tolist()
        means, cholesky = marginal_mixture(device, self._features)
        words = torch.randint(1 << 32, (n,), generator=generator, device=device.device)
        component = draw_components(device, words)
        normals = torch.randn(len(means), n, generator=generator, device=device.device)
        drawn = torch.stack([row.index_select(0, component) for row in means])
        for i in range(len(means)):
            for j in range(i + 1):
                drawn[i].addcmul_(cholesky[:, i, j].index_select(0, component), normals[j])
        self._mu, self._sigma = drawn.chunk(2)  # (F, n) each
        self._normals = normals[:0]  # those drawn so far

    def draw(self) -> Tensor:
        """Draw the features [len(round), n] of the next round, in its order: HRS and LRS in ohm, US and UR in V."""
        round_ = next(self._rounds)
        drawn, n = self._normals.shape
        fresh = torch.randn(len(round_), n, generator=self._generator, device=self._mu.device)
        self._normals = torch.cat([self._normals, fresh])
        x = torch.zeros_like(fresh)
        for i in range(len(round_)):
            for weight, normals in zip(self._factor[drawn + i], self._normals[: drawn + i + 1], strict=False):
                x[i].add_(normals, alpha=weight)
        features = [feature for feature, _ in round_]
        rows = [self._features.index(feature) for feature in features]
        return self._device.denormalise(x, self._mu[rows], self._sigma[rows], features)

    def keep(self, cells: Tensor) -> None:
        """Keep only `cells` (indices [m]) for the rounds to come."""
        self._mu, self._sigma, self._normals = (
            rows.index_select(1, cells) for rows in (self._mu, self._sigma, self._normals)
        )


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


@lru_cache(maxsize=64)
def _round_factor(device: DeviceModel, rounds: tuple[Round, ...], history: History) -> Tensor:
    """Return the Cholesky factor [m, m], float64, of the covariance of the m features of all rounds."""
    places = [4 * cycle + feature for round_ in rounds for feature, cycle in round_]
    covariance = cycle_covariance(device, max(cycle for round_ in rounds for _, cycle in round_) + 1, history)
    factor: Tensor = torch.linalg.cholesky(covariance[places][:, places])
    return factor
