"""The power of the cells of a matrix, from the currents of single cells."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from memsim.crossbar.cell import MemristorCell
from memsim.crossbar.drive import Drive
from memsim.crossbar.matrix import MappedMatrix
from memsim.crossbar.power import RowLoads
from memsim.device import DeviceModel, load_device
from memsim.hardware import Dac
from tests.crossbar.by_hand import small_matrix, spec_of, statistics_of
from tests.crossbar.matrices import from_weight
from tests.crossbar.nodal import cell_volts


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_an_example_by_hand(device: DeviceModel) -> None:
    # ohmic envelopes: LLRS 100 uS, HHRS 20 uS; a cell in state r has 100 - 80 r uS
    ohmic = replace(device, llrs=torch.tensor([1e-4, 0.0]), hhrs=torch.tensor([2e-5, 0.0]))
    cell = MemristorCell(ohmic, vmax_volts=0.4, gain_per_ampere=1.0)
    drive = Drive.make(Dac(bits=None), 1.0, cell, None, torch.device("cpu"), gives_volts=True)
    states = torch.tensor([[0.0, 1.0], [0.5, 0.25]]).view(1, 1, 1, 2, 2)  # two rows of two cells
    loads = RowLoads(drive, ohmic, [(slice(0, 2), states)])
    # 0.4 V: 0.16 V^2 x (100 + 20) uS = 19.2 uW; -0.2 V: 0.04 V^2 x (60 + 80) uS = 5.6 uW
    assert float(loads.watts(torch.tensor([[1.0, -0.5]]))) == pytest.approx(24.8e-6, rel=1e-6)
    assert float(loads.watts(torch.tensor([[1.0, -0.5], [0.0, 0.0], [1.0, -0.5]]))) == pytest.approx(49.6e-6, rel=1e-6)


def volts_by_phase(matrix: MappedMatrix, x: Tensor) -> list[Tensor]:
    """What drives the rows [n, in] in each phase, from the definition of the DAC (uniform)."""
    dac = matrix.spec.dac
    assert dac is not None
    ranges = x.abs().amax(dim=1, keepdim=True) if dac.range == "per_vector" else matrix.input_range
    assert ranges is not None
    u = (x / ranges).clamp(-1, 1).double()
    if dac.bits is not None:
        largest = 2 ** (dac.bits - 1) - 1
        u = (u * largest).round() / largest
    halves = [u.clamp(min=0), (-u).clamp(min=0)] if dac.polarity == "two_phase" else [u]
    if dac.slice_bits is None:
        return [half * dac.vmax_volts for half in halves]
    assert dac.bits is not None
    phases = []
    for half in halves:
        codes = (half * largest).round().long()
        for shift in range(0, dac.bits - 1, dac.slice_bits):
            digits = (codes.abs() // 2**shift) % 2**dac.slice_bits * codes.sign()
            phases.append(digits / (2**dac.slice_bits - 1) * dac.vmax_volts)
    return phases


def watts_by_cell(matrix: MappedMatrix, x: Tensor) -> float:
    """U I, cell by cell."""
    device, total = load_device(matrix.spec.cell), 0.0
    assert matrix.states is not None
    *arrays, in_features, out_features = matrix.states.shape
    for volts in volts_by_phase(matrix, x):
        for *array, row, column in product(*map(range, (*arrays, in_features, out_features))):
            r = matrix.states[*array, row, column].double()
            total += float((volts[:, row] * device.current_amperes(volts[:, row], r)).sum())
    return total


DRIVES: list[dict[str, Any]] = [
    {},
    {"dac": {"bits": None}},
    {"dac": {"polarity": "two_phase"}},
    {"dac": {"slice_bits": 2}},
    {"dac": {"slice_bits": 3, "polarity": "two_phase"}},
    {"dac": {"range": "per_vector", "vmax_volts": 0.6}},
    {"weights": {"bits": 2, "copies": 3}},
    {"weights": {"bits": 4, "encoding": "multilevel"}, "programming": {"scheme": "incremental_reset"}},
    {"faults": {"dead_rows": 0.2, "dead_cols": 0.2, "stuck_lrs": 0.1}},
    {"adc": None, "read_noise": None},
]


@pytest.mark.parametrize("changes", DRIVES, ids=str)
def test_it_is_the_sum_over_single_cells(changes: dict[str, Any]) -> None:
    matrix = small_matrix(spec_of(**changes))
    x = 0.8 * normal(4, 5)
    assert matrix.cell_watts(x) == pytest.approx(watts_by_cell(matrix, x), rel=1e-5)


def test_blocks_on_a_diagonal_are_driven_by_their_own_inputs() -> None:
    x = normal(50, 10)
    matrix = from_weight("layer", normal(15, 2), spec_of(rows=4, bits=2), 0, statistics_of(x), groups=5)
    tiling = matrix.tiling
    assert (tiling.packs, tiling.blocks_per_pack) == (5, 1)
    whole = 0.0
    for index in range(tiling.packs):
        _, inputs, outputs = tiling.pack(index)
        alone = MappedMatrix("one", matrix.spec, matrix.levels[outputs], matrix.scale, matrix.states[..., outputs])
        alone.input_range = matrix.input_range
        whole += watts_by_cell(alone, x[:, inputs])
    assert matrix.cell_watts(x) == pytest.approx(whole, rel=1e-5)


def test_packed_blocks_with_an_odd_one_out() -> None:
    x = normal(50, 6)
    spec = spec_of(rows=4, bits=2).with_settings({"tile.cols": 8})
    matrix = from_weight("layer", normal(9, 2), spec, 0, statistics_of(x), groups=3)
    tiling = matrix.tiling
    assert (tiling.packs, tiling.blocks_per_pack, tiling.in_features) == (2, 2, 4)
    whole = 0.0
    for index, rows in enumerate((4, 2)):
        _, inputs, outputs = tiling.pack(index)
        states = matrix.states[..., :rows, outputs]
        alone = MappedMatrix("one", matrix.spec, matrix.levels[outputs], matrix.scale, states)
        alone.input_range = matrix.input_range
        whole += watts_by_cell(alone, x[:, inputs])
    assert matrix.cell_watts(x) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("solve", ["nodal", "effective"])
@pytest.mark.parametrize("polarity", ["signed", "two_phase"])
def test_wires_take_a_part(solve: str, polarity: str) -> None:
    """The drivers give U times what leaves each row through its cells, whose voltages are what wires leave them."""
    wires = {"ohms": 20.0, "solve": solve}
    spec = spec_of(rows=16, dac={"polarity": polarity}, wires=wires).with_settings({"tile.cols": 16})
    matrix = small_matrix(spec, out_features=20, in_features=24)
    x = 0.8 * normal(2, 24)
    device, whole = load_device(spec.cell), 0.0
    ir_drop = matrix.arrays.ir_drop_columns()[0]
    assert ir_drop is not None
    for volts in volts_by_phase(matrix, x):
        tiles = torch.stack([volts[:, :16], torch.nn.functional.pad(volts[:, 16:], (0, 8))]).float()
        driven = tiles.repeat_interleave(len(ir_drop.arrays.states) // 2, dim=0)
        across = cell_volts(ir_drop.arrays, driven)
        present = 1.0 if ir_drop.arrays.present is None else ir_drop.arrays.present[:, None]
        amperes = device.current_amperes(across, ir_drop.arrays.states[:, None]) * present
        whole += float((driven[..., None] * amperes).sum(dtype=torch.float64))
    assert matrix.cell_watts(x) == pytest.approx(whole, rel=1e-4)
    without = small_matrix(spec.with_settings({"wires": None}), out_features=20, in_features=24).cell_watts(x)
    assert 0.3 * without < whole < 0.95 * without


def test_a_few_inputs_stand_for_all_in_what_wires_take() -> None:
    spec = spec_of(rows=16, wires={"ohms": 20.0}).with_settings({"tile.cols": 16})
    matrix = small_matrix(spec, out_features=20, in_features=24)
    x = 0.8 * normal(40, 24)
    one_by_one = sum(matrix.cell_watts(row[None]) for row in x)
    assert matrix.cell_watts(x) == pytest.approx(one_by_one, rel=0.03)


def test_nothing_is_taken_at_zero_volts() -> None:
    for wires in (None, {"ohms": 20.0}):
        assert small_matrix(spec_of(wires=wires)).cell_watts(torch.zeros(3, 5)) == 0


def test_ideal_cells_draw_no_current() -> None:
    matrix = small_matrix(spec_of(cell="ideal"))
    assert matrix.cell_watts(normal(4, 5)) == 0


def test_reads_are_counted_on_request_and_come_out_the_same() -> None:
    matrix = small_matrix(spec_of())
    x = normal(70, 5)
    matrix.reads.begin("batch")
    plain = matrix(x)
    assert (matrix.work.vectors, matrix.work.cell_watts) == (0, 0.0)
    matrix.reads.count_work = True
    matrix.reads.begin("batch")
    assert torch.equal(matrix(x), plain)
    assert matrix.work.vectors == 70
    assert float(matrix.work.cell_watts) == pytest.approx(matrix.cell_watts(x), rel=1e-9)
    matrix.stream([x[:40], x[40:]])
    assert matrix.work.vectors == 140
    assert float(matrix.work.cell_watts) == pytest.approx(2 * matrix.cell_watts(x), rel=1e-9)


def test_a_new_calibration_changes_the_voltages() -> None:
    matrix, x = small_matrix(spec_of(adc=None, read_noise=None)), normal(4, 5)
    before = matrix.cell_watts(x)
    matrix.calibrate(statistics_of(3 * normal(500, 5)))
    assert matrix.cell_watts(x) < 0.5 * before
