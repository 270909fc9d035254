"""Currents with line resistance, against exact nodal solutions, closed forms and known limits of large arrays."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memsim.crossbar import line_resistance
from memsim.crossbar.line_resistance import IrDropArrays, cell_amperes
from memsim.device import DeviceModel, draw_states, load_device, read_noise_std_amperes
from memsim.errors import InputError
from tests.crossbar.nodal import Nodal, cell_volts

SMALL_VOLTS = 1e-7
"""Where a cell is its conductance at 0 V: to 1e-8, from the quadratic term of the envelopes."""


def programmed(
    device: DeviceModel, tiles: int, rows: int, cols: int, density: float = 0.25, seed: int = 0, dtype: Any = None
) -> Tensor:
    """States of a quarter of cells in LRS, by default, the others in HRS."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(tiles, rows, cols, generator=generator) < density
    states = draw_states(device, mask.flatten(), torch.arange(mask.numel()), seed).view(mask.shape)
    return states.to(dtype or torch.float64)


def drives(tiles: int, n: int, rows: int, vmax: float, seed: int = 1) -> Tensor:
    """Uniform in +-vmax, [tiles, n, rows]."""
    generator = torch.Generator().manual_seed(seed)
    return vmax * (2 * torch.rand(tiles, n, rows, generator=generator, dtype=torch.float64) - 1)


def without_line_resistance(device: DeviceModel, states: Tensor, volts: Tensor) -> Tensor:
    return device.current_amperes(volts[..., None], states[:, None]).sum(2)


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


# Against nodal analysis


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 6), st.integers(1, 6)),
    n=st.integers(1, 3),
    density=st.floats(0, 1),
    log_ohms=st.floats(-2, 3),
    vmax=st.sampled_from([0.1, 0.4, 0.6]),
    seed=st.integers(0, 10**6),
)
def test_currents_are_those_of_nodal_analysis(
    shape: tuple[int, int, int], n: int, density: float, log_ohms: float, vmax: float, seed: int
) -> None:
    """Up to segments of a quarter of a cell's resistance; to 1e-9 (float32: 1e-5) of one conducting cell's current."""
    device = load_device("synaptogen")
    tiles, rows, _ = shape
    states = programmed(device, *shape, density, seed)
    volts = drives(tiles, n, rows, vmax, seed)
    ohms = 10**log_ohms
    exact = torch.tensor(
        np.array([[Nodal(device, states[t], ohms).column_amperes(v) for v in volts[t]] for t in range(tiles)])
    )
    scale = float(device.llrs_current_amperes(volts.abs().max()))
    double = IrDropArrays.make(device, states, ohms, vmax, tolerance=1e-11).column_amperes(volts)
    torch.testing.assert_close(double, exact, rtol=0, atol=1e-9 * scale)
    single = IrDropArrays.make(device, states.float(), ohms, vmax, tolerance=1e-7).column_amperes(volts.float())
    torch.testing.assert_close(single.double(), exact, rtol=0, atol=1e-5 * scale)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(-1, 2))
def test_drivers_give_what_columns_take(seed: int, log_ohms: float) -> None:
    """And the currents leave the potentials as they must: from the cells' voltages, node by node."""
    device = load_device("synaptogen")
    ohms = 10**log_ohms
    states = programmed(device, 1, 5, 4, 0.5, seed)
    volts = drives(1, 1, 5, 0.6, seed)
    arrays = IrDropArrays.make(device, states, ohms, 0.6, tolerance=1e-11)
    across = cell_volts(arrays, volts)[0, 0]
    amperes = device.current_amperes(across, states[0])
    beyond = amperes.flip(0).cumsum(0).flip(0)  # what flows in a bit line's segment towards ground
    bit_lines = ohms * beyond.cumsum(0)
    word_lines = across + bit_lines
    segments = -torch.diff(word_lines, prepend=volts[0, 0, :, None], dim=1) / ohms
    scale = float(amperes.abs().sum())
    leaving = segments - torch.nn.functional.pad(segments[:, 1:], (0, 1))
    # differences of potentials, divided by little: 0.6 V times 1e-14 over the ohms
    limit = 1e-8 * scale + 1e-14 / ohms
    torch.testing.assert_close(leaving, amperes, rtol=0, atol=limit)
    torch.testing.assert_close(segments[:, 0].sum(), arrays.column_amperes(volts).sum(), rtol=0, atol=5 * limit)
    given = Nodal(device, states[0], ohms).driver_amperes(volts[0, 0])
    torch.testing.assert_close(segments[:, 0], torch.tensor(given), rtol=0, atol=limit)


