"""Random features of cells: device to device (a Gaussian mixture) and cycle to cycle (a vector autoregression).

Equations: Hennen et al., Front. Neurosci. 16:941753 (2022). All draws are float32 on the model's device. Cells are
drawn from the random words of a key and of each cell's counter (`memsim.portable`), so they are the same bits on every
device, whatever the other cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from memsim.device.cycles import compiled
from memsim.device.cycles.model import (
    FAILED_RESET,
    FAILED_SET,
    HRS,
    LOG2_OF_10,
    LRS,
    UR,
    US,
    DeviceModel,
    companion,
    power_of_10,
)
from memsim.device.cycles.normals import LARGEST_NORMAL, LEAST_RADIUS_WORD, cell_normals
from memsim.portable import elementwise
from memsim.portable.constants import LOW_32, WORDS
from memsim.portable.elementwise import Words
from memsim.portable.kernels import is_compiled

History = Literal["stationary", "zero"]
"""The start of a fresh cell's cycles: a stationary history, or zeros as in the published simulation (whose LRS variance
after 10 cycles is 79 % of the stationary one)."""


OFFSETS_DRAW, HISTORY_DRAW = 1, 3
"""The first calls of Philox, in stream 0, for the offsets and scales and for the history of a fresh cell.

Call 0 gives its component of the mixture. Each later cycle of a cell is a stream of its own.
"""

FAILURE_DRAW = 1 << 24
"""The call of Philox, in the stream of a cycle or try, whose words decide whether its SET and its RESET fail."""


@lru_cache(maxsize=32)
def component_bounds(device: DeviceModel) -> tuple[int, ...]:
    """Return the K - 1 random words from which on a cell has a later component of the mixture.

    A component has as many of the 2^32 words as its weight, and the last one at least one.
    """
    cumulative = device.mixture_weights.double().cumsum(0)[:-1].tolist()
    return tuple(min(round(weight * WORDS), LOW_32) for weight in cumulative)


def draw_components(device: DeviceModel, words: Tensor) -> Tensor:
    """Return the mixture component [n], int32, of cells with the random `words` [n]."""
    component = torch.zeros_like(words, dtype=torch.int32)
    for bound in component_bounds(device):
        component += (words >= bound).int()
    return component


def draw_offsets_and_scales(device: DeviceModel, cells: Tensor, key: int) -> tuple[Tensor, Tensor]:
    """Draw the offsets mu and the scales sigma, [4, n] each, of the features of `cells` [n] from the mixture."""
    means, cholesky = marginal_mixture(device, (HRS, US, LRS, UR))
    component = draw_components(device, elementwise.random_words(key, cells)[0])
    normals = draw_normals(len(means), cells, key, draw=OFFSETS_DRAW)
    rows = []
    for i, mean in enumerate(means):
        row = mean.index_select(0, component)
        for factors, normal in zip(cholesky[:, i].T, normals[: i + 1], strict=False):
            row = row + factors.index_select(0, component) * normal
        rows.append(row)
    mu, sigma = torch.stack(rows).chunk(2)
    return mu, sigma


def draw_history(
    device: DeviceModel, cells: Tensor, key: int, history: History = "stationary", order: int | None = None
) -> Tensor:
    """Draw the last p normal feature vectors [4p, n] of fresh `cells` [n], oldest to newest (the present cycle)."""
    factor = history_factor(device, history, order)
    normals = draw_normals(factor.shape[1], cells, key, draw=HISTORY_DRAW)
    return torch.stack([sum_of_products(row, normals) for row in factor.tolist()])


@lru_cache(maxsize=32)
def history_factor(device: DeviceModel, history: History, order: int | None = None) -> Tensor:
    """Return the matrix [4p, normals], float32, that turns standard normals into the history of a fresh cell."""
    var = device.var_matrix(order)
    if history == "zero":
        return torch.cat([var.new_zeros(var.shape[1] - 8, 4), var[:, :4]]).float()
    factor: Tensor = torch.linalg.cholesky(stationary_covariance(device, order))
    return factor.float()


def draw_normals(count: int, cells: Tensor, key: int, stream: Tensor | int = 0, draw: int = 0) -> list[Tensor]:
    """Draw `count` standard normals, [n] each, of `cells` [n]: four from each call of Philox, from call `draw` on."""
    normals: list[Tensor] = []
    for call in range(draw, draw - (-count // 4)):
        words = elementwise.random_words(key, cells, stream, call)
        normals += cell_normals(*words)
    return normals[:count]


def sum_of_products(factors: Sequence[float], rows: Sequence[Tensor]) -> Tensor:
    """Return the sum [n] of the `rows` [n] times their factors, added one after the other.

    Unlike those of a matrix product, its bits depend on neither device nor threads.
    """
    total = torch.zeros_like(rows[0])
    for factor, row in zip(factors, rows, strict=True):
        if factor:
            total = total + factor * row
    return total


@lru_cache(maxsize=32)
def stationary_autocovariances(device: DeviceModel, lags: int, order: int | None = None) -> Tensor:
    """Return E[x_n x_{n - k}^T] of the stationary process for k = 0 ... `lags`: [lags + 1, 4, 4], float64."""
    step = companion(device.var_matrix(order))
    shifted, result = stationary_covariance(device, order), []
    for _ in range(lags + 1):
        result.append(shifted[-4:, -4:])
        shifted = step @ shifted
    return torch.stack(result)


@lru_cache(maxsize=32)
def stationary_covariance(device: DeviceModel, order: int | None = None) -> Tensor:
    """Return the covariance P [4p, 4p], float64, of a stationary history.

    P = F P F^T + Q, with the companion matrix F and the covariance Q of a draw (discrete Lyapunov equation), is solved
    by doubling: P <- P + F P F^T, F <- F^2. It converges because the process of a device file is stationary.
    """
    var = device.var_matrix(order)
    step = companion(var)
    covariance = torch.zeros_like(step)
    covariance[-4:, -4:] = var[:, :4] @ var[:, :4].T
    for _ in range(64):
        growth = step @ covariance @ step.T
        covariance = covariance + growth
        step = step @ step
        if growth.abs().max() <= 1e-17 * covariance.abs().max():
            break
    return (covariance + covariance.T) / 2


def draw_states(
    device: DeviceModel, set_mask: Tensor, cells: Tensor, key: int, history: History = "stationary"
) -> Tensor:
    """Draw states r [n], float32, of fresh cells after one SET pulse on the cells in `set_mask` [n] (bool).

    `set_mask` may hold whole numbers, of which 0 is false. A cell's draw depends on `key` and its counter, which
    `cells` [n] (int64) holds. A set cell is in the LRS of its
    first cycle, any other cell in the HRS. This is the distribution of `Cells` after ``apply(-2.0)`` on the set cells,
    where about one cell in 10^6 needs more than -2 V.
    SETs and RESETs may fail (see `with_failures`).
    """
    law = state_law(device, history)
    if is_compiled(cells):
        r = compiled.draw_states(law.compiled_arguments, set_mask, cells, key)
    else:
        r = law.states(set_mask, elementwise.random_words(key, cells))
    if device.failures is None:
        return r
    lrs, hrs = (with_failures(device, feature, None, cells, key) for feature in (LRS, HRS))
    failed = torch.where(set_mask != 0, lrs, hrs)
    return torch.where(failed.isnan(), r, device.state_of_resistance(failed))


def with_failures(
    device: DeviceModel, feature: int, ohms: Tensor | None, cells: Tensor, key: int, stream: Tensor | int = 0
) -> Tensor:
    """Return the resistances [n] of HRS or LRS with those of the RESETs or SETs that fail in their place.

    A share of the SETs of `device.failures` fails, independently of all else. The cell is then in a resistance of the
    quantiles there, between which is a straight line.

    Args:
        device: the device model.
        feature: HRS or LRS.
        ohms: [n] resistances where the pulse succeeds; None gives NaN there.
        cells: [n] counters of the cells.
        key: the key of their draws.
        stream: the cycle or try.
    """
    if device.failures is None or feature not in (HRS, LRS):
        return torch.full(cells.shape, math.nan, device=cells.device) if ohms is None else ohms
    row = FAILED_SET if feature == LRS else FAILED_RESET
    share, *quantiles = device.failures[row].tolist()
    word = elementwise.random_words(key, cells, stream, FAILURE_DRAW)[row]
    bound = round(share * WORDS)
    last = len(quantiles) - 1
    place = (word.float() * (last / max(bound, 1))).clamp(max=last)
    below = place.int().clamp_(max=last - 1)
    table = torch.tensor(quantiles, dtype=torch.float32, device=cells.device)
    low, high = table.index_select(0, below), table.index_select(0, below + 1)
    failed = power_of_10(low + (place - below) * (high - low))
    succeeded = torch.full_like(failed, math.nan) if ohms is None else ohms
    return torch.where(word < bound, failed, succeeded)


@lru_cache(maxsize=32)
def state_means(device: DeviceModel, history: History = "stationary") -> tuple[float, float]:
    """Return the mean r of set cells and of unset cells over those that `draw_states` draws and that do not fail.

    Strictly, 1/R of a polynomial of normals has no mean: far out, a resistance passes zero, or the exponential of the
    HRS outgrows the normal density. No draw is so far out (two normals end at a radius of 5.77), so this is the mean
    over what can be drawn: a trapezoid rule over both normals within that radius and exact sums over the components, in
    float64.
    """
    grid = torch.linspace(-LARGEST_NORMAL, LARGEST_NORMAL, 401, dtype=torch.float64, device=device.device)
    x, z = torch.cartesian_prod(grid, grid).T  # (401 * 401)
    squared_radius = x.square() + z.square()
    density = torch.exp(-squared_radius / 2).masked_fill_(squared_radius > LARGEST_NORMAL**2, 0.0)
    weights = device.mixture_weights / device.mixture_weights.sum()
    components = torch.arange(len(weights), device=device.device).repeat_interleave(len(x))

    def mean(feature: int) -> float:
        law = _first_cycle_law(device, feature, history)
        r = law.states(components, x.repeat(len(weights)), z.repeat(len(weights))).view(len(weights), -1)
        drawn = density > 0
        return float((weights @ r[:, drawn]) @ (density[drawn] / density.sum()))

    return mean(LRS), mean(HRS)


def fraction_below(device: DeviceModel, feature: int, value: float, history: History = "stationary") -> float:
    """Return the fraction of cells whose `feature` (US, UR in volts, LRS in ohms, HRS in log10 ohms) is below `value`.

    Given x, the feature is Gaussian within a component of the mixture; a trapezoid rule integrates over x, in float64.
    """
    law = _first_cycle_law(device, feature, history)
    x = torch.linspace(-8, 8, 801, dtype=torch.float64, device=device.device)
    density = torch.exp(-x.square() / 2)
    components = torch.arange(device.mixture_weights.numel(), device=device.device)
    mean, spread = law.moments(components.repeat_interleave(len(x)), x.repeat(len(components)))
    below = torch.special.ndtr((value - mean) / spread).view(len(components), -1) @ (density / density.sum())
    return float(below @ device.mixture_weights.double() / device.mixture_weights.double().sum())


@dataclass(frozen=True)
class FirstCycleLaw:
    """One feature of a fresh cell (and for HRS or LRS the state r) as a function of two normals, x and z.

    y = mu + sigma g(x), where (mu, sigma) is Gaussian within a component. Given x, y is therefore Gaussian too, with
    mean m_mu + m_sigma g and variance (a + b g)^2 + (c g)^2, where [[a, 0], [b, c]] is the Cholesky factor of
    (mu, sigma). One normal z replaces the two of mu and sigma.

    Attributes:
        feature: HRS, US, LRS or UR.
        gamma: the coefficients of g, highest power first.
        table: [5, K], float64: m_mu, m_sigma, a, b and c of each component.
        limits: the least and the greatest y.
        is_log10: whether y is log10 of a resistance.
        open_state: the state without conductance at the reference voltage.
        state_per_siemens: the change of the state for each siemens less.
    """

    feature: int
    gamma: tuple[float, ...]
    table: Tensor
    limits: tuple[float, float]
    is_log10: bool
    open_state: float
    state_per_siemens: float

    def states(self, component: Tensor, x: Tensor, z: Tensor) -> Tensor:
        """Return states r [n] for components [n] (integers) and standard normals x and z [n], in the dtype of `x`."""
        mean, std = self.moments(component, x)
        y = (mean + std * z).clamp(*self.limits)
        if not self.is_log10:
            siemens = y.reciprocal()
        else:
            siemens = (elementwise.exp2 if y.dtype == torch.float32 else torch.exp2)(y * -LOG2_OF_10)
        return self.open_state - siemens * self.state_per_siemens

    def moments(self, component: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation [n] of the feature given components [n] (integers) and x [n]."""
        m_mu, m_sigma, a, b, c = (row.index_select(0, component) for row in self.table.to(x.dtype))
        g = x * self.gamma[0] + self.gamma[1]
        for coefficient in self.gamma[2:]:
            g = g * x + coefficient
        of_sigma, own = a + b * g, c * g
        variance = of_sigma * of_sigma + own * own
        std = elementwise.sqrt(variance) if x.dtype == torch.float32 else variance.sqrt()
        return m_mu + m_sigma * g, std


