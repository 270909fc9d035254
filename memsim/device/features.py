"""Random features of cells: device to device (a Gaussian mixture) and cycle to cycle (a vector autoregression).

Equations: Hennen et al., Front. Neurosci. 16:941753 (2022). All draws are float32 on the model's device and come from
the generator given, which must be on that device. They are made in chunks of a fixed size, so memory is bounded and the
result depends on the state of the generator alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Generator, Tensor

from memsim.device.model import HRS, LRS, UR, US, DeviceModel, companion, polynomial

History = Literal["stationary", "zero"]
"""The start of a fresh cell's cycles: a stationary history, or zeros as in the published simulation (whose LRS variance
after 10 cycles is 79 % of the stationary one)."""

LARGEST_NORMAL = math.sqrt(2.0 * 24.0 * math.log(2.0))
"""The largest |x| of a float32 Box-Muller normal, 5.77."""


def chunks(n: int, device: torch.device) -> Iterator[slice]:
    """Cut [0, n) into slices of a fixed size, which fits a CPU's cache or fills a GPU.

    On a CPU, torch runs operations of this size on one thread.
    """
    size = 2**15 if device.type == "cpu" else 2**19
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def draw_components(device: DeviceModel, n: int, generator: Generator) -> Tensor:
    """Draw the mixture component [n], int32, of each of `n` cells."""
    u = torch.rand(n, generator=generator, device=device.device)
    component = torch.zeros(n, dtype=torch.int32, device=device.device)
    for boundary in device.mixture_weights.cumsum(0)[:-1].tolist():
        component += (u >= boundary).int()
    return component


def draw_offsets_and_scales(device: DeviceModel, n: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Draw the offsets mu and the scales sigma, [4, n] each, of the features from the mixture."""
    means, cholesky = marginal_mixture(device, (HRS, US, LRS, UR))
    component = draw_components(device, n, generator)
    z = torch.randn(means.shape[0], n, generator=generator, device=device.device)
    drawn = torch.zeros_like(z)
    for k in range(means.shape[1]):
        drawn = torch.where(component == k, torch.addmm(means[:, k : k + 1], cholesky[k], z), drawn)
    mu, sigma = drawn.chunk(2)
    return mu, sigma


def draw_history(
    device: DeviceModel, n: int, generator: Generator, history: History = "stationary", order: int | None = None
) -> Tensor:
    """Draw the last p normal feature vectors [n, 4p] of `n` fresh cells, oldest to newest (the present cycle)."""
    var = device.var_matrix(order)
    if history == "zero":
        past = torch.zeros(n, var.shape[1] - 4, device=device.device)
        past[:, -4:] = torch.randn(n, 4, generator=generator, device=device.device) @ var[:, :4].float().T
        return past
    factor: Tensor = torch.linalg.cholesky(stationary_covariance(device, order))
    return torch.randn(n, factor.shape[0], generator=generator, device=device.device) @ factor.float().T


def draw_variates(
    device: DeviceModel,
    n: int,
    cycles: int,
    generator: Generator,
    history: History = "stationary",
    order: int | None = None,
) -> Tensor:
    """Draw normal variates [4, n, cycles] of `n` fresh cells over their first `cycles` cycles."""
    var = device.var_matrix(order).float()
    noise_factor, advance = var[:, :4].T.contiguous(), var[:, 4:].T.contiguous()
    past = draw_history(device, n, generator, history, order)  # (n, 4p)
    drawn = torch.empty(cycles, n, 4, device=device.device)
    for cycle in range(cycles):
        drawn[cycle] = past[:, -4:]
        eps = torch.randn(n, 4, generator=generator, device=device.device)
        past = torch.cat([past[:, 4:], torch.addmm(eps @ noise_factor, past, advance)], dim=1)
    return drawn.permute(2, 1, 0).contiguous()


def draw_cycles(device: DeviceModel, n: int, cycles: int, generator: Generator) -> Tensor:
    """Draw features [4, n, cycles] of `n` fresh cells over their cycles: HRS (ohm), US (V), LRS (ohm), UR (V)."""
    mu, sigma = draw_offsets_and_scales(device, n, generator)  # (4, n) each
    x = draw_variates(device, n, cycles, generator)
    return device.denormalise(x, mu[..., None], sigma[..., None])


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
    device: DeviceModel,
    set_mask: Tensor,
    generator: Generator,
    history: History = "stationary",
) -> Tensor:
    """Draw states r [...], float32, of fresh cells after one SET pulse on the cells in `set_mask` [...] (bool).

    A set cell is in the LRS of its first cycle, any other cell in the HRS. This is the distribution of `Cells` after
    ``apply(-2.0)`` on the set cells, where about one cell in 10^6 needs more than -2 V. Every cell takes two normals
    and a uniform, set or not, so states from equal generators differ only where the masks do.
    """
    laws = {feature: _state_law(device, feature, history) for feature in (LRS, HRS)}
    flat_mask = set_mask.reshape(-1)
    r = torch.empty(flat_mask.shape, device=device.device)
    for part in chunks(flat_mask.numel(), device.device):
        is_set, out = flat_mask[part], r[part]
        component = draw_components(device, out.numel(), generator)
        x = torch.randn(out.shape, generator=generator, device=device.device)
        z = torch.randn(out.shape, generator=generator, device=device.device)
        for feature, mask in ((LRS, is_set), (HRS, ~is_set)):
            cells = mask.nonzero().squeeze(1)
            drawn = (value.index_select(0, cells) for value in (component, x, z))
            out.index_copy_(0, cells, laws[feature](*drawn))
    return r.view(set_mask.shape)