# Closed forms


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_resistance_it_is_the_plain_sum(dtype: torch.dtype, device: DeviceModel) -> None:
    states = programmed(device, 3, 20, 9, dtype=dtype)
    volts = drives(3, 7, 20, 0.6).to(dtype)
    arrays = IrDropArrays.make(device, states, 0.0, 0.6)
    assert arrays.iterations == 0
    assert torch.equal(cell_volts(arrays, volts), volts[..., None].expand(-1, -1, -1, 9))
    assert (
        relative(arrays.column_amperes(volts), without_line_resistance(device, states, volts))
        < 10 * torch.finfo(dtype).eps
    )
    barely = IrDropArrays.make(device, states, 1e-9, 0.6).column_amperes(volts)
    assert relative(barely, arrays.column_amperes(volts)) < 1e-6  # 20 cells of 5 kohm over 29 segments


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (6, 1), (1, 6), (4, 5)])
def test_a_single_cell_is_in_series_with_its_segments(rows: int, cols: int, device: DeviceModel) -> None:
    """The cell farthest from both ends, nothing else conducting: V / (R + (rows + cols) w)."""
    present = torch.zeros(1, rows, cols, dtype=torch.bool)
    present[0, -1, -1] = True
    states = torch.full((1, rows, cols), 0.2, dtype=torch.float64)
    volts = torch.full((1, 1, rows), SMALL_VOLTS, dtype=torch.float64)
    amperes = IrDropArrays.make(device, states, 700.0, 0.4, present, tolerance=1e-12).column_amperes(volts)
    siemens = device.conductance_siemens(torch.zeros((), dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64))
    expected = SMALL_VOLTS / (1 / float(siemens) + (rows + cols) * 700.0)
    assert float(amperes[0, 0, -1]) == pytest.approx(expected, rel=1e-7)
    assert float(amperes.abs().sum()) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("cells", [1, 2, 7, 40])
@pytest.mark.parametrize("line", ["word", "bit"])
def test_a_line_of_equal_cells_is_a_ladder(line: str, cells: int, device: DeviceModel) -> None:
    """Cells, each with the segment of its other line, shunt a chain of segments: v_k / V = cosh((n + 1/2 - k) theta) /
    cosh((n + 1/2) theta) with 2 cosh(theta) = 2 + w / (R + w), for n cells, k = 1 .. n."""
    ohms = 30.0
    siemens = float(
        device.conductance_siemens(torch.zeros((), dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64))
    )
    shunt = 1 / siemens + ohms
    theta = math.acosh(1 + ohms / shunt / 2)
    k = torch.arange(1, cells + 1, dtype=torch.float64)
    expected = SMALL_VOLTS / shunt * torch.cosh((cells + 0.5 - k) * theta) / math.cosh((cells + 0.5) * theta)
    shape = (1, 1, cells) if line == "word" else (1, cells, 1)
    states = torch.full(shape, 0.2, dtype=torch.float64)
    arrays = IrDropArrays.make(device, states, ohms, 0.4, tolerance=1e-12)
    volts = torch.full((1, 1, shape[1]), SMALL_VOLTS, dtype=torch.float64)
    amperes = siemens * cell_volts(arrays, volts).flatten()
    torch.testing.assert_close(amperes, expected, rtol=1e-7, atol=0)
    columns = expected if line == "word" else expected.sum()[None]
    torch.testing.assert_close(arrays.column_amperes(volts).flatten(), columns, rtol=1e-7, atol=0)


