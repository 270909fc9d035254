"""The whole fit: measurements drawn from a model give back that model.

What can be told from a finite sample follows from the model itself, so most tolerances are computed: a coefficient of
the process has the asymptotic covariance of least squares, a device's mean that of a series with its spectrum.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from memsim.device import DeviceModel, load_device, save_device
from memsim.device.cycles.cells import draw_cycles
from memsim.device.cycles.features import draw_offsets_and_scales, stationary_autocovariances, stationary_covariance
from memsim.device.cycles.model import HRS, LRS, UR
from memsim.device.interface import polynomial
from memsim.errors import InputError
from memsim.fit import Fit, FitOptions, Measurements, fit_model, read_measurements
from memsim.fit.twin import Statistics
from memsim.fit.var import correlations, spectral_radius
from tests.tools.example_measurements import feature_table, protocol, sweeps, without_some, write

from .conftest import CYCLES, DEVICES, moments, small_csv

ORDER = 10


@pytest.fixture(scope="module")
def fit(measured: Measurements) -> Fit:
    return fit_model(measured)


@pytest.fixture(scope="module")
def unit_variance(device: DeviceModel) -> DeviceModel:
    """The published model in the fit's convention: x and g(x) have unit variance, g has no mean.

    Only sigma gamma can be measured: sigma takes the deviation of g, mu its mean.
    """
    std = stationary_autocovariances(device, 0)[0].diagonal().sqrt()
    gamma = device.gamma * std[:, None] ** torch.arange(4, -1, -1)
    x, weight = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(20))
    weight /= weight.sum()
    g = torch.stack([polynomial(row, x) for row in gamma])
    mean, deviation = g @ weight, ((g - (g @ weight)[:, None]).square() @ weight).sqrt()
    gamma[:, -1] -= mean
    change = torch.eye(8, dtype=torch.float64)
    change[range(4), range(4, 8)] = mean
    change[range(4, 8), range(4, 8)] = deviation
    var = {p: torch.cat([m[:, :4], m[:, 4:] * std.repeat(p)], dim=1) / std[:, None] for p, m in device.var.items()}
    covariances = change @ device.mixture_cholesky @ device.mixture_cholesky.mT @ change.T
    return dataclasses.replace(
        device,
        gamma=gamma / deviation[:, None],
        var=var,
        mixture_means=change @ device.mixture_means,
        mixture_cholesky=torch.linalg.cholesky(covariances),
    )


def test_the_convention_changes_no_feature(device: DeviceModel, unit_variance: DeviceModel) -> None:
    ours, theirs = (draw_cycles(m, torch.arange(2000), 1, 2) for m in (unit_variance, device))
    for a, b in zip(ours, theirs, strict=True):
        levels = torch.tensor([0.05, 0.5, 0.95])
        torch.testing.assert_close(a.flatten().quantile(levels), b.flatten().quantile(levels), rtol=0.01, atol=0)


def coefficient_errors(model: DeviceModel, samples: int) -> torch.Tensor:
    """[4, 4p] standard errors of A_p ... A_1 from `samples` cycles, by noise and inverse covariance of the past."""
    var = model.var[ORDER]
    noise = (var[:, :4] @ var[:, :4].T).diagonal()
    past = torch.linalg.inv(stationary_covariance(model)).diagonal()
    return (torch.outer(noise, past) / samples).sqrt()


def mean_errors(model: DeviceModel, cycles: int) -> torch.Tensor:
    """[4] standard errors of a device's mean, in units of its deviation: the spectrum at 0, by the cycles."""
    covariances = stationary_autocovariances(model, 400).diagonal(dim1=1, dim2=2)
    return ((covariances[0] + 2 * covariances[1:].sum(0)) / cycles).sqrt()


def scale_errors(model: DeviceModel, cycles: int) -> torch.Tensor:
    """[4] relative standard errors of a device's deviation, were g linear; half again for a g that is not."""
    square = stationary_autocovariances(model, 400).diagonal(dim1=1, dim2=2).square()
    return 1.5 * ((square[0] + 2 * square[1:].sum(0)) / (2 * cycles)).sqrt()


def test_the_process_is_recovered(fit: Fit, unit_variance: DeviceModel) -> None:
    """Within five standard errors, in every one of the 160 coefficients."""
    truth, ours = unit_variance.var[ORDER], fit.model.var[ORDER]
    errors = coefficient_errors(unit_variance, DEVICES * CYCLES)
    assert ((ours - truth)[:, 4:].abs() < 5 * errors).all()
    assert (ours - truth)[:, :4].abs().max() < 5 / np.sqrt(DEVICES * CYCLES) + 0.002
    assert ours[:, :4].triu(1).abs().max() == 0


