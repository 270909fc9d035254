"""Features from I-V sweeps, against the cells that were swept."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memsim.device import DeviceModel, load_device
from memsim.device.cycles.model import HRS, LRS, UR, US
from memsim.errors import InputError
from memsim.fit import Measurements, read_measurements
from memsim.fit.sweeps import SweepReader
from tests.tools.example_measurements import Table, protocol, sweeps, without_some, write

DEVICES, CYCLES = 20, 20


def swept(device: DeviceModel, devices: int = DEVICES, cycles: int = CYCLES, **options) -> tuple[Table, np.ndarray]:
    """(the samples, the cells' features [4, devices, cycles] with HRS in log10 ohm)."""
    (block,) = sweeps(device, devices, cycles, 7, **options)
    truth = block.features.copy()
    truth[HRS] = np.log10(truth[HRS])
    return block.table(), truth


@pytest.fixture(scope="module")
def fine(device: DeviceModel) -> tuple[Table, np.ndarray]:
    """Steps of 10 mV, 0.1 uA of noise (4 % of the current at which an HRS is read)."""
    return swept(device, volts=protocol(step_volts=0.01))


def extracted(table: Table, path: Path, **options) -> Measurements:
    write([table], path / "sweeps.parquet")
    return read_measurements(path / "sweeps.parquet", **options)


@pytest.mark.parametrize(
    ("step_volts", "noise_amperes", "compliance_amperes"),
    [
        (0.01, 0.0, np.inf),
        pytest.param(0.01, 1e-7, np.inf, marks=pytest.mark.slow),
        (0.02, 1e-7, 3e-4),
        pytest.param(0.01, 1e-6, 1e-4, marks=pytest.mark.slow),
        (0.04, 1e-7, np.inf),
    ],
)
def test_features_are_those_of_the_cells(
    device: DeviceModel, tmp_path: Path, step_volts: float, noise_amperes: float, compliance_amperes: float
) -> None:
    table, truth = swept(
        device,
        volts=protocol(step_volts=step_volts),
        noise_amperes=noise_amperes,
        compliance_amperes=compliance_amperes,
    )
    read = extracted(table, tmp_path)
    assert read.outcomes["complete"] >= 0.99 * DEVICES * CYCLES
    error = read.y - truth
    assert np.isnan(error).mean() < 0.01
    n = DEVICES * CYCLES
    # A resistance comes from the samples of 0.3 U0 around U0 = 0.2 V: noise / sqrt(samples) of a current of U0 / R.
    relative = noise_amperes / np.sqrt(0.12 / step_volts) / 0.2
    lrs_std = relative * truth[LRS].mean() ** 2
    assert np.nanstd(error[LRS]) < 1.6 * lrs_std + 0.5
    assert abs(np.nanmean(error[LRS])) < 5 * lrs_std / np.sqrt(n) + 0.001 * truth[LRS].mean()
    hrs_std = relative * np.sqrt(np.mean(100 ** truth[HRS])) / np.log(10)  # of its log10, where it is small
    assert np.nanmedian(np.abs(error[HRS])) < 0.6745 * hrs_std + 0.002
    assert abs(np.nanmedian(error[HRS])) < 5 * hrs_std / np.sqrt(n) + 0.002
    # A cell SETs somewhere between two samples.
    assert np.nanmax(np.abs(error[US])) < step_volts / 2 + 1e-4
    assert abs(np.nanmean(error[US])) < 5 * step_volts / np.sqrt(12 * n)
    # The kink of RESET is found to a fraction of a step; noise moves it by noise by slope (0.7 mA/V), at worst.
    assert np.nanstd(error[UR]) < 0.05 * step_volts + 2 * noise_amperes / 7e-4
    assert abs(np.nanmean(error[UR])) < 0.0005


def test_batches_make_no_difference(fine: tuple[Table, np.ndarray], tmp_path: Path, monkeypatch) -> None:
    import memsim.fit.tables as tables

    whole = extracted(fine[0], tmp_path)
    monkeypatch.setattr(tables, "BATCH_ROWS", 1000)  # a cycle has 601 samples
    pieces = extracted(fine[0], tmp_path)
    np.testing.assert_allclose(pieces.y, whole.y, rtol=1e-5)
    assert pieces.outcomes == whole.outcomes
    assert pieces.traces is not None
    assert len(pieces.traces) == DEVICES * CYCLES


def test_missing_cycles_leave_gaps(fine: tuple[Table, np.ndarray], tmp_path: Path) -> None:
    table, truth = fine
    read = extracted(without_some(table, 0.2, np.random.default_rng(1)), tmp_path)
    assert np.isnan(read.y[LRS]).mean() == pytest.approx(0.2, abs=0.07)
    devices, offsets = np.array([int(name) for name in read.devices]), read.first_cycles - 1
    row, column = np.nonzero(np.isfinite(read.y[LRS]))
    np.testing.assert_allclose(read.y[LRS][row, column], truth[LRS][devices[row], column + offsets[row]], rtol=0.01)
    # where the cycle before is missing, the HRS is read at -U0 instead
    alone = np.isfinite(read.y[HRS][:, 1:]) & np.isnan(read.y[LRS][:, :-1])
    assert alone.sum() > 30
    row, column = np.nonzero(alone)
    error = read.y[HRS][row, column + 1] - truth[HRS][devices[row], column + 1 + offsets[row]]
    assert np.abs(np.median(error)) < 0.02
    assert np.quantile(np.abs(error), 0.9) < 0.08


def test_units_and_polarity(fine: tuple[Table, np.ndarray], tmp_path: Path) -> None:
    table = dict(fine[0])
    table["voltage_mV"] = -1e3 * table.pop("voltage_volts")
    table["current_uA"] = -1e6 * table.pop("current_amperes")
    read = extracted(table, tmp_path, polarity="positive")
    np.testing.assert_allclose(read.y, extracted(fine[0], tmp_path).y, rtol=1e-3)


def test_cells_that_do_not_switch_have_no_features(device: DeviceModel, tmp_path: Path) -> None:
    """A sweep to -0.6 V sets the 15 % or so of the cells whose US is above that, one to 0.73 V resets half of them."""
    table, truth = swept(device, volts=protocol(-0.6, 1.5, 0.01))
    read = extracted(table, tmp_path)
    assert np.isnan(read.y[US])[truth[US] < -0.62].all()
    assert read.outcomes["failed SET"] > 0.5 * DEVICES * CYCLES
    table, _ = swept(device, volts=protocol(-1.5, 0.65, 0.01))
    read = extracted(table, tmp_path)
    assert read.outcomes["failed RESET"] + read.outcomes["failed SET"] > 0.8 * DEVICES * CYCLES


def test_glitches_are_left_out(fine: tuple[Table, np.ndarray], tmp_path: Path) -> None:
    """Samples without a value, and a cycle that stops half way."""
    table = {name: column.copy() for name, column in fine[0].items()}
    table["current_amperes"][np.random.default_rng(2).random(len(table["cycle"])) < 0.01] = np.nan
    cut = (table["device"] == 3) & (table["cycle"] == 5) & (np.arange(len(table["cycle"])) % 601 > 200)
    read = extracted({name: column[~cut] for name, column in table.items()}, tmp_path)
    assert read.outcomes["incomplete"] == 1
    assert np.isnan(read.y[1:, 3, 4]).all()
    error = np.abs(read.y - fine[1])
    assert np.nanquantile(error[US], 0.99) < 0.011
    assert np.nanquantile(error[UR], 0.99) < 0.005


def edited(fine: tuple[Table, np.ndarray], **changes) -> Table:
    """The first 3 cycles of device 0 with some columns changed by functions of (column, sample in the cycle)."""
    table = {name: column[(fine[0]["device"] == 0) & (fine[0]["cycle"] <= 3)] for name, column in fine[0].items()}
    return table | {name: change(table[name].copy()) for name, change in changes.items()}


def put(value: float, at: int):
    def change(column: np.ndarray) -> np.ndarray:
        column[at] = value
        return column

    return change


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time_seconds": put(0.0, 700)}, "row 701: time 0 s does not follow .* in order of time"),
        ({"voltage_volts": put(-0.2, 601 + 100)}, r"row 70[23]: the voltage turns back to -"),
        ({"voltage_volts": lambda v: -v}, r"row 1: this sweep goes to 1.5 V before -1.5 V; .*--polarity positive"),
        ({"voltage_volts": lambda v: np.abs(v)}, r"row 1: sweeps reach from 0 to 1.5 V; expected 0 -> Vneg"),
        (
            {"voltage_volts": lambda v: np.where(np.arange(len(v)) // 601 == 1, -v, v)},
            "row 602: this sweep goes to 1.5 V before -1.5 V",
        ),
        ({"cycle": lambda c: np.where(c == 3, 1, c)}, "row 1203: device 0: cycle 1 comes after cycle 2"),
    ],
)
def test_sweeps_of_another_shape_are_named(fine, tmp_path: Path, changes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        extracted(edited(fine, **changes), tmp_path)
    assert "\n" not in str(caught.value)


DEVICE = load_device("synaptogen")  # for Hypothesis, which does not go with fixtures


@settings(max_examples=8, deadline=None)
@given(st.floats(0.5, 50.0), st.floats(0.4, 2.5), st.integers(0, 1000))
def test_features_scale_with_the_device(conductance: float, volts: float, seed: int) -> None:
    """A device of other currents and voltages has the features that it should: nothing is tied to this one."""
    powers = torch.arange(6, -1, -1)
    scaled = dataclasses.replace(
        DEVICE,
        llrs=DEVICE.llrs * conductance / volts**powers,
        hhrs=DEVICE.hhrs * conductance / volts ** powers[1:],
        reference_volts=0.2 * volts,
        reset_full_volts=1.46 * volts,
        mixture_means=_scaled(DEVICE.mixture_means, conductance, volts),
        mixture_cholesky=DEVICE.mixture_cholesky * _factors(conductance, volts)[:, None],
    )
    (block,) = sweeps(
        scaled,
        4,
        5,
        seed,
        volts=protocol(-1.5 * volts, 1.5 * volts, 0.01 * volts),
        noise_amperes=1e-8 * conductance,
    )
    reader = SweepReader("x", 0.2 * volts, 0)
    table = block.table()
    indices = reader.rows.device_indices(list("0123"), table["device"].astype(np.int64))
    columns = (table[name].astype(float) for name in ("voltage_volts", "current_amperes"))
    reader.add(indices, table["cycle"].astype(np.int64), *columns, None, 1)
    grid, _, _, outcomes = reader.finish()
    if outcomes["complete"] < 20:
        return  # one of the few cells that need more than 1.5 V
    np.testing.assert_allclose(grid.values[LRS], block.features[LRS], rtol=3e-3)
    np.testing.assert_allclose(grid.values[US], block.features[US], atol=0.0051 * volts)
    np.testing.assert_allclose(grid.values[UR], block.features[UR], atol=0.003 * volts)


def _factors(conductance: float, volts: float) -> torch.Tensor:
    """By how much the features' offsets and scales grow; the HRS is a logarithm, so its spread stays."""
    ohms = volts / conductance
    return torch.tensor([1.0, volts, ohms, volts, 1.0, volts, ohms, volts], dtype=torch.float64)


def _scaled(means: torch.Tensor, conductance: float, volts: float) -> torch.Tensor:
    result = means * _factors(conductance, volts)[:, None]
    result[HRS] += np.log10(volts / conductance)
    return result


def swept_conductance(
    volts: np.ndarray, setting: np.ndarray, compliance_amperes: float = np.inf
) -> tuple[SweepReader, np.ndarray]:
    """(the reader, features [4, 1, cycles]) of cells with conductances `setting` [samples], in siemens, down to Vneg.

    They are in an LRS of 220 uS up to 0.7 V, and in an HRS of 12 uS after it.
    """
    lowest, highest = int(np.argmin(volts)), int(np.argmax(volts))
    place, samples = np.arange(len(volts)), 16
    siemens = np.where(place <= lowest, setting, np.where((place <= highest) & (volts < 0.7), 220e-6, 12e-6))
    cycle = np.repeat(np.arange(samples), len(volts))
    reader = SweepReader("x", 0.2, 0)
    indices = reader.rows.device_indices(["a"], np.zeros(len(cycle), np.int64))
    amperes = np.maximum(volts * siemens, -compliance_amperes)
    reader.add(indices, cycle, np.tile(volts, samples), np.tile(amperes, samples), None, 1)
    grid, _, _, outcomes = reader.finish()
    assert outcomes["complete"] == samples
    return reader, grid.values


def test_a_gradual_set_is_where_the_conductance_is_half_way() -> None:
    """From 12 to 220 uS between -0.4 and -1.2 V, exponentially: half way, by the logarithm, is -0.8 V."""
    volts = protocol(step_volts=0.01)
    reader, values = swept_conductance(volts, 12e-6 * (220 / 12) ** np.clip((-volts - 0.4) / 0.8, 0, 1))
    np.testing.assert_allclose(values[US], -0.8, atol=0.02)
    np.testing.assert_allclose(values[LRS], 1 / 220e-6, rtol=1e-3)
    assert reader.notes()[0].startswith("16 SETs are gradual: their US is where the conductance is half way")


def test_a_jump_is_abrupt_however_well_the_hrs_conducts_before_it() -> None:
    """From 86 uS at the read voltage to 152 uS at -1 V, and from there to 220 uS at once."""
    volts = protocol(step_volts=0.01)
    reader, values = swept_conductance(volts, np.where(volts > -1.0, 84e-6 * (1 + 0.81 * volts**2), 220e-6))
    np.testing.assert_allclose(values[US], -0.995, atol=1e-6)
    assert not reader.notes()


def test_a_current_that_is_held_is_said() -> None:
    volts = protocol(step_volts=0.01)
    setting = np.where(volts > -0.7, 12e-6, 220e-6)
    assert not swept_conductance(volts, setting)[0].notes()
    (note,) = swept_conductance(volts, setting, 2e-4)[0].notes()
    assert note.startswith("the current of SETs is held at 200 µA: LRS is that of this compliance")
