"""The shipped devices of kind `levels` against brute force by the formulas of their sources, a million cells each."""

from __future__ import annotations

import math
import subprocess
import sys
import tarfile
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch

from memsim.config.resources import configs_root
from memsim.device import load_device
from memsim.device.levels.device import LevelsDevice
from memsim.hardware import SinglePulse

LEVELS, CELLS = 16, 1 << 16
DAY = 86400.0
Floats = np.ndarray
SCHEME = SinglePulse()


def poly(*ascending: float) -> Callable[[Floats], Floats]:
    return lambda x: sum(c * x**power for power, c in enumerate(ascending))


def pieces(edge: float, below: Callable[[Floats], Floats], above: Callable[[Floats], Floats]):
    return lambda x: np.where(x < edge, below(np.maximum(x, 1e-9)), above(x))


def log_clip(slope: float, offset: float, low: float, high: float) -> Callable[[Floats], Floats]:
    return lambda x: np.clip(slope * np.log(np.maximum(x, 1e-9)) + offset, low, high)


def pcm(g_max, sigma, mu, s, q, t0, t_read, seconds, target, rng):
    """PCM as in the inference noise models of aihwkit: conductances in microsiemens."""
    x = target / g_max
    programmed = np.maximum(target + np.maximum(sigma(x), 0) * rng.standard_normal(target.shape), 0)
    nu = np.abs(mu(x) + s(x) * rng.standard_normal(target.shape))
    drifted = programmed * ((seconds + t0) / t0) ** -nu
    noise = q(programmed / g_max) * math.sqrt(math.log((seconds + t0 + t_read) / (2 * t_read)))
    return np.maximum(drifted * (1 + noise * rng.standard_normal(target.shape)), 0)


def nandakumar(seconds, target, rng):
    return pcm(
        25.0,
        poly(0.26348, 1.9650, -1.1731),
        log_clip(-0.0155, 0.0244, 0.049, 0.1),
        log_clip(-0.0125, -0.0059, 0.008, 0.045),
        lambda x: np.minimum(0.0088 / np.maximum(x**0.65, 1e-3), 0.2),
        20.0,
        250e-9,
        seconds,
        target,
        rng,
    )


_MU = pieces(0.0945, log_clip(-0.0387, -0.0182, 0.072, 0.13), poly(0.0736, -0.0126, -0.0436))


def hermes_pair(seconds, target, rng):
    return pcm(
        20.7,
        poly(0.16603222, 4.71806468, -8.48101252, 4.68961419),
        _MU,
        pieces(0.3055, log_clip(-0.0117, -0.0057, 0.0091, 0.04), poly(0.0073, 0.0093, -0.0118)),
        pieces(0.16, log_clip(-0.0117, -0.0069, 0.015, 0.04), poly(0.0123, 0.0211, -0.0280, 0.0069)),
        300.0,
        512e-9,
        seconds,
        target,
        rng,
    )


def hermes(seconds, target, rng):
    return pcm(
        10.35,
        poly(0.15781817, 2.32443916, -2.16310839, 0.68841818),
        _MU,
        pieces(0.3039, log_clip(-0.0120, -0.0023, 0.0124, 0.04), poly(0.0104, 0.0116, -0.0165)),
        pieces(0.1591, log_clip(-0.0078, 0.0038, 0.0179, 0.04), poly(0.0088, 0.0768, -0.1352, 0.0664)),
        200.0,
        512e-9,
        seconds,
        target,
        rng,
    )


_WAN = {
    0.0: (0.348, 16.030, -43.853, 45.393, -16.815),
    1.0: (0.348, 16.030, -43.853, 45.393, -16.815),
    DAY: (0.701, 22.086, -50.773, 47.095, -16.458),
    2 * DAY: (0.782, 20.274, -43.507, 37.062, -11.934),
}


def wan(seconds, target, rng):
    sigma = np.maximum(poly(*_WAN[seconds])(target / 40.0), 0)
    return np.maximum(target + sigma * rng.standard_normal(target.shape), 0)


def cmo(accepted: tuple[float, float]):
    def simulate(seconds, target, rng):
        g = np.maximum(target + (accepted[0] + accepted[1] * target) * rng.standard_normal(target.shape), 0)
        moved = g
        if seconds > 0:
            sigma = 0.04201137 * math.log(seconds) + 0.41183342
            moved = g - 0.08900206 * math.log(seconds) + sigma * rng.standard_normal(target.shape)
        ratio = max(math.log((seconds + 1e-6) / 2e-6), 0.0)
        noise = 0.0277316483 * np.log10(g) * math.sqrt(ratio)
        return np.maximum(moved + noise * rng.standard_normal(target.shape), 0)

    return simulate