def test_autocorrelations_are_recovered(fit: Fit, device: DeviceModel) -> None:
    ours, theirs = (correlations(stationary_autocovariances(m, ORDER).numpy()) for m in (fit.model, device))
    square = np.square(theirs[1:, 2, 2]).sum() * 3  # of the slowest feature, the tail beyond lag 10 included
    assert np.abs(ours - theirs).max() < 5 * np.sqrt((1 + 2 * square) / (DEVICES * CYCLES))


def test_without_the_correction_they_are_not(measured: Measurements, device: DeviceModel) -> None:
    """What a twin takes out: at 600 cycles, 0.03 of the LRS autocorrelations."""
    raw = Statistics.of(measured.y, ORDER).correlations
    theirs = correlations(stationary_autocovariances(device, ORDER).numpy())
    assert (theirs - raw)[1:, LRS, LRS].min() > 0.02


def test_every_order_is_stored_and_stationary(fit: Fit) -> None:
    assert list(fit.model.var) == list(range(1, ORDER + 1))
    assert all(spectral_radius(var.numpy()) < 1 for var in fit.model.var.values())
    assert fit.spectral_radius == pytest.approx(0.968, abs=0.01)


def drawn_devices(device: DeviceModel, seed: int, devices: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(mu, sigma) of the devices that `feature_table` drew with this seed."""
    return draw_offsets_and_scales(device, torch.arange(devices), seed)


def true_moments(model: DeviceModel, mu: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """[8, devices] means and deviations of the features of devices with these offsets and scales."""
    std = stationary_autocovariances(model, 0)[0].diagonal().sqrt()
    x, weight = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(20))
    weight /= weight.sum()
    g = torch.stack([polynomial(row, x * s) for row, s in zip(model.gamma, std, strict=True)])
    mean, deviation = g @ weight, ((g - (g @ weight)[:, None]).square() @ weight).sqrt()
    return torch.cat([mu + sigma * mean[:, None], sigma * deviation[:, None]])


def test_devices_are_recovered(fit: Fit, device: DeviceModel, unit_variance: DeviceModel) -> None:
    """Means and spreads of the mixture against those of the devices that were drawn."""
    truth = true_moments(device, *drawn_devices(device, 11, DEVICES)).double()
    scale = truth[4:].square().mean(1).sqrt()
    noise = torch.cat([mean_errors(unit_variance, CYCLES), scale_errors(unit_variance, CYCLES)]) * scale.repeat(2)
    mean, covariance = map(torch.from_numpy, moments(fit.mixture))
    assert ((mean - truth.mean(1)).abs() < 5 * noise / np.sqrt(DEVICES)).all()
    # Var(estimate) = Var(truth) + Var(noise): the error of the difference, of the mixed term and of the noise itself
    spread, std = covariance.diagonal().sqrt(), truth.std(1)
    error = (std * noise / np.sqrt(DEVICES) + noise.square() / np.sqrt(2 * DEVICES)) / std
    assert ((spread - std).abs() < 4 * error + 0.01 * std).all()


def test_noise_is_a_large_part_of_what_is_seen(fit: Fit) -> None:
    """Without taking it out, the spread of the HRS's deviations would be 8 % too large."""
    share = dict(zip(["HRS", "US", "LRS", "UR"], fit.mixture.noise_share[4:], strict=True))
    assert share["LRS"] > 0.1
    assert share["HRS"] > 0.15


def test_polynomials_are_recovered(fit: Fit, unit_variance: DeviceModel) -> None:
    """Over 1 to 99 %, within 5 standard errors of a quantile there: some 10,000 of the cycles are independent."""
    x = torch.linspace(-2.3, 2.3, 24, dtype=torch.float64)
    for feature in range(4):
        ours, theirs = (polynomial(model.gamma[feature], x) for model in (fit.model, unit_variance))
        assert (ours - theirs).abs().max() < 5 * 0.01, feature


@pytest.mark.slow
def test_the_fit_is_a_function_of_data_and_seed(fit: Fit, measured: Measurements) -> None:
    again = fit_model(measured)
    assert all(torch.equal(again.model.var[p], fit.model.var[p]) for p in fit.model.var)
    assert torch.equal(again.model.mixture_means, fit.model.mixture_means)


@pytest.mark.slow
def test_gaps_change_little(device: DeviceModel, tmp_path: Path, fit: Fit, unit_variance: DeviceModel) -> None:
    table = feature_table(device, DEVICES, CYCLES, 11)
    write([without_some(table, 0.15, np.random.default_rng(1))], tmp_path / "t.parquet")
    holes = fit_model(read_measurements(tmp_path / "t.parquet"))
    errors = coefficient_errors(unit_variance, DEVICES * CYCLES)
    truth = unit_variance.var[ORDER]
    # pairs of both values: 0.85^4 of them all, and autocovariances from pairs are noisier than regressions
    assert ((holes.model.var[ORDER] - truth)[:, 4:].abs() < 2 * 5 * errors).all()
    np.testing.assert_allclose(moments(holes.mixture)[0][:4], moments(fit.mixture)[0][:4], rtol=0.005)


def test_what_was_not_measured_is_that_of_the_base_model(
    measured: Measurements, device: DeviceModel, tmp_path: Path
) -> None:
    rows = 30 * 300
    table = feature_table(device, 30, 300, 4)
    del table["ur_volts"]
    write([table], tmp_path / "t.npz")
    read = read_measurements(tmp_path / "t.npz", from_base=["ur"])
    assert read.rows == rows
    model = fit_model(read, FitOptions(order=3)).model
    assert list(model.var) == [1, 2, 3]
    ours, theirs = (draw_cycles(m, torch.arange(4000), 9, 3)[UR] for m in (model, device))
    levels = torch.tensor([0.05, 0.5, 0.95])
    torch.testing.assert_close(ours.flatten().quantile(levels), theirs.flatten().quantile(levels), rtol=0.01, atol=0)
    correlation = correlations(stationary_autocovariances(model, 3).numpy())
    of_base = correlations(stationary_autocovariances(device, 3).numpy())
    np.testing.assert_allclose(correlation[:, UR, UR], of_base[:, UR, UR], atol=1e-9)
    assert np.abs(correlation[:, UR, :UR]).max() < 1e-9
    assert model.licence == device.licence


def test_a_fitted_model_is_a_device_file(fit: Fit, measured: Measurements, tmp_path: Path) -> None:
    save_device(fit.model, tmp_path / "mine.safetensors", {"fit": json.dumps(fit.facts(measured))})
    loaded = load_device(tmp_path / "mine.safetensors")
    assert torch.equal(loaded.var[ORDER], fit.model.var[ORDER])
    with safe_open(tmp_path / "mine.safetensors", framework="pt") as file:
        facts = json.loads(file.metadata()["fit"])
    assert facts["sha256"] == measured.sha256
    assert (facts["devices"], facts["rows"]) == (DEVICES, DEVICES * CYCLES)
    assert facts["options"]["order"] == ORDER
    assert str(tmp_path) not in json.dumps(facts)


def rows_of(devices: int, cycles: int, change=lambda d, c, v: v) -> list[str]:
    rng = np.random.default_rng(0)
    rows = []
    for d in range(devices):
        for c in range(cycles):
            values = [8e4 * (1 + 0.1 * rng.random()), -0.7 - 0.1 * rng.random(), 5e3 + rng.random(), 0.7 + rng.random()]
            rows.append(f"{d},{c}," + ",".join(f"{value:.6g}" for value in change(d, c, values)))
    return rows


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (rows_of(20, 30), {}, "0 of 20 devices have the 50 cycles that order 10 needs; 16 devices are .*--order 6$"),
        (
            rows_of(10, 60),
            {},
            "10 of 10 devices have the 50 cycles that order 10 needs; 16 devices are needed; several files, or",
        ),
        (rows_of(20, 60), {"components": 2}, "32 devices are needed for 2 components; try --components 1$"),
        (rows_of(16, 60), {}, "order 10 needs 2000 cycles of all devices together, but there are 960; try --order 4$"),
        (rows_of(16, 30, lambda d, c, v: [*v[:2], 5e3, v[3]]), {}, "LRS is constant; --from-base"),
        (rows_of(16, 30, lambda d, c, v: [*v[:3], np.nan]), {}, "no cycle has a UR; --from-base"),
        (
            rows_of(16, 30, lambda d, c, v: [v[0], -v[1], *v[2:]]),
            {},
            r"row 1: us_volts is .*479 more\); --polarity neg",
        ),
    ],
)
def test_what_cannot_be_fitted_is_said(tmp_path: Path, rows, options, message: str) -> None:
    read = read_measurements(small_csv(tmp_path / "t.csv", rows))
    with pytest.raises(InputError, match=message) as caught:
        fit_model(read, FitOptions(**options))
    assert "\n" not in str(caught.value)


