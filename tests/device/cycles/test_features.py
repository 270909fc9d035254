"""Drawn populations: against the published package, against numbers measured from it, and against exact values.

Tolerances are four to five standard errors of the sample, or the Kolmogorov-Smirnov distance that two equal
distributions exceed once in 10 000 (2.2 sqrt(1/n + 1/m)); seeds are fixed.
"""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import scipy.linalg
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memsim.device import Cells, DeviceModel, draw_states, load_device, state_means
from memsim.device.cycles.cells import draw_cycles, draw_variates
from memsim.device.cycles.features import (
    draw_history,
    draw_offsets_and_scales,
    stationary_autocovariances,
    stationary_covariance,
)
from memsim.device.cycles.model import HRS, LRS, UR, US, companion

N = 100_000
DEVICE = load_device("synaptogen")  # for Hypothesis, which does not go with fixtures
FEATURES = {"HRS": HRS, "US": US, "LRS": LRS, "UR": UR}


def assert_same_distribution(a: torch.Tensor, b: torch.Tensor) -> None:
    distance = scipy.stats.ks_2samp(a.numpy(), b.numpy()).statistic
    assert distance < 2.2 * math.sqrt(1 / len(a) + 1 / len(b))


@pytest.mark.parametrize("name", FEATURES)
def test_fresh_features_are_distributed_as_the_published_ones(
    name: str, device: DeviceModel, published: ModuleType
) -> None:
    ours = Cells(device, torch.arange(N), 1, history="zero").features[FEATURES[name]]
    assert_same_distribution(ours, torch.from_numpy(getattr(published, name)(published.CellArrayCPU(N))))


@pytest.mark.parametrize(
    ("name", "low", "median", "high"),
    [
        ("HRS", 25.06e3, 75.3e3, 257e3),
        ("US", -0.924, -0.668, -0.546),
        ("LRS", 4.02e3, 4.52e3, 5.30e3),
        ("UR", 0.632, 0.731, 0.881),
    ],
)
def test_stationary_quantiles(name: str, low: float, median: float, high: float, device: DeviceModel) -> None:
    """1 %, 50 % and 99 % quantiles, measured on 2^20 cells; the published ones (zero history) lie a little inside."""
    features = Cells(device, torch.arange(N), 1).features[FEATURES[name]].double()
    drawn = torch.quantile(features, torch.tensor([0.01, 0.5, 0.99], dtype=torch.float64))
    # five standard errors at the tails are 2.5 % of the resistance for HRS, and below 1 % of all others
    assert drawn.tolist() == pytest.approx([low, median, high], rel=0.03 if name == "HRS" else 0.01)


def test_offsets_and_scales_follow_the_mixture(device: DeviceModel) -> None:
    mu, sigma = draw_offsets_and_scales(device, torch.arange(N), 1)
    drawn = torch.cat([mu, sigma]).double()
    weights, means = device.mixture_weights, device.mixture_means
    mean = means @ weights
    within = torch.einsum("k,kij,klj->il", weights, device.mixture_cholesky, device.mixture_cholesky)
    covariance = within + (means * weights) @ means.T - torch.outer(mean, mean)
    std = covariance.diagonal().sqrt()
    assert ((drawn.mean(1) - mean).abs() < 5 * std / math.sqrt(N)).all()
    error = (torch.cov(drawn) - covariance) / torch.outer(std, std)
    assert error.abs().max() < 0.04  # five standard errors of a product of tails this heavy (kurtosis up to 6)


# Cycle to cycle


@pytest.mark.parametrize("order", [1, 4, 10])
def test_stationary_covariance_solves_the_lyapunov_equation(order: int, device: DeviceModel) -> None:
    var = device.var_matrix(order)
    noise = torch.zeros(4 * order, 4 * order, dtype=torch.float64)
    noise[-4:, -4:] = var[:, :4] @ var[:, :4].T
    expected = torch.from_numpy(scipy.linalg.solve_discrete_lyapunov(companion(var).numpy(), noise.numpy()))
    torch.testing.assert_close(stationary_covariance(device, order), expected, rtol=1e-10, atol=1e-12)


