"""Cells that are read back: what they become, and the levels that correct it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import memsim
from memsim.crossbar.matrix import MappedMatrix
from memsim.crossbar.program import outcome_states, program_matrix
from memsim.errors import InputError
from memsim.hardware import HardwareSpec
from memsim.networks.mapped_file import load_chip
from memsim.nn.chip import mapping_of, remap
from memsim.post_training.feedback import BLOCK, feedback
from memsim.post_training.fitting import fitted
from memsim.post_training.read_back import CellOutcomes, cell_outcomes
from memsim.post_training.recipe import load_mapping
from memsim.storage.checkpoint import load_checkpoint

READ_BACK = load_mapping({"feedback": {"read_back": "rows"}})
SPECS = {
    "single pulses": {"base": "physical"},
    "tightly verified": {"base": "write-verify"},
    "several bits a cell": {"base": "multilevel"},
    "copies and faults": {
        "base": "physical",
        "weights": {"copies": 3},
        "faults": {"stuck_lrs": 0.1, "stuck_hrs": 0.1, "dead_rows": 0.1, "dead_cols": 0.1},
    },
    "disturbed by reads": {"base": "physical", "dac": {"vmax_volts": 0.6}, "read_disturb": "settle"},
    "cycled": {"base": "paper"},
}


def spec_of(base: object, bits: int = 4) -> HardwareSpec:
    tile = {"rows": 16, "cols": 16}
    return (
        memsim.load_hardware(base)
        .with_settings({"weights.bits": bits, "digital": []})
        .model_copy(update={"tile": memsim.load_hardware({"tile": tile}).tile})
    )


def levels_of(out: int, features: int, largest: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-largest, largest + 1, (out, features), generator=generator).to(torch.int8)


def problem(out: int, features: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, its step, and second moments of inputs that resemble each other."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, features, generator=generator, dtype=torch.float64)
    x = torch.randn(600, 5, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(5, features, generator=generator, dtype=torch.float64)
    x += 0.3 * torch.randn(600, features, generator=generator, dtype=torch.float64)
    return weight, torch.full_like(weight, 0.4), x.T @ x / 600


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize(("groups", "features"), [(1, 36), (3, 12), (3, 4)])  # of the last, blocks share tiles
def test_outcomes_are_the_cells_that_programming_gives(kind: str, groups: int, features: int) -> None:
    spec = spec_of(SPECS[kind])
    levels = levels_of(12, features, 7)
    states, _ = program_matrix("layer", levels, spec, 5, groups)
    assert states is not None
    at_each = outcome_states("layer", levels.shape, spec, 5, groups, torch.device("cpu"))
    matrix = MappedMatrix("layer", spec, levels, torch.ones(12), states, groups)
    digits = matrix.tiling.digits(matrix.tiling.spread(levels)).long().view(states.shape)
    assert torch.equal(at_each.gather(0, digits[None])[0], states)

    outcomes = cell_outcomes("layer", levels.shape, spec, 5, groups)
    assert outcomes is not None
    weights = matrix.arrays.significances() / matrix.arrays.mean_window()
    became = torch.einsum("s,sio->oi", weights, matrix.arrays.difference())
    own = became[matrix.tiling.spread(torch.ones_like(levels)).bool()].view(levels.shape)
    torch.testing.assert_close(outcomes.became(levels).float(), own, rtol=1e-5, atol=1e-5)
    # its norm is what the programming error measures
    if groups == 1:
        change = (outcomes.became(levels) - levels).norm() / levels.double().norm()
        assert float(change) == pytest.approx(matrix.programming_error(), rel=1e-4)


def test_what_happens_later_is_not_read_back() -> None:
    spec, levels = spec_of("physical"), levels_of(8, 20, 7)
    later = spec.with_settings({"programming.relaxation": 0.1, "retention": "{age_seconds: 1000}"})
    now, then = (cell_outcomes("layer", levels.shape, own, 5) for own in (spec, later))
    assert now is not None
    assert then is not None
    assert torch.equal(now.states, then.states)
    assert not torch.equal(*(program_matrix("layer", levels, own, 5)[0] for own in (spec, later)))


def test_ideal_cells_have_no_outcomes() -> None:
    assert cell_outcomes("layer", (4, 4), spec_of("ideal"), 0) is None


def by_least_squares(weight: Tensor, step: Tensor, moments: Tensor, cells: CellOutcomes, order: Tensor) -> Tensor:
    """Program one input after the other, look what it became, and solve for the best later weights each time."""
    damped = moments + 0.01 * moments.diagonal().mean() * torch.eye(len(moments), dtype=moments.dtype)
    wanted, levels = weight.clone(), torch.zeros_like(weight)
    for place, i in enumerate(order.tolist()):
        levels[:, i] = (wanted[:, i] / step[:, i]).round().clamp(-7, 7)
        later = order[place + 1 :]
        left = wanted[:, i] - cells.became(levels)[:, i] * step[:, i]
        if len(later):
            wanted[:, later] += left[:, None] * torch.linalg.solve(damped[later][:, later], damped[later, i])
    return levels


@pytest.mark.parametrize("kind", ["single pulses", "several bits a cell", "copies and faults"])
@pytest.mark.parametrize("by_importance", [True, False])
def test_each_step_is_that_of_least_squares(kind: str, by_importance: bool) -> None:
    for seed in range(5):
        weight, step, moments = problem(6, 12, seed)
        cells = cell_outcomes("layer", weight.shape, spec_of(SPECS[kind]), seed)
        assert cells is not None
        order = moments.diagonal().argsort(descending=True, stable=True) if by_importance else torch.arange(12)
        expected = by_least_squares(weight, step, moments, cells, order)
        found, _ = feedback(weight, step, moments, 7, 0.01, by_importance=by_importance, cells=cells)
        assert torch.equal(found, expected)


@settings(max_examples=30, deadline=None)
@given(place=st.integers(0, 2 * BLOCK), output=st.integers(0, 4), seed=st.integers(0, 1000))
def test_a_cell_changes_the_levels_of_later_inputs_alone(place: int, output: int, seed: int) -> None:
    features = 2 * BLOCK + 1
    generator = torch.Generator().manual_seed(seed)
    states = torch.rand(2, 3, 2, 1, features, 5, generator=generator).half()
    weight, step, moments = problem(5, features, seed % 3)
    steps = torch.tensor([1.0, 2.0, 4.0])
    other = states.clone()
    other[..., place, output] = torch.rand(2, 3, 2, 1, generator=generator).half()
    found, changed = (
        feedback(weight, step, moments, 7, 0.01, by_importance=False, cells=CellOutcomes(part, steps, 1))[0]
        for part in (states, other)
    )
    differ = (found != changed).nonzero()
    assert (differ[:, 0] == output).all()
    assert (differ[:, 1] > place).all()  # not its own either: it is chosen before it is known


def test_it_takes_errors_of_cells_out_of_the_products() -> None:
    weight, step, moments = problem(40, 120)
    cells = cell_outcomes("layer", weight.shape, spec_of("physical"), 0)
    assert cells is not None

    def error(levels: Tensor) -> float:
        change = cells.became(levels) * step - weight
        return float((change @ moments * change).sum() / (weight @ moments * weight).sum()) ** 0.5

    plain, _ = feedback(weight, step, moments, 7, 0.01)
    read, _ = feedback(weight, step, moments, 7, 0.01, cells=cells)
    assert error(read) < 0.6 * error(plain)
    blind = cell_outcomes("layer", weight.shape, spec_of("physical"), 1)  # of another chip
    assert error(feedback(weight, step, moments, 7, 0.01, cells=blind)[0]) > error(plain)


@pytest.mark.parametrize("groups", [1, 3])
def test_a_matrix_is_fitted_to_the_cells_of_its_blocks(groups: int) -> None:
    spec = spec_of("physical")
    parts = [problem(12 // groups, 36 // groups, seed) for seed in range(groups)]
    weight, moments = torch.cat([part[0] for part in parts]).float(), torch.stack([part[2] for part in parts]).float()
    cells = cell_outcomes("layer", weight.shape, spec, 0, groups)
    read = fitted(weight, spec, READ_BACK, moments, None, groups, cells=cells)
    plain = fitted(weight, spec, load_mapping({"feedback": {}}), moments, None, groups)
    assert read.fit.cells_error is not None
    assert plain.fit.cells_error is None
    step = read.scale[:, None]
    change = cells.became(read.levels) * step - weight
    squares = [
        float((rows @ own * rows).sum())
        for each in (change, weight.double())
        for rows, own in zip(each.chunk(groups), moments.double(), strict=True)
    ]
    expected = (sum(squares[:groups]) / sum(squares[groups:])) ** 0.5
    assert read.fit.cells_error == pytest.approx(expected, rel=1e-4)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20)).eval()


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list(torch.randn(4, 60, 6, generator=generator) @ torch.randn(6, 40, generator=generator))


def test_a_programmer_reads_every_cell_once_more(net: nn.Module) -> None:
    spec = spec_of("physical")
    plain, read = (
        memsim.map_model(net, spec, mapping=recipe, calibration=batches())
        for recipe in (load_mapping({"feedback": {}}), READ_BACK)
    )
    for name, matrix in read.mapping.layers.items():
        before, after = plain.mapping.layers[name].programming, matrix.programming
        assert after.read_back == after.cells
        assert before.read_back == 0
        assert after.verify_reads == after.cells  # single pulses have no other verify reads
        assert after.seconds == pytest.approx(after.pulses * 1e-6 + after.cells * 1e-7)
        assert after.to_dict()["read_back"] == after.cells
        assert "read_back" not in before.to_dict()
        states, _ = program_matrix(name, matrix.levels, matrix.spec, 0)
        assert torch.equal(matrix.states, states)
    assert read.mapping.report.chip == 0
    assert plain.mapping.report.chip is None
    assert "cells read back row by row in 2" in str(read.mapping.report)
    errors = [[m.deviations[name].to_full_precision for name in m.layers] for m in (read.mapping, plain.mapping)]
    assert sum(errors[0]) < 0.8 * sum(errors[1])


def test_other_chips_are_refused(net: nn.Module) -> None:
    spec = spec_of("physical")
    chip = memsim.map_model(net, spec, mapping=READ_BACK, calibration=batches(), seed=4)
    with pytest.raises(
        InputError, match=r"^mapping custom: its levels correct the cells of one chip \(seed 4\).*seed 5"
    ):
        remap(chip, chip.mapping.spec, seed=5)
    with pytest.raises(InputError, match="wrong on the cells of hardware physical"):
        remap(chip, chip.mapping.spec.with_settings({"programming.set_volts": -1.5}), seed=4)
    statistics = memsim.measure_inputs(net, batches())
    fewer = remap(chip, chip.mapping.spec.with_settings({"adc.bits": 6}), seed=4, statistics=statistics)
    assert torch.equal(fewer.mapping.layers["0"].states, chip.mapping.layers["0"].states)
    remap(chip, chip.mapping.spec.digital_twin(), seed=5)


def test_trials_fit_each_chip(net: nn.Module) -> None:
    data = [(x, net(x)) for x in batches()]

    def distance(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean(dim=1)

    spec, given_ = spec_of("physical"), [x for x, _ in data]
    options = {"score": distance, "lower_is_better": True, "hardware": spec, "mapping": READ_BACK}
    found = memsim.evaluate(net, data, calibration=given_, trials=2, **options)
    statistics = memsim.measure_inputs(net, given_, with_moments=True)
    for seed, trial in enumerate(found.trials):
        chip = memsim.map_model(net, spec, mapping=READ_BACK, calibration=statistics, seed=seed, trial=seed)
        chip.mapping.begin_batch("batch 0")
        first = trial.score.contributions[0][0]
        assert first == pytest.approx(float(distance(chip(data[0][0]), data[0][1])[0]), rel=1e-4)


def test_a_file_of_one_chip(tiny_recogniser: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    memsim.map_checkpoint(
        tiny_recogniser, "physical", bits=3, calibrate="demo", mapping=READ_BACK.to_dict(), out=out, seed=2
    )
    checkpoint = load_checkpoint(out)
    stored = json.loads(checkpoint.metadata["mapping"])
    assert stored["chip"] == 2
    assert stored["recipe"]["feedback"]["read_back"] == "rows"
    mapping = mapping_of(load_chip(checkpoint)[0].model)
    assert mapping.report.chip == 2
    assert all(fit.cells_error is not None for fit in mapping.report.layers.values())
    memsim.evaluate(out, "demo", limit=1)
    with pytest.raises(InputError, match=r"correct the cells of one chip \(seed 2\).* seed 4"):
        memsim.evaluate(out, "demo", limit=1, trials=3)
    with pytest.raises(InputError, match="wrong on the cells of hardware best"):
        memsim.evaluate(out, "demo", limit=1, hardware="best", seed=2)