def test_short_and_constant_devices_are_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memsim.fit.twin.TWIN_CYCLES", 60_000)

    def change(d: int, c: int, values: list[float]) -> list[float]:
        return [*values[:3], 0.7] if d == 3 else values

    rows = [row for row in rows_of(18, 40, change) if not row.startswith("5,") or int(row.split(",")[1]) < 10]
    fitted = fit_model(read_measurements(small_csv(tmp_path / "t.csv", rows)), FitOptions(order=2))
    assert fitted.devices.tolist() == [d for d in range(18) if d not in (3, 5)]
    assert fitted.notes[0] == "2 of 18 devices were left out: under 20 cycles, or constant"


# At full size: what the published parameters must come back to


def _round_trip(model: DeviceModel, fitted: DeviceModel, unit_variance: DeviceModel) -> None:
    truth = unit_variance.var[ORDER]
    assert (fitted.var[ORDER] - truth)[:, 4:].abs().max() < 0.008
    assert (fitted.var[ORDER] - truth)[:, :4].abs().max() < 0.015
    ours, theirs = (correlations(stationary_autocovariances(m, ORDER).numpy()) for m in (fitted, model))
    for lag in (1, 10):
        assert np.abs(ours - theirs)[lag].diagonal().max() < 0.01


def _same_devices(fit: Fit, truth: torch.Tensor, own: slice = slice(None)) -> None:
    mean, covariance = map(torch.from_numpy, moments(fit.mixture))
    spread = covariance.diagonal().sqrt()
    assert ((mean / truth.mean(1) - 1)[:4].abs() < 0.001).all()
    assert ((spread / truth.std(1) - 1)[own].abs() < 0.06).all()