# What is known of it


def test_more_resistance_leaves_less_current(device: DeviceModel) -> None:
    states = programmed(device, 2, 24, 16)
    volts = drives(2, 5, 24, 0.4).abs()
    left = [
        IrDropArrays.make(device, states, ohms, 0.4).column_amperes(volts) for ohms in (0, 0.1, 0.5, 1, 3, 10, 30, 100)
    ]
    for more, less in itertools.pairwise(left):
        assert (less < more).all()
    assert (left[-1] > 0).all()


def test_a_negative_drive_loses_its_own_share(device: DeviceModel) -> None:
    """The envelopes are not odd, so no mirror image; with linear cells it is one."""
    states = programmed(device, 1, 16, 16)
    volts = drives(1, 4, 16, 0.6)
    arrays = IrDropArrays.make(device, states, 20.0, 0.6, tolerance=1e-12)
    assert relative(-arrays.column_amperes(-volts), arrays.column_amperes(volts)) > 0.01
    linear = arrays.linearised()
    assert relative(-linear.column_amperes(-volts), linear.column_amperes(volts)) < 1e-12


def test_a_linearised_array_is_a_reciprocal_matrix(device: DeviceModel) -> None:
    states = programmed(device, 2, 12, 7)
    arrays = IrDropArrays.make(device, states, 40.0, 0.6, tolerance=1e-13).linearised()
    volts = drives(2, 5, 12, 0.6)
    matrix = arrays.column_amperes(torch.eye(12, dtype=torch.float64).expand(2, -1, -1))
    assert relative(volts @ matrix, arrays.column_amperes(volts)) < 1e-11
    backwards = arrays.transposed().column_amperes(torch.eye(7, dtype=torch.float64).expand(2, -1, -1))
    assert relative(backwards.mT, matrix) < 1e-11


def test_128_by_128_cells_at_1_ohm_lose_two_fifths(device: DeviceModel) -> None:
    """A quarter of the cells in LRS, all rows alike: 41 % is lost, a first-order correction is wrong by more than half,
    and it is within 1 % up to about 0.12 ohm."""
    states = programmed(device, 1, 128, 128)
    volts = torch.full((1, 1, 128), 0.2, dtype=torch.float64)
    cells = device.current_amperes(volts[..., None], states[:, None])
    plain = cells.sum(2)
    ladder = torch.arange(1.0, 129, dtype=torch.float64)
    ladder = torch.minimum(ladder, ladder[:, None])
    lost, wrong = {}, {}
    for ohms in (0.05, 0.12, 1.0):
        left = IrDropArrays.make(device, states, ohms, 0.2).column_amperes(volts)
        first_order = volts[..., None] - ohms * (cells @ ladder + ladder @ cells)
        estimate = device.current_amperes(first_order, states[:, None]).sum(2)
        lost[ohms] = 1 - float(left.sum() / plain.sum())
        wrong[ohms] = float((estimate - left).norm() / left.norm())
    assert lost[1.0] == pytest.approx(0.41, abs=0.01)
    assert wrong[1.0] == pytest.approx(0.57, abs=0.02)
    assert wrong[0.12] == pytest.approx(0.01, abs=0.002)
    assert wrong[0.05] < 0.003


