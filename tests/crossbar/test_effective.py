"""Matrices that approximate arrays with line resistance: exact where they must be, else within documented bounds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from memsim.crossbar import compiled_wires, effective, encode
from memsim.crossbar.effective import EffectiveArrays, EffectiveColumns
from memsim.crossbar.line_resistance import IrDropArrays
from memsim.crossbar.tiling import Tiling
from memsim.device import DeviceModel, draw_states
from memsim.hardware import Weights
from tests.crossbar.test_line_resistance import drives, programmed, relative

EVERY_POLYNOMIAL = (0.0, 0.0)
"""The tolerances that leave no polynomial out."""


def pair(
    device: DeviceModel, states: Tensor, ohms: float, vmax: float, *tolerances: float
) -> tuple[IrDropArrays, EffectiveColumns]:
    """The arrays of a pair, `states` [2, rows, cols], and their columns."""
    arrays = IrDropArrays.make(device, states, ohms, vmax, tolerance=1e-9)
    return arrays, columns_of(arrays, *tolerances)


def columns_of(arrays: IrDropArrays, *tolerances: float) -> EffectiveColumns:
    _, rows, cols = arrays.states.shape
    return EffectiveColumns.make(arrays, Tiling(rows, cols, cols, rows, bits=2), *tolerances)


def predicted(columns: EffectiveColumns, volts: Tensor, cols: int) -> Tensor:
    """The differential currents [n, cols] at the driver voltages `volts` [n, rows]."""
    return columns.amperes(volts[None], volts.new_ones(1, 1, columns.alone.shape[2]))[0, :, :cols]


def solved(arrays: IrDropArrays, volts: Tensor) -> Tensor:
    positive, negative = arrays.column_amperes(volts.expand(2, -1, -1))
    return positive - negative


@pytest.mark.parametrize("vmax", [0.4, 0.6])
def test_without_resistance_it_is_exact(vmax: float, device: DeviceModel) -> None:
    """With the two polynomials that a cell's current is made of, of which one drops out of a pair."""
    arrays, columns = pair(device, programmed(device, 2, 9, 5), 0.0, vmax)
    volts = drives(1, 8, 9, vmax)[0]
    assert relative(predicted(columns, volts, 5), solved(arrays, volts)) < 1e-12
    assert columns.rest.shape[1] == 0
    assert not columns.bit_lines.any()


@pytest.mark.parametrize("ohms", [3.0, 100.0])
def test_linear_cells_are_exact(ohms: float, device: DeviceModel) -> None:
    arrays = IrDropArrays.make(device, programmed(device, 2, 9, 14), ohms, 0.6, tolerance=1e-13).linearised()
    columns = columns_of(arrays)
    assert columns.functions.shape == (1, 1)
    volts = drives(1, 8, 9, 0.6)[0]
    assert relative(predicted(columns, volts, 14), solved(arrays, volts)) < 1e-11


@pytest.mark.parametrize(("ohms", "limit"), [(3.0, 6e-5), (100.0, 1e-3)])
def test_a_row_alone_is_nearly_exact(ohms: float, limit: float, device: DeviceModel) -> None:
    """But for the voltage that non-linear currents take, which is approximated; 60 % is lost at 100 ohm."""
    arrays, columns = pair(device, programmed(device, 2, 12, 9, 0.5), ohms, 0.6, *EVERY_POLYNOMIAL)
    row = torch.eye(12, dtype=torch.float64)[3]
    volts = torch.linspace(-0.6, 0.6, 14, dtype=torch.float64)[:, None] * row
    assert relative(predicted(columns, volts, 9), solved(arrays, volts)) < limit