def _same_quantiles(fit: Fit, features: np.ndarray) -> None:
    """Of drawn cells and of the measured ones, 1 to 99 %, within 2 %; `features` [4, devices, cycles] with HRS in ohm.

    512 devices of the model are not the 512 that were measured, so many more are drawn.
    """
    drawn = draw_cycles(fit.model, torch.arange(50_000), 2, 20).numpy()
    levels = np.arange(1, 100) / 100
    for ours, theirs in zip(drawn, features, strict=True):
        assert np.abs(np.quantile(ours, levels) / np.nanquantile(theirs, levels) - 1).max() < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_published_parameters_come_back(
    device: DeviceModel, unit_variance: DeviceModel, tmp_path: Path, seed: int
) -> None:
    """512 devices x 3000 cycles. Devices against those that were drawn: 512 of them have other means than all."""
    table = feature_table(device, 512, 3000, seed)
    write([table], tmp_path / "t.parquet")
    read = read_measurements(tmp_path / "t.parquet")
    fit = fit_model(read)
    _round_trip(device, fit.model, unit_variance)
    _same_devices(fit, true_moments(device, *drawn_devices(device, seed, 512)).double())
    features = read.y.copy()
    features[HRS] = 10 ** features[HRS]
    _same_quantiles(fit, features)


@pytest.mark.slow
def test_the_published_parameters_come_back_through_noisy_sweeps(
    device: DeviceModel, unit_variance: DeviceModel, tmp_path: Path
) -> None:
    """512 devices x 1000 cycles in steps of 20 mV: sampling errors are 1.7 times those of 3000 cycles.

    A cell that draws a SET voltage beyond the sweep's -1.5 V stays in its HRS for good, and some do. The features of
    the cells swept would count that one draw hundreds of times, so that the truth is what the cells draw.
    """
    devices, cycles, seed = 512, 1000, 3
    blocks = sweeps(device, devices, cycles, seed, volts=protocol())
    write((block.table() for block in blocks), tmp_path / "t.parquet")
    fit = fit_model(read_measurements(tmp_path / "t.parquet"))
    errors = coefficient_errors(unit_variance, devices * cycles)
    difference = fit.model.var[ORDER] - unit_variance.var[ORDER]
    assert (difference[:, 4:].abs() < 5 * errors + 0.003).all()
    assert difference[:, :4].abs().max() < 0.015
    ours, theirs = (correlations(stationary_autocovariances(m, ORDER).numpy()) for m in (fit.model, device))
    for lag in (1, 10):
        assert np.abs(ours - theirs)[lag].diagonal().max() < 0.01
    mu, sigma = drawn_devices(device, seed, devices)
    _same_devices(fit, true_moments(device, mu, sigma).double()[:, fit.devices])
    drawn = draw_cycles(device, torch.arange(devices), seed, cycles).numpy()
    _same_quantiles(fit, drawn[:, fit.devices])