def joshi(seconds, target, rng):
    sigma = np.maximum(-0.00178767 * target**2 + 0.07585724 * target + 0.28638599, 0)
    return np.maximum(target + sigma * rng.standard_normal(target.shape), 0)


def milo(seconds, target, rng):
    return target + np.maximum(4.782321 - 0.009107 * target, 0) * rng.standard_normal(target.shape)


_SONOS = {0.0: (19.887, 176.31), DAY: (25.591, 186.86), 5 * DAY: (34.579, 207.34)}  # nanoamperes, at 0.1 V


def sonos(seconds, target, rng):
    end, constant = _SONOS[seconds]
    sigma = end * (1 - np.exp(-target * 100 / constant)) / 100
    law = load_device("sonos").file.relaxation
    grid = law.mean.grid
    rows = dict(zip(grid.seconds, grid.values, strict=True))
    mean = np.interp(target, grid.microsiemens, rows[seconds]) if seconds else 0.0
    return np.maximum(target + mean + sigma * rng.standard_normal(target.shape), 0)


PUBLISHED = {
    "pcm-nandakumar": (nandakumar, (0.0, 3600.0, 30 * DAY)),
    "pcm-hermes-pair": (hermes_pair, (0.0, 3600.0, 30 * DAY)),
    "pcm-hermes": (hermes, (0.0, 3600.0, 30 * DAY)),
    "rram-wan": (wan, (0.0, 1.0, DAY, 2 * DAY)),
    "cmo-hfox": (cmo((0.00081107, 0.00106879)), (0.0, 1.0, 30 * DAY)),
    "cmo-hfox-coarse": (cmo((0.0112185391, 0.01129027418)), (0.0, 30 * DAY)),
    "pcm-joshi": (joshi, (0.0,)),
    "rram-milo": (milo, (0.0,)),
    "sonos": (sonos, (0.0, DAY, 5 * DAY)),
}


def drawn(device: LevelsDevice, seconds: float) -> np.ndarray:
    """[levels, cells], in microsiemens, as memsim programs and ages them."""
    digits = torch.arange(LEVELS, dtype=torch.int32).repeat_interleave(CELLS)
    cells = torch.arange(len(digits))
    r = device.programmer(SCHEME, LEVELS)(digits, cells, 11).r
    ageing = device.ageing(seconds, SCHEME, LEVELS, 12)
    if ageing is not None:
        r = ageing(r, digits, cells)
    return ((1 - r.double()) * device.file.microsiemens.high).view(LEVELS, CELLS).numpy()


def require_same_moments(ours: np.ndarray, theirs: np.ndarray, size: float) -> None:
    """Require means and deviations [levels] within five standard errors of two samples [levels, cells], and `size`."""
    error = theirs.std(axis=1) * math.sqrt(2 / CELLS)
    np.testing.assert_array_less(np.abs(ours.mean(axis=1) - theirs.mean(axis=1)), 5 * error + size)
    fourth = ((theirs - theirs.mean(axis=1, keepdims=True)) ** 4).mean(axis=1)
    fourth = np.divide(fourth, theirs.var(axis=1) ** 2, out=np.ones(len(theirs)), where=theirs.var(axis=1) > 0)
    error = theirs.std(axis=1) * np.sqrt((fourth - 1) / 4) * math.sqrt(2 / CELLS)
    np.testing.assert_array_less(np.abs(ours.std(axis=1) - theirs.std(axis=1)), 5 * error + size)


def test_every_shipped_device_is_checked() -> None:
    shipped = {path.stem for path in (configs_root() / "devices").glob("*.yaml")} - {"synaptogen", "rram-relaxation"}
    assert shipped == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_moments_are_those_of_the_formula(name: str) -> None:
    """Means and standard deviations of each level, at each time."""
    simulate, times = PUBLISHED[name]
    device = load_device(name)
    assert isinstance(device, LevelsDevice)
    limits = device.file.microsiemens
    target = np.repeat(np.linspace(limits.low, limits.high, LEVELS)[:, None], CELLS, axis=1)
    for seconds in times:
        theirs = simulate(seconds, target, np.random.default_rng(1))
        require_same_moments(drawn(device, seconds), theirs, 1e-5 * limits.high)


