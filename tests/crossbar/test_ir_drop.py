"""Reads of a matrix with IR drop, against the exact solution of every array."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from memsim.crossbar import read
from memsim.crossbar.matrix import MappedMatrix
from memsim.device import load_device
from memsim.device.noise import BOLTZMANN_JOULES_PER_KELVIN, ELEMENTARY_CHARGE_COULOMBS
from memsim.errors import InputError
from memsim.hardware import load_hardware
from tests.crossbar.by_hand import fractions, in_weights_and_inputs, small_matrix, spec_of
from tests.crossbar.nodal import Nodal

DEVICE = load_device("synaptogen")
ADC = {"range": "calibrated", "bits": 6}


def ir_drop_spec(ohms: float | None, **changes: Any) -> Any:
    """Tiles of 4 x 2 cells, so that the 7 x 5 matrices below need padding both ways."""
    wires = None if ohms is None else {"ohms": ohms}
    return spec_of(3, 4, **{"wires": wires, "read_noise": None, **changes})


def inputs(n: int = 12) -> Tensor:
    return 1.5 * torch.randn(n, 7, generator=torch.Generator().manual_seed(7))


def arrays_of(matrix: MappedMatrix) -> dict[tuple[int, int, int, int], Tensor]:
    """The states [rows, cols] of the cells in use, by (row tile, column tile, slice, polarity), of the first copy."""
    assert matrix.states is not None
    states = matrix.states[:, :, 0].float()
    return {
        (i, j, slice_, polarity): states[slice_, polarity, 4 * i : 4 * i + 4, 2 * j : 2 * j + 2]
        for i in range(2)
        for j in range(3)
        for slice_ in range(2)
        for polarity in range(2)
    }


def by_hand(matrix: MappedMatrix, x: Tensor, ohms: float) -> Tensor:
    """[row_tiles, n, slices, out] amperes."""
    assert matrix.spec.dac is not None
    volts = fractions(matrix, x) * matrix.spec.dac.vmax_volts
    currents = torch.zeros(2, len(x), 2, 5, dtype=torch.float64)
    for (i, j, slice_, polarity), states in arrays_of(matrix).items():
        solver = Nodal(DEVICE, states, ohms)
        for n in range(len(x)):
            columns = torch.from_numpy(solver.column_amperes(volts[n, 4 * i : 4 * i + states.shape[0]]))
            currents[i, n, slice_, 2 * j : 2 * j + 2] += (1 - 2 * polarity) * columns
    return currents


@pytest.mark.parametrize("adc", [None, ADC], ids=["none", "calibrated"])
@pytest.mark.parametrize("ohms", [5.0, 60.0])
def test_every_array_has_its_own_wires(ohms: float, adc: dict[str, Any] | None) -> None:
    matrix = small_matrix(ir_drop_spec(ohms, adc=adc), 5, 7)
    x = inputs()
    assert matrix.gain_per_ampere is not None
    signal = by_hand(matrix, x, ohms) * float(matrix.gain_per_ampere)
    total = torch.zeros(len(x), 5, dtype=torch.float64)
    for tile in range(2):
        for slice_ in range(2):
            value = signal[tile, :, slice_]
            if adc is not None:
                assert matrix.adc_range is not None
                step = float(matrix.adc_range[0, slice_]) / 31
                value = (value / step).round().clamp(-31, 31) * step
            total += value * 2**slice_
    expected = in_weights_and_inputs(matrix, total)
    torch.testing.assert_close(matrix(x).double(), expected, rtol=0, atol=2e-4 * float(expected.abs().max()))


def test_wires_take_current_and_next_to_none_take_next_to_nothing() -> None:
    x = inputs()
    plain = small_matrix(ir_drop_spec(None, adc=None), 5, 7)
    thick = small_matrix(ir_drop_spec(1e-4, adc=None), 5, 7)
    thin = small_matrix(ir_drop_spec(60.0, adc=None), 5, 7)
    assert thin.gain_per_ampere is not None
    assert thick.gain_per_ampere is not None
    assert float(thin.gain_per_ampere) > 1.05 * float(thick.gain_per_ampere)  # calibration makes up for what is lost
    thick.gain_per_ampere = (
        plain.gain_per_ampere
    )  # fitted to the matrix as it is, where plain is fitted to the population
    torch.testing.assert_close(thick(x), plain(x), rtol=0, atol=1e-4 * float(plain(x).abs().max()))
    exact = x @ (plain.levels.float() * plain.scale[:, None]).T
    slope = float((thin(x) * exact).sum() / exact.square().sum())
    assert slope == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("copies", [1, 3])
def test_matrices_may_stand_in_for_the_solve(copies: int) -> None:
    x = inputs(60)
    weights = {"bits": 3, "copies": copies}
    nodal = small_matrix(ir_drop_spec(20.0, adc=None, weights=weights), 5, 7)(x)
    wires = {"ohms": 20.0, "solve": "effective"}
    effective = small_matrix(ir_drop_spec(None, adc=None, wires=wires, weights=weights), 5, 7)(x)
    assert not torch.equal(nodal, effective)
    assert (nodal - effective).abs().max() < 2e-3 * nodal.abs().max()


@pytest.mark.parametrize("copies", [1, 3])
def test_noise_is_what_the_wires_leave_of_the_cells_noise(copies: int) -> None:
    """Every cell's noise current through the exact network, 5 standard errors and the 1 % of what is approximated."""
    spec = ir_drop_spec(60.0, adc=None, read_noise={"temperature_kelvin": 3000}, weights={"bits": 3, "copies": copies})
    matrix = small_matrix(spec, 5, 7)
    assert matrix.states is not None
    matrix.states = matrix.states[:, :, :1].expand_as(matrix.states).contiguous()  # copies alike: a single solve each
    matrix.release()
    x = inputs(1)
    volts = (fractions(matrix, x) * 0.4)[0]
    variance = torch.zeros(5, dtype=torch.float64)
    for (i, j, slice_, _), states in arrays_of(matrix).items():
        driven = volts[4 * i : 4 * i + states.shape[0]]
        solver = Nodal(DEVICE, states, 60.0)
        nodes = solver.potentials(driven)
        across = torch.from_numpy(nodes[: states.numel()] - nodes[states.numel() :])
        siemens = DEVICE.conductance_siemens(across, states.double().flatten())
        johnson = 4 * BOLTZMANN_JOULES_PER_KELVIN * 3000 * 1e8 * siemens
        shot = 2 * ELEMENTARY_CHARGE_COULOMBS * 1e8 * (siemens * across).abs()
        received = torch.from_numpy(solver.received(driven)).square()
        variance[2 * j : 2 * j + 2] += 4**slice_ * ((johnson + shot) @ received) / copies
    assert matrix.gain_per_ampere is not None
    std = in_weights_and_inputs(matrix, variance.sqrt() * float(matrix.gain_per_ampere))
    frames = 20_000
    ratio = matrix(x.expand(frames, -1)).double().std(0) / std
    assert ((ratio - 1).abs() < 5 / math.sqrt(2 * frames) + 0.01).all()