def test_cells_that_are_absent_leave_a_smaller_array(device: DeviceModel) -> None:
    """Whether beyond the used rows and columns or between them; also where a whole tile is empty."""
    states = programmed(device, 2, 9, 8)
    present = torch.zeros(2, 9, 8, dtype=torch.bool)
    present[0, :6, :5] = True
    volts = drives(2, 4, 9, 0.6)
    arrays = IrDropArrays.make(device, states, 100.0, 0.6, present, tolerance=1e-12)
    small = IrDropArrays.make(device, states[:, :6, :5], 100.0, 0.6, tolerance=1e-12)
    amperes = arrays.column_amperes(volts)
    assert relative(amperes[0, :, :5], small.column_amperes(volts[..., :6])[0]) < 1e-11
    assert not amperes[0, :, 5:].any()
    assert not amperes[1].any()
    empty = IrDropArrays.make(device, states[1:], 100.0, 0.6, present[1:])
    assert not empty.column_amperes(volts[1:]).any()
    present[1] = torch.rand(9, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    holes = IrDropArrays.make(device, states, 100.0, 0.6, present, tolerance=1e-12).column_amperes(volts)[1]
    nodal = Nodal(device, states[1], 100.0, present[1])
    expected = torch.tensor(np.array([nodal.column_amperes(v) for v in volts[1]]))
    assert relative(holes, expected) < 1e-9


# The iteration


@pytest.mark.parametrize("vmax", [0.4, 0.6])
@pytest.mark.parametrize("ohms", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-5])
def test_the_tolerance_is_met(tolerance: float, ohms: float, vmax: float, device: DeviceModel) -> None:
    """In the norm that the steps are counted in; currents are then within some tolerances of full scale."""
    states = programmed(device, 1, 64, 64)
    volts = torch.cat([drives(1, 3, 64, vmax), torch.full((1, 1, 64), -vmax, dtype=torch.float64)], dim=1)
    exact = IrDropArrays.make(device, states, ohms, vmax, tolerance=1e-13)
    arrays = IrDropArrays.make(device, states, ohms, vmax, tolerance=tolerance)
    solved, across = cell_volts(exact, volts), cell_volts(arrays, volts)
    weights = (device.current_amperes(solved + 1e-6, states) - device.current_amperes(solved - 1e-6, states)) / 2e-6
    weights = weights.clamp(min=0)

    def size(deviation: Tensor) -> Tensor:
        return (weights * deviation.square()).sum((2, 3)).sqrt()

    assert (size(across - solved) < tolerance * size(volts[..., None] - solved)).all()
    assert relative(arrays.column_amperes(volts), exact.column_amperes(volts)) < 5 * tolerance
    residual = volts[..., None] - solved - _drop(device, states, solved, ohms)
    assert float(residual.abs().max()) < 1e-10 * vmax


def _drop(device: DeviceModel, states: Tensor, across: Tensor, ohms: float) -> Tensor:
    """The voltage lost on wires, from sums along lines in place of products with K."""
    amperes = device.current_amperes(across, states[:, None])
    along_word_lines = amperes.flip(3).cumsum(3).flip(3).cumsum(3)
    along_bit_lines = amperes.flip(2).cumsum(2).flip(2).cumsum(2)
    return ohms * (along_word_lines + along_bit_lines)


@pytest.mark.parametrize("vmax", [0.4, 0.6, line_resistance.LARGEST_VMAX_VOLTS])
@pytest.mark.parametrize("density", [0.0, 0.25, 1.0])
def test_the_largest_resistance_is_still_solved(density: float, vmax: float, device: DeviceModel) -> None:
    """Where the polynomials, far from the solution, would run away."""
    states = programmed(device, 1, 64, 64, density)
    fixed = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]], dtype=torch.float64).repeat(1, 32)
    volts = torch.cat([drives(1, 3, 64, vmax), vmax * fixed[None]], dim=1)
    largest = 10 * line_resistance.LARGEST_BOUND / IrDropArrays.make(device, states, 10.0, vmax).slope_bound
    across = cell_volts(IrDropArrays.make(device, states, 0.99 * largest, vmax, tolerance=1e-10), volts)
    residual = volts[..., None] - across - _drop(device, states, across, 0.99 * largest)
    assert float(residual.abs().max()) < 1e-6 * vmax
    with pytest.raises(InputError) as caught:
        IrDropArrays.make(device, states, 1.5 * largest, vmax)
    assert str(caught.value) == (
        f"wires.ohms {1.5 * largest:g}: lines take nearly all of the current of 64 x 64 cells; choose at most about"
        f" {largest:.2g}"
    )