@pytest.mark.parametrize(("ohms", "vmax", "limit"), [(1.0, 0.4, 2e-5), (4.0, 0.4, 1e-4), (4.0, 0.6, 2e-4)])
def test_polynomials_are_those_through_solved_points(
    ohms: float, vmax: float, limit: float, device: DeviceModel
) -> None:
    """The currents of each row alone, solved for at six voltages, give the same polynomials (root mean square)."""
    arrays = IrDropArrays.make(device, programmed(device, 1, 48, 64), ohms, vmax, tolerance=1e-9)
    u = torch.tensor([-1, -2 / 3, -1 / 3, 1 / 3, 2 / 3, 1], dtype=torch.float64)
    volts = u[:, None, None] * vmax * torch.eye(48, dtype=torch.float64)
    through = arrays.column_amperes(volts.view(1, -1, 48)).view(6, 48, 64)
    made = EffectiveArrays.make(arrays)
    alone = made.alone[0].clone()
    alone[1:] += made.bit_lines * made.slopes[0]
    at_points = torch.einsum("ud,dij->uij", u[:, None] ** torch.arange(1, 7), alone)
    assert (at_points - through).norm() < limit * through.norm()


def error_of_differences(columns: EffectiveColumns, arrays: IrDropArrays, volts: Tensor) -> tuple[float, float]:
    """(root mean square, largest) of a pair of arrays driven alike, relative to the largest current."""
    exact = solved(arrays, volts)
    error = (predicted(columns, volts, exact.shape[1]) - exact) / exact.abs().max()
    return float(error.square().mean().sqrt()), float(error.abs().max())


@pytest.mark.parametrize(
    ("vmax", "ohms", "rms", "most"),
    [
        (0.4, 1.2, 1.5e-4, 8e-4),
        pytest.param(0.4, 4.0, 4e-4, 2e-3, marks=pytest.mark.slow),
        pytest.param(0.6, 1.2, 2.5e-4, 1.2e-3, marks=pytest.mark.slow),
        (0.6, 4.0, 8e-4, 6e-3),
    ],
)
def test_interactions_are_foreseen(vmax: float, ohms: float, rms: float, most: float, device: DeviceModel) -> None:
    """Uniform inputs. Cells in fewer rows than usual, so that each of them counts for more."""
    arrays, columns = pair(device, programmed(device, 2, 64, 64), ohms, vmax)
    got = error_of_differences(columns, arrays, drives(1, 64, 64, vmax)[0])
    assert got[0] < rms
    assert got[1] < most