@pytest.mark.parametrize(
    ("name", "digit", "seconds", "mean", "std"),
    [
        # by hand: x = 0.6, sigma = 0.26348 + 1.9650 * 0.6 - 1.1731 * 0.36 = 1.02016; at once q sqrt(ln) = 0.051245
        ("pcm-nandakumar", 9, 0.0, 15.0, math.hypot(1.02016, 15 * 0.0088 / 0.6**0.65 * 4.17836)),
        # x = 0.6: 0.348 + 9.618 - 15.787 + 9.805 - 2.179
        ("rram-wan", 9, 1.0, 24.0, 1.80468),
        # (g = 56.52) the change of 30 days: -0.08900206 * 14.76804; 0.04201137 * 14.76804 + 0.41183342, and the noise
        ("cmo-hfox", 9, 2592000.0, 56.52 - 1.314386, math.hypot(0.061218, 1.032259, 0.0277316 * 1.752202 * 5.28199)),
        ("pcm-joshi", 0, 0.0, 0.2854, 0.2527),  # of a normal variate (0.25, 0.30524) that does not become negative
        ("rram-milo", 15, 0.0, 225.0, 4.782321 - 0.009107 * 225),
    ],
)
def test_golden_numbers(name: str, digit: int, seconds: float, mean: float, std: float) -> None:
    device = load_device(name)
    assert isinstance(device, LevelsDevice)
    found = drawn(device, seconds)[digit]
    assert found.mean() == pytest.approx(mean, rel=3e-3, abs=4e-3)
    assert found.std() == pytest.approx(std, rel=0.015)


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Callable[[], Any]]:
    """Makers of the noise models of IBM's aihwkit, from its source: they need none of what is compiled there."""
    folder = tmp_path_factory.mktemp("aihwkit")
    command = ("download", "--quiet", "--no-deps", "--no-binary", "aihwkit", "--dest", folder, "aihwkit==1.2.0")
    if subprocess.run([sys.executable, "-m", "pip", *map(str, command)], capture_output=True).returncode:
        pytest.skip("the source of aihwkit 1.2.0 cannot be fetched")
    (archive,) = folder.glob("aihwkit-*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder / "aihwkit-1.2.0" / "src")
        pcm, hermes, reram = (import_module(f"aihwkit.inference.noise.{name}") for name in ("pcm", "hermes", "reram"))
    cmo = partial(reram.ReRamCMONoiseModel, g_min=9.0, g_max=88.2)
    return {
        "pcm-nandakumar": partial(pcm.PCMLikeNoiseModel, g_max=25.0),
        "pcm-hermes-pair": partial(hermes.HermesNoiseModel, num_devices=2),
        "pcm-hermes": partial(hermes.HermesNoiseModel, num_devices=1),
        "rram-wan": partial(reram.ReRamWan2022NoiseModel, g_max=40.0),
        "cmo-hfox": partial(cmo, acceptance_range=0.2),
        "cmo-hfox-coarse": partial(cmo, acceptance_range=2),
    }


@pytest.mark.slow  # fetches a package
@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("pcm-nandakumar", (0.0, 3600.0, 30 * DAY)),
        ("pcm-hermes-pair", (3600.0, 30 * DAY)),
        ("pcm-hermes", (3600.0, 30 * DAY)),
        ("rram-wan", (1.0, DAY, 2 * DAY)),
        ("cmo-hfox", (3600.0, 30 * DAY)),
        ("cmo-hfox-coarse", (3600.0, 30 * DAY)),
    ],
)
def test_moments_are_those_of_aihwkit(name: str, times: tuple[float, ...], peers: dict[str, Callable[[], Any]]) -> None:
    """Side by side with the published package, which ends at the first and the last conductance where ours goes on."""
    model, device = peers[name](), load_device(name)
    assert isinstance(device, LevelsDevice)
    limits = device.file.microsiemens
    torch.manual_seed(1)
    target = torch.linspace(limits.low, limits.high, LEVELS)[:, None].repeat(1, CELLS)
    inner = slice(1, -1)
    for seconds in times:
        programmed = model.apply_programming_noise_to_conductance(target.clone())
        parameters = model.generate_drift_coefficients(target)
        given = target if name == "rram-wan" else parameters
        theirs = model.apply_drift_noise_to_conductance(programmed, given, seconds).double().numpy()[inner]
        require_same_moments(drawn(device, seconds)[inner], theirs, 1e-5 * limits.high)
