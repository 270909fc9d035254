"""I-V curves and the RESET transition: from sweeps, and from a base model."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from memsim.device import DeviceModel
from memsim.errors import InputError
from memsim.fit import Measurements, read_measurements
from memsim.fit.envelopes import envelopes
from tests.tools.example_measurements import protocol, sweeps, write

from .conftest import small_csv

VOLTS = torch.tensor([-1.2, -0.8, -0.5, -0.2, 0.1, 0.3, 0.5, 0.8, 1.1, 1.4], dtype=torch.float64)


@pytest.fixture(scope="module")
def swept(device: DeviceModel, tmp_path_factory: pytest.TempPathFactory) -> Measurements:
    path = tmp_path_factory.mktemp("swept") / "sweeps.parquet"
    blocks = sweeps(device, 40, 20, 3, volts=protocol(step_volts=0.02))
    write((block.table() for block in blocks), path)
    return read_measurements(path)


def curve(model: DeviceModel, ohms: float) -> torch.Tensor:
    """The current at VOLTS of a cell whose resistance is `ohms`: does not depend on what is called LLRS and HHRS."""
    return model.current_amperes(VOLTS, model.state_of_resistance(torch.tensor(ohms, dtype=torch.float64)))


def test_curves_and_transition_are_recovered_from_sweeps(swept: Measurements, device: DeviceModel) -> None:
    fitted = envelopes(swept, device)
    assert fitted.error is not None
    assert fitted.error is not None
    assert fitted.error < 0.005  # 0.1 uA of noise: 0.1 % of an LRS current at 0.5 V, 1 % of an HRS current
    assert fitted.reset_exponent == pytest.approx(device.reset_exponent, abs=0.1)
    assert fitted.reset_full_volts == pytest.approx(device.reset_full_volts, abs=0.02)
    model = fitted.on(device)
    for ohms in (4e3, 4.5e3, 5.2e3, 25e3, 75e3, 200e3):
        ours, theirs = curve(model, ohms), curve(device, ohms)
        # cells were in an HRS between -0.6 V (then they SET) and 1.5 V
        seen = VOLTS > -0.6 if ohms > 1e4 else VOLTS < 10
        assert (ours / theirs - 1)[seen].abs().max() < 0.02, ohms


def test_the_envelopes_are_the_published_ones(swept: Measurements, device: DeviceModel) -> None:
    """What is called LLRS and HHRS is a convention, which is that of the base model."""
    fitted = envelopes(swept, device).on(device)
    ours, theirs = (torch.tensor(model.reference_conductances_siemens) for model in (fitted, device))
    assert (ours - theirs).abs().max() < 0.03 * (theirs[0] - theirs[1])


def test_a_straight_lrs(swept: Measurements, device: DeviceModel) -> None:
    fitted = envelopes(swept, device, linear_lrs=True)
    assert len(fitted.llrs) == 2
    assert fitted.llrs[0] == pytest.approx(device.reference_conductances_siemens[0], rel=0.03)
    assert len(envelopes(_features(swept), device, linear_lrs=True).llrs) == 2


def _features(swept: Measurements, **changes) -> Measurements:
    return dataclasses.replace(swept, traces=None, **changes)


def test_without_sweeps_the_curves_are_those_of_the_base_model(swept: Measurements, device: DeviceModel) -> None:
    taken = envelopes(_features(swept), device)
    assert taken.error is None
    assert taken.source == "synaptogen"
    np.testing.assert_array_equal(taken.llrs, device.llrs)
    np.testing.assert_array_equal(taken.hhrs, device.hhrs)
    assert taken.reset_full_volts == device.reset_full_volts


def test_curves_of_a_base_model_are_scaled_to_other_resistances(swept: Measurements, device: DeviceModel) -> None:
    y = swept.y.copy()
    y[0] -= 1  # HRS, log10 ohm
    y[2] /= 10
    taken = envelopes(_features(swept, y=y), device)
    scale = re.search(r"scaled by ([\d.]+)", taken.source)
    assert scale is not None
    assert float(scale[1]) == pytest.approx(10, rel=0.02)
    model = taken.on(device)
    torch.testing.assert_close(curve(model, 450), 10 * curve(device, 4500), rtol=0.02, atol=0)
    r = model.state_of_resistance(torch.from_numpy(y[2][np.isfinite(y[2])]))
    assert r.median() == pytest.approx(0.16, abs=0.02)


def test_the_full_reset_lies_above_the_measured_ones(swept: Measurements, device: DeviceModel) -> None:
    y = swept.y.copy()
    y[3] *= 2.5
    taken = envelopes(_features(swept, y=y), device)
    assert taken.reset_full_volts == pytest.approx(2.5 * 1.46, rel=0.02)
    assert taken.reset_full_volts > np.nanmax(y[3])
    assert "full RESET moved by 2." in taken.source


def test_states_that_do_not_differ(tmp_path: Path, device: DeviceModel) -> None:
    read = read_measurements(small_csv(tmp_path / "t.csv", ["a,1,4e3,-0.7,5e3,0.7"]))
    with pytest.raises(InputError, match=r"the mean LRS \(5000 ohm\) is not below the mean HRS \(4000 ohm\)"):
        envelopes(read, device)


def test_resistances_read_at_another_voltage(swept: Measurements, device: DeviceModel) -> None:
    """The curves stay; a resistance is then that at the other voltage."""
    model = envelopes(_features(swept, read_volts=0.4), device).on(device)
    assert torch.equal(model.llrs, device.llrs)
    assert model.reference_volts == 0.4
    r = model.state_of_resistance(torch.tensor(4500.0, dtype=torch.float64))
    assert model.current_amperes(torch.tensor(0.4, dtype=torch.float64), r) == pytest.approx(0.4 / 4500)