def test_voltages_that_switch_cells_are_refused(device: DeviceModel) -> None:
    with pytest.raises(InputError, match=r"up to 1.0 V, not for dac.vmax_volts 1.1"):
        IrDropArrays.make(device, torch.zeros(1, 2, 2), 1.0, 1.1)


@pytest.mark.parametrize("density", [0.0, 0.25, 1.0])
def test_the_bound_of_the_spectrum_is_close_and_safe(density: float, device: DeviceModel) -> None:
    states = programmed(device, 1, 10, 12, density)
    arrays = IrDropArrays.make(device, states, 50.0, 0.6)
    grid = torch.linspace(-0.6, 0.6, 9, dtype=torch.float64)[:, None, None].requires_grad_()
    volts = grid.expand(-1, 10, 12)
    (slopes,) = torch.autograd.grad(device.current_amperes(volts, states).sum(), volts)
    ladders = [torch.minimum(k, k[:, None]) for k in (torch.arange(1.0, n + 1).double() for n in (10, 12))]
    kirchhoff = torch.kron(ladders[0], torch.eye(12).double()) + torch.kron(torch.eye(10).double(), ladders[1])
    root = slopes.amax(0).clamp(min=0).sqrt().flatten()
    largest = float(torch.linalg.eigvalsh(50.0 * root[:, None] * kirchhoff * root)[-1])
    assert largest <= arrays.slope_bound < 1.02 * largest


def test_float32_is_as_good_as_float64(device: DeviceModel) -> None:
    """Differential currents of 128 x 128 cells, to some tolerances (1e-5) of the largest."""
    states = programmed(device, 2, 128, 128)
    volts = drives(1, 6, 128, 0.4).expand(2, -1, -1)
    positive, negative = IrDropArrays.make(device, states, 1.0, 0.4, tolerance=1e-8).column_amperes(volts)
    arrays = IrDropArrays.make(device, states.float(), 1.0, 0.4)
    single = arrays.column_amperes(volts.float()).double()
    assert relative(single[0] - single[1], positive - negative) < 3e-5
    assert arrays.iterations <= 8