def test_stationary_correlations_are_the_measured_ones(device: DeviceModel) -> None:
    covariance = stationary_covariance(device)
    now = covariance[-4:, -4:]
    correlation = now / torch.outer(now.diagonal().sqrt(), now.diagonal().sqrt())
    pairs = [(HRS, US), (HRS, LRS), (US, LRS), (LRS, UR)]
    assert [correlation[i, j].item() for i, j in pairs] == pytest.approx([-0.231, 0.049, -0.073, 0.189], abs=0.002)
    lag_1 = covariance[-4:, -8:-4].diagonal() / now.diagonal()
    assert lag_1.tolist() == pytest.approx([0.135, 0.176, 0.505, 0.323], abs=0.004)
    ahead_10 = torch.linalg.matrix_power(companion(device.var[10]), 10) @ covariance
    lag_10 = ahead_10[-4:, -4:].diagonal() / now.diagonal()
    assert lag_10.tolist() == pytest.approx([0.101, 0.135, 0.382, 0.281], abs=0.004)


def test_cycling_keeps_a_stationary_history_stationary(device: DeviceModel) -> None:
    cells = Cells(device, torch.arange(N), 1)
    first = cells._history.clone()
    for _ in range(3):
        cells.apply(-2.0)
        cells.apply(2.0)
    expected = stationary_covariance(device)
    remembered = (cells._history[:-12] == first[12:]).all(0)
    assert remembered.sum() > N - 5  # one cell in some 10^6 needs more than -2 V, and does not cycle
    error = torch.cov(cells._history.double()) - expected
    assert error.abs().max() < 5 * math.sqrt(2 / N)


@pytest.mark.parametrize("order", [1, 10])
def test_zero_history_becomes_stationary_as_slowly_as_published(order: int, device: DeviceModel) -> None:
    """The variance of a feature's variate in cycle n is a sum over the impulse response of the process."""
    cycles = 10
    cells = Cells(device, torch.arange(N), 1, history="zero", order=order)
    for _ in range(cycles - 1):
        cells.apply(-2.0)
        cells.apply(2.0)
    step, var = companion(device.var[order]), device.var[order]
    powers = [torch.linalg.matrix_power(step, n)[-4:, -4:] @ var[:, :4] for n in range(cycles)]
    expected = sum(p.square().sum(1) for p in powers)
    drawn = cells._history[-4:].double().var(1)
    assert (drawn / expected).tolist() == pytest.approx([1] * 4, abs=5 * math.sqrt(2 / N))
    if order == 10:
        stationary = stationary_covariance(device)[-4:, -4:].diagonal()
        assert (drawn / stationary)[LRS].item() == pytest.approx(0.79, abs=0.025)


def test_zero_history_is_zero_but_for_the_first_cycle(device: DeviceModel) -> None:
    history = draw_history(device, torch.arange(1000), 1, "zero")
    assert history.shape == (40, 1000)
    assert not history[:-4].any()
    assert history[-4:].all()


# States after one pulse


@pytest.mark.parametrize("history", ["stationary", "zero"])
def test_draw_states_is_what_cells_become(history: str, device: DeviceModel) -> None:
    mask = torch.arange(2 * N) % 2 == 0
    drawn = draw_states(device, mask, torch.arange(2 * N), 1, history)
    cells = Cells(device, torch.arange(2 * N), 1, history)
    cells.apply(mask * -2.0)
    assert (cells.set_volts.isneginf() != mask).sum() < 5  # one cell in some 10^6 needs more than -2 V
    assert_same_distribution(drawn[mask], cells.r[mask])
    assert_same_distribution(drawn[~mask], cells.r[~mask])


def test_draw_states_is_what_the_published_cells_become(device: DeviceModel, published: ModuleType) -> None:
    mask = torch.arange(2 * N) % 2 == 0
    drawn = draw_states(device, mask, torch.arange(2 * N), 1, "zero")
    cells = published.CellArrayCPU(2 * N)
    published.applyVoltage(cells, (mask * -2.0).numpy())
    assert_same_distribution(drawn[mask], torch.from_numpy(cells.r)[mask])
    assert_same_distribution(drawn[~mask], torch.from_numpy(cells.r)[~mask])


@pytest.mark.parametrize("history", ["stationary", "zero"])
def test_state_means_are_the_means_of_draws(history: str, device: DeviceModel) -> None:
    n = 1_000_000
    for value, mean in zip((True, False), state_means(device, history), strict=True):
        drawn = draw_states(device, torch.full((n,), value), torch.arange(n), 1, history).double()
        assert drawn.mean().item() == pytest.approx(mean, abs=5 * drawn.std().item() / math.sqrt(n))