def test_the_documented_error(device: DeviceModel) -> None:
    """At 0.4 V and 1 ohm; the table's largest errors are of one draw, so twice as much is let pass."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(128, 128, generator=generator)
    levels = encode.quantise(weight, encode.fit_scale(weight, 3, Weights(bits=3)), 3)
    ones = encode.to_slices(levels, 3)[0].T
    mask = torch.stack([ones > 0, ones < 0])
    states = draw_states(device, mask.flatten(), torch.arange(mask.numel()), 0).view(mask.shape)
    arrays = IrDropArrays.make(device, states, 1.0, 0.4)
    columns = columns_of(arrays)
    gaussian = 0.4 * (torch.randn(64, 128, generator=generator) / 3.7).clamp(-1, 1)
    for volts, rms, most in ((gaussian, 1e-4, 8e-4), (drives(1, 64, 128, 0.4)[0].float(), 2e-4, 2e-3)):
        got = error_of_differences(columns, arrays, volts)
        assert got[0] < rms
        assert got[1] < most


def test_rows_that_meet_on_a_bit_line_are_seen(device: DeviceModel) -> None:
    """All rows alike, the worst case: about half of what rows do to each other is foreseen in a difference."""
    arrays, columns = pair(device, programmed(device, 2, 64, 64), 4.0, 0.4)
    volts = torch.linspace(-0.4, 0.4, 21, dtype=torch.float64)[:, None].expand(-1, 64).contiguous()
    exact = solved(arrays, volts)
    without = sum(solved(arrays, volts * (torch.arange(64) == row)) for row in range(64))  # each row alone
    assert relative(predicted(columns, volts, 64), exact) < 0.55 * relative(without, exact)
    assert relative(predicted(columns, volts, 64), exact) < 0.02


def test_absent_cells_leave_a_smaller_array(device: DeviceModel) -> None:
    """Its modes are those of longer lines, so this holds to the error of the interaction only."""
    states = programmed(device, 2, 20, 16)
    present = torch.zeros(2, 20, 16, dtype=torch.bool)
    present[:, :16, :12] = True
    volts = drives(1, 6, 20, 0.4)[0]
    padded = predicted(columns_of(IrDropArrays.make(device, states, 20.0, 0.4, present)), volts, 16)
    small = solved(IrDropArrays.make(device, states[:, :16, :12], 20.0, 0.4), volts[:, :16])
    assert not padded[:, 12:].any()
    assert relative(padded[:, :12], small) < 1e-3


@pytest.mark.parametrize(("multiplies_bfloat16", "rms", "most"), [(False, 2e-6, 1e-5), (True, 1e-5, 8e-5)])
def test_float32_and_bfloat16_are_as_good_as_float64(
    multiplies_bfloat16: bool, rms: float, most: float, device: DeviceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effective, "multiplies_bfloat16", lambda device: multiplies_bfloat16)
    states = programmed(device, 2, 64, 64)
    volts = drives(1, 16, 64, 0.4)[0]
    _, double = pair(device, states, 4.0, 0.4)
    single = columns_of(IrDropArrays.make(device, states.float(), 4.0, 0.4))
    assert single.slopes.dtype == (torch.bfloat16 if multiplies_bfloat16 else torch.float32)
    exact = predicted(double, volts, 64)
    error = (predicted(single, volts.float(), 64) - exact) / exact.abs().max()
    assert error.square().mean().sqrt() < rms
    assert error.abs().max() < most


def test_few_polynomials_are_enough(device: DeviceModel) -> None:
    """Those left out change currents by less than half of what the approximation itself does."""
    arrays, columns = pair(device, programmed(device, 2, 64, 64), 4.0, 0.4)
    _, every = pair(device, arrays.states, 4.0, 0.4, *EVERY_POLYNOMIAL)
    assert columns.functions.shape == (4 + 1 + 2, 6)
    assert columns.slopes.shape[1] <= 64 + 32
    assert every.functions.shape == (6 + 1 + 5, 6)
    volts = drives(1, 64, 64, 0.4)[0]
    exact, with_every = solved(arrays, volts), predicted(every, volts, 64)
    assert (predicted(columns, volts, 64) - with_every).norm() < 0.5 * (with_every - exact).norm()


def test_compiled_steps_are_the_defined_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    volts = torch.rand(2, 5, 24, generator=generator) - 0.5
    coefficients = torch.randn(7, 6, generator=generator)
    kinds = ((1, torch.float32), (3, torch.bfloat16), (0, torch.bfloat16), (2, torch.bfloat16), (1, torch.bfloat16))
    got, expected = ([torch.empty(2, 5, n * 24, dtype=dtype) for n, dtype in kinds] for _ in range(2))
    compiled_wires.polynomials(volts, coefficients, got)
    effective.polynomials(volts, coefficients, expected)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0.01 if one.dtype == torch.bfloat16 else 1e-5, atol=1e-5)
    total, rest = torch.randn(2, 2, 5, 32, generator=generator)
    potentials, slopes = torch.randn(2, 2, 5, 3 * 32, generator=generator).bfloat16()
    factors = torch.rand(2, 1, 32, generator=generator)
    both = total.clone(), total.clone()
    compiled_wires.add_up(both[0], rest.bfloat16(), potentials, slopes, factors)
    effective.add_up(both[1], rest.bfloat16(), potentials, slopes, factors)
    by_array = zip(potentials.float().split(32, 2), slopes.float().split(32, 2), strict=True)
    by_hand = (total + rest.bfloat16() + sum(potential * slope for potential, slope in by_array)) * factors
    for found in both:
        torch.testing.assert_close(found, by_hand, rtol=1e-5, atol=1e-5)