@dataclass(frozen=True)
class StateLaw:
    """The states of fresh cells in HRS and LRS as a function of random words.

    `bounds` are the `component_bounds` of the device. `compiled` has the same for CPUs, with the same bits.
    """

    hrs: FirstCycleLaw
    lrs: FirstCycleLaw
    bounds: tuple[int, ...]

    def states(self, set_mask: Tensor, words: Words) -> Tensor:
        """Return states r [n], float32, of cells with random words [n], in LRS where `set_mask` [n], else in HRS."""
        component = torch.zeros_like(words[0], dtype=torch.int32)
        for bound in self.bounds:
            component += (words[0] >= bound).int()
        x, z = cell_normals(words[1], words[2])
        return torch.where(set_mask != 0, self.lrs.states(component, x, z), self.hrs.states(component, x, z))

    @cached_property
    def compiled_arguments(self) -> compiled.StateArguments:
        """The law for `compiled.draw_states`."""

        def row(values: Sequence[float]) -> compiled.Row:
            return tuple(np.float32(value) for value in values)

        hrs, lrs = self.hrs, self.lrs
        hrs_table, lrs_table = (tuple(map(row, law.table.T.tolist())) for law in (hrs, lrs))
        first_words = tuple(np.uint32(word) for word in (0, *self.bounds))
        of_siemens = row([-LOG2_OF_10, hrs.open_state, hrs.state_per_siemens])
        least = np.uint32(LEAST_RADIUS_WORD)
        return compiled.StateArguments(
            first_words,
            least,
            row(hrs.gamma),
            row(lrs.gamma),
            hrs_table,
            lrs_table,
            row(hrs.limits),
            row(lrs.limits),
            lrs.is_log10,
            *of_siemens,
        )