def test_state_means_give_the_published_current_scale(device: DeviceModel) -> None:
    """8020 per ampere: the mean of U / (I_LRS - I_HRS) over 0.1 ... 0.6 V, by 0.6 V, of the population's mean cell."""
    volts = torch.linspace(0.1, 0.6, 6, dtype=torch.float64)
    r_set, r_unset = state_means(device, "zero")
    current = (r_set - r_unset) * device.window_amperes(volts)
    assert (volts / current).mean().item() / 0.6 == pytest.approx(8020, rel=2e-3)
    ideal = -device.window_amperes(volts)  # and 5476 for cells at r = 0 and 1
    assert (volts / ideal).mean().item() / 0.6 == pytest.approx(5476, rel=2e-4)


def test_a_state_is_a_function_of_key_and_counter(device: DeviceModel) -> None:
    cells = torch.arange(2**16)
    mask = cells % 3 == 0
    drawn = draw_states(device, mask, cells, 7)
    assert torch.equal(draw_states(device, mask, cells, 7), drawn)
    assert (draw_states(device, mask, cells, 8) != drawn).double().mean() > 0.99
    order = torch.randperm(len(cells), generator=torch.Generator().manual_seed(1))[:1000]
    assert torch.equal(draw_states(device, mask[order], cells[order], 7), drawn[order])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(0, 39))
def test_a_cell_does_not_depend_on_the_mask_of_the_others(mask: list[bool], flip: int) -> None:
    ours = torch.tensor(mask)
    other = ours.clone()
    other[flip % len(mask)] ^= True
    a, b = (draw_states(DEVICE, m, torch.arange(len(mask)), 3) for m in (ours, other))
    assert torch.equal(a[ours == other], b[ours == other])
    assert (a != b)[flip % len(mask)]


# Series of cycles


def test_drawn_cycles_are_those_of_cycled_cells(device: DeviceModel) -> None:
    """After 30 cycles: distributions of each feature, and how two successive cycles go together."""
    n, cycles = 20_000, 30
    drawn = draw_cycles(device, torch.arange(n), 1, cycles)
    assert drawn.shape == (4, n, cycles)
    cells = Cells(device, torch.arange(n), 2)
    for _ in range(cycles - 2):
        cells.apply(-2.0)
        cells.apply(2.0)
    before = cells.features.clone()
    cells.apply(-2.0)
    cells.apply(2.0)
    for feature in range(4):
        assert_same_distribution(drawn[feature, :, -1], cells.features[feature])
        assert_same_distribution(drawn[feature, :, -1] - drawn[feature, :, -2], (cells.features - before)[feature])


@pytest.mark.parametrize("order", [1, 10])
def test_variates_follow_the_process(order: int, device: DeviceModel) -> None:
    """Each x less what the cycles before it predict is B eps: independent of them, with covariance B B^T."""
    n, cycles = 2000, 40
    x = draw_variates(device, torch.arange(n), 1, cycles, order=order).double()
    var = device.var[order]
    past = torch.stack([x[:, :, start : start + order] for start in range(cycles - order)])  # (starts, 4, n, order)
    predicted = torch.einsum("ijk,sknj->sin", var[:, 4:].view(4, order, 4), past.permute(0, 1, 2, 3))
    noise = x[:, :, order:].permute(2, 0, 1) - predicted
    samples = noise.numel() // 4
    flat = noise.transpose(0, 1).reshape(4, -1)
    expected = var[:, :4] @ var[:, :4].T
    assert (flat @ flat.T / samples - expected).abs().max() < 5 * math.sqrt(2 / samples)
    assert (torch.einsum("sin,sjn->ij", noise, past[..., -1]) / samples).abs().max() < 5 / math.sqrt(samples)


def test_autocovariances_are_those_of_the_stationary_history(device: DeviceModel) -> None:
    """Blocks of the covariance of a history, and of the next ones by the process itself."""
    history, lagged = stationary_covariance(device), stationary_autocovariances(device, 12)
    for lag in range(10):
        torch.testing.assert_close(lagged[lag], history[-4:, 36 - 4 * lag : 40 - 4 * lag], rtol=1e-9, atol=1e-12)
    a = [device.var[10][:, 44 - 4 * lag : 48 - 4 * lag] for lag in range(1, 11)]
    for lag in (10, 11, 12):
        torch.testing.assert_close(
            lagged[lag], sum(a[i] @ lagged[lag - 1 - i] for i in range(10)), rtol=1e-9, atol=1e-12
        )


def test_a_zero_history_starts_a_series(device: DeviceModel) -> None:
    n = 50_000
    first = draw_variates(device, torch.arange(n), 1, 1, "zero")[:, :, 0]
    expected = device.var[10][:, :4] @ device.var[10][:, :4].T
    assert (torch.cov(first.double()) - expected).abs().max() < 5 * math.sqrt(2 / n)