@lru_cache(maxsize=32)
def state_means(device: DeviceModel, history: History = "stationary") -> tuple[float, float]:
    """Return the mean r of set cells and of unset cells over the population that `draw_states` draws from.

    Strictly, 1/R of a polynomial of normals has no mean: far out, a resistance passes zero, or the exponential of the
    HRS outgrows the normal density. No draw is so far out (float32 normals end at 5.77), so this is the mean over what
    can be drawn: a trapezoid rule over both normals within that range and exact sums over the components, in float64.
    """
    grid = torch.linspace(-LARGEST_NORMAL, LARGEST_NORMAL, 401, dtype=torch.float64, device=device.device)
    density = torch.exp(-grid.square() / 2)
    density /= density.sum()
    x, z = torch.cartesian_prod(grid, grid).T  # (401 * 401)

    def mean(feature: int) -> float:
        law = _state_law(device, feature, history)
        components = torch.arange(device.mixture_weights.numel(), device=device.device)
        r = law(components.repeat_interleave(x.numel()), x.repeat(len(components)), z.repeat(len(components)))
        weights = device.mixture_weights / device.mixture_weights.sum()
        return torch.einsum("kij,k,i,j->", r.view(-1, len(grid), len(grid)), weights, density, density).item()

    return mean(LRS), mean(HRS)


def fraction_below(device: DeviceModel, feature: int, value: float, history: History = "stationary") -> float:
    """Return the fraction of cells whose `feature` (US, UR in volts, LRS in ohms, HRS in log10 ohms) is below `value`.

    Given x, the feature is Gaussian within a component of the mixture; a trapezoid rule integrates over x, in float64.
    """
    law = _state_law(device, feature, history)
    x = torch.linspace(-8, 8, 801, dtype=torch.float64, device=device.device)
    density = torch.exp(-x.square() / 2)
    components = torch.arange(device.mixture_weights.numel(), device=device.device)
    mean, spread = law.moments(components.repeat_interleave(len(x)), x.repeat(len(components)))
    below = torch.special.ndtr((value - mean) / spread).view(len(components), -1) @ (density / density.sum())
    return float(below @ device.mixture_weights.double() / device.mixture_weights.double().sum())


@dataclass(frozen=True)
class _StateLaw:
    """One feature of a fresh cell (and for HRS or LRS the state r) as a function of two normals, x and z.

    y = mu + sigma g(x), where (mu, sigma) is Gaussian within a component. Given x, y is therefore Gaussian too, with
    mean m_mu + m_sigma g and standard deviation hypot(a + b g, c g), where [[a, 0], [b, c]] is the Cholesky factor of
    (mu, sigma). One normal z replaces the two of mu and sigma.
    """

    device: DeviceModel
    feature: int
    x_std: float
    table: Tensor  # [5, K] m_mu, m_sigma, a, b, c

    def __call__(self, component: Tensor, x: Tensor, z: Tensor) -> Tensor:
        """Return states r [n] for components [n] (integers) and standard normals x and z [n], in the dtype of `x`."""
        mean, spread = self.moments(component, x)
        y = mean.addcmul_(spread, z)
        return self.device.state_of_resistance(torch.pow(10.0, y) if self.feature == HRS else y)

    def moments(self, component: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation [n] of the feature given components [n] (integers) and x [n]."""
        m_mu, m_sigma, a, b, c = (row.index_select(0, component) for row in self.table.to(x.dtype))
        g = polynomial(self.device.gamma[self.feature], x * self.x_std)
        return m_mu.addcmul_(m_sigma, g), torch.hypot(a.addcmul_(b, g), c.mul_(g))


@lru_cache(maxsize=32)
def _state_law(device: DeviceModel, feature: int, history: History) -> _StateLaw:
    var = device.var_matrix()
    drawn = var[:, :4] @ var[:, :4].T if history == "zero" else stationary_covariance(device)[-4:, -4:]
    means, cholesky = marginal_mixture(device, (feature,), torch.float64)
    table = torch.stack([means[0], means[1], cholesky[:, 0, 0], cholesky[:, 1, 0], cholesky[:, 1, 1]])
    return _StateLaw(device, feature, math.sqrt(drawn[feature, feature].item()), table)


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