@pytest.mark.parametrize(("rows", "cols"), [(128, 128), (33, 20), (5, 3), (1, 1)])
def test_a_frame_reads_alone_as_in_company(
    rows: int, cols: int, device: DeviceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, whatever the chunk, the threads and the other frames."""
    states = programmed(device, 3, rows, cols, dtype=torch.float32)
    volts = drives(3, 9, rows, 0.4).float()
    arrays = IrDropArrays.make(device, states, 1.0, 0.4)
    whole = arrays.column_amperes(volts)
    for frames in (slice(0, 1), slice(4, 5), slice(2, 9)):
        assert torch.equal(arrays.column_amperes(volts[:, frames].contiguous()), whole[:, frames])
    for chunk, threads in ((1, 1), (4 * rows * cols, 2), (1 << 22, 3)):
        monkeypatch.setitem(line_resistance.CHUNK_CELLS, "cpu", chunk)
        torch.set_num_threads(threads)
        again = arrays.column_amperes(volts)
        torch.set_num_threads(1)
        assert torch.equal(again, whole)


def test_a_chunk_holds_some_cells_only(device: DeviceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(line_resistance.CHUNK_CELLS, "cpu", 1000)
    arrays = IrDropArrays.make(device, programmed(device, 3, 10, 10), 1.0, 0.4)
    seen = torch.zeros(3, 25)
    for part, frames, cells, across in arrays.solutions(drives(3, 25, 10, 0.4)):
        assert across.numel() <= 1000
        assert cell_amperes(cells, across).shape == across.shape
        seen[part, frames] += 1
    assert (seen == 1).all()
    assert arrays.column_amperes(torch.zeros(3, 0, 10, dtype=torch.float64)).shape == (3, 0, 10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ohms", [0.0, 2.0, 30.0])
@pytest.mark.parametrize(("tiles", "rows", "cols"), [(1, 1, 1), (3, 5, 40), (2, 33, 20), (2, 64, 64)])
def test_rows_driven_alone_answer_as_they_are_solved(
    tiles: int, rows: int, cols: int, ohms: float, dtype: torch.dtype, device: DeviceModel
) -> None:
    """Compiled and in torch operations, for any thread count, against the solve; some cells are absent."""
    states = programmed(device, tiles, rows, cols, dtype=dtype)
    present = torch.rand(tiles, rows, cols, generator=torch.Generator().manual_seed(1)) < 0.9
    arrays = IrDropArrays.make(device, states, ohms, 0.4, present)
    weights = torch.rand(2, tiles, rows, cols, generator=torch.Generator().manual_seed(2), dtype=dtype)
    eye = torch.eye(rows, dtype=dtype).expand(tiles, -1, -1)
    across = cell_volts(arrays.linearised(), eye)
    own, sums = arrays.unit_responses(weights)
    limit = 2e-6 if dtype == torch.float32 else 1e-12
    assert relative(own, across.diagonal(0, 1, 2).mT) < limit
    assert relative(sums, (weights[:, :, None] * across).sum(3)) < limit
    assert torch.equal(arrays.attenuation(), arrays._unit_responses(weights)[0])
    assert relative(arrays._unit_responses(weights)[1], sums) < limit
    torch.set_num_threads(3)
    again = arrays.unit_responses(weights)
    torch.set_num_threads(1)
    assert all(torch.equal(one, other) for one, other in zip(again, (own, sums), strict=True))


# Noise


@pytest.mark.parametrize(("ohms", "rms", "most"), [(0.0, 0, 0), (10.0, 0.01, 0.02), (100.0, 0.025, 0.06)])
def test_a_columns_noise_is_that_of_its_cells_through_the_wires(
    ohms: float, rms: float, most: float, device: DeviceModel
) -> None:
    """The standard deviation, where wires cost a tenth of it and where they cost 40 %."""
    rows, cols = 12, 10
    states = programmed(device, 1, rows, cols, 0.5)
    volts = drives(1, 4, rows, 0.4)
    arrays = IrDropArrays.make(device, states, ohms, 0.4, tolerance=1e-10)
    johnson_weights, shot_weights = arrays.noise_weights(arrays.attenuation(), arrays.transposed().attenuation().mT)
    only_johnson, only_shot = {"shot_scale": 0.0}, {"johnson_scale": 0.0}

    def variance(across: Tensor, **scales: float) -> Tensor:
        return read_noise_std_amperes(device.conductance_siemens(across, states), across, **scales).square()

    at_drivers = volts[0][..., None].expand(-1, -1, cols)
    got = (johnson_weights * variance(at_drivers, **only_johnson)).sum(1)
    got += (shot_weights * variance(at_drivers, **only_shot)).sum(1)
    plain = variance(at_drivers).sum(1)
    if ohms == 0:
        assert relative(got, plain) < 1e-12
        return
    nodal = Nodal(device, states[0], ohms)
    across = [nodal.potentials(v) for v in volts[0]]
    exact = torch.stack(
        [
            variance(torch.tensor(nodes[: rows * cols] - nodes[rows * cols :]).view(1, rows, cols)).flatten()
            @ torch.tensor(nodal.received(v)).square()
            for nodes, v in zip(across, volts[0], strict=True)
        ]
    )
    error = (got / exact).sqrt() - 1
    assert error.square().mean().sqrt() < rms
    assert error.abs().max() < most
    assert ((plain / exact).sqrt() - 1).min() > 2 * most