@lru_cache(maxsize=32)
def state_law(device: DeviceModel, history: History = "stationary") -> StateLaw:
    """Return the law of the states that `draw_states` draws."""
    return StateLaw(
        _first_cycle_law(device, HRS, history), _first_cycle_law(device, LRS, history), component_bounds(device)
    )


@lru_cache(maxsize=32)
def _first_cycle_law(device: DeviceModel, feature: int, history: History) -> FirstCycleLaw:
    var = device.var_matrix()
    drawn = var[:, :4] @ var[:, :4].T if history == "zero" else stationary_covariance(device)[-4:, -4:]
    x_std = math.sqrt(drawn[feature, feature].item())
    gamma = device.gamma[feature].tolist()
    powers = range(len(gamma) - 1, -1, -1)
    means, cholesky = marginal_mixture(device, (feature,), torch.float64)
    table = torch.stack([means[0], means[1], cholesky[:, 0, 0], cholesky[:, 1, 0], cholesky[:, 1, 1]])
    llrs, hhrs = device.reference_conductances_siemens
    return FirstCycleLaw(
        feature,
        tuple(coefficient * x_std**power for coefficient, power in zip(gamma, powers, strict=True)),
        table,
        device.limits_of(feature),
        device.is_log10(feature),
        llrs / (llrs - hhrs),
        1 / (llrs - hhrs),
    )


@lru_cache(maxsize=32)
def marginal_mixture(
    device: DeviceModel, features: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Return the means [2F, K] and the Cholesky factors [K, 2F, 2F] of (mu, sigma) of `features`.

    They are the marginal of the joint mixture of all four features.
    """
    rows = [*features, *(4 + feature for feature in features)]
    joint = device.mixture_cholesky[:, rows]  # (K, 2F, 8)
    return device.mixture_means[rows].to(dtype), torch.linalg.cholesky(joint @ joint.mT).to(dtype)