@pytest.mark.parametrize("solve", ["nodal", "effective"])
def test_chunks_change_nothing(solve: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do threads, bit for bit."""
    matrix = small_matrix(ir_drop_spec(None, adc=ADC, read_noise={}, wires={"ohms": 20.0, "solve": solve}), 5, 7)
    x = inputs(100)
    matrix.reads.begin("batch")
    whole = matrix(x)
    for chunk_values, threads in ((1, 1), (1, 3), (1 << 11, 2)):
        monkeypatch.setattr(read, "CHUNK_VALUES", chunk_values)
        torch.set_num_threads(threads)
        matrix.release()
        matrix.reads.begin("batch")
        again = matrix(x)
        torch.set_num_threads(1)
        assert torch.equal(again, whole)


@pytest.mark.parametrize(("rows", "out_features", "in_features"), [(128, 70, 300), (33, 35, 40), (5, 3, 9)])
def test_a_frame_reads_alone_as_in_a_batch(rows: int, out_features: int, in_features: int) -> None:
    spec = spec_of(3, rows, wires={"ohms": 1.0, "solve": "effective"}, read_noise=None, adc=None)
    spec = spec.with_settings({"tile.cols": 64})
    matrix = small_matrix(spec, out_features, in_features)
    x = torch.randn(201, in_features, generator=torch.Generator().manual_seed(1))
    whole = matrix(x)
    for frames in (slice(0, 1), slice(40, 41), slice(64, 160), slice(7, 201)):
        assert torch.equal(matrix(x[frames]), whole[frames])


def test_what_cannot_be_solved_is_said() -> None:
    with pytest.raises(InputError, match="wires: has no effect on ideal cells"):
        load_hardware({"cell": "ideal", "wires": {"ohms": 1.0}})
    with pytest.raises(InputError, match=r"wires: IR drop is solved for up to 1\.0 V, not for dac\.vmax_volts 1\.2"):
        small_matrix(ir_drop_spec(5.0, dac={"vmax_volts": 1.2}), 5, 7)
    with pytest.raises(InputError, match="lines take nearly all of the current of 128 x 128 cells"):
        small_matrix(spec_of(3, 128, tile={"rows": 128, "cols": 128}, wires={"ohms": 90.0}), 128, 128)
