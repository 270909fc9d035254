"""Trims of a programmed chip: what they take out, what they leave alone, and other chips of the same file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import memsim
from memsim.crossbar.input_transform import InputTransform
from memsim.crossbar.matrix import MappedMatrix
from memsim.crossbar.statistics import InputStatistics, one_hot_statistics
from memsim.errors import InputError
from memsim.hardware import HardwareSpec
from memsim.networks.mapped_file import load_chip
from memsim.nn.chip import mapping_of, remap, trim
from memsim.nn.collect import StatisticsCollector
from memsim.nn.deviation import exact_product, product_error
from memsim.post_training.fitting import LayerFit
from memsim.post_training.recipe import load_mapping
from memsim.post_training.trims import STRENGTHS, _Problem, can_trim, fit_trims, tile_results
from memsim.storage.checkpoint import load_checkpoint
from tests.crossbar.matrices import from_weight

SEED = 3


def spec_of(base: object = "physical", rows: int = 16) -> HardwareSpec:
    given_ = {"base": base, "weights": {"bits": 4}, "tile": {"rows": rows, "cols": 16}, "digital": []}
    return memsim.load_hardware(given_)


def inputs(rows: int, features: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(seed))


def statistics_of(x: Tensor) -> InputStatistics:
    collector = StatisticsCollector(torch.Generator().manual_seed(0))
    collector.add(x)
    return collector.result()


def programmed(
    spec: HardwareSpec, out: int = 10, features: int = 40, rows: int = 200
) -> tuple[MappedMatrix, InputStatistics, Tensor]:
    """A calibrated matrix, the statistics of its inputs and its full-precision weight."""
    weight, statistics = inputs(out, features, 1), statistics_of(inputs(rows, features))
    return from_weight("layer", weight, spec, SEED, statistics), statistics, weight


def test_the_results_of_tiles_add_up_to_the_product() -> None:
    spec = spec_of().with_settings({"read_noise": "none"})
    matrix, statistics, _ = programmed(spec)
    matrix.set_trims(torch.full((3, 10), 1.5), torch.ones(10))  # not used
    results = tile_results(matrix, statistics.sample, SEED)
    assert results.shape == (len(statistics.sample), 3, 10)
    matrix.set_trims(None, None)
    torch.testing.assert_close(results.sum(dim=1).float(), matrix(statistics.sample), rtol=1e-4, atol=1e-4)
    for tile in range(3):  # the result of a tile is that of its inputs alone
        only = torch.zeros_like(statistics.sample)
        only[:, 16 * tile : 16 * tile + 16] = statistics.sample[:, 16 * tile : 16 * tile + 16]
        torch.testing.assert_close(results[:, tile].float(), matrix(only), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("by_tile", [False, True])
def test_digital_rows_are_not_trimmed(by_tile: bool) -> None:
    """Trims are fitted to what the arrays give, beside an input whose product is digital and far larger."""
    weight, statistics = inputs(10, 40, 1), statistics_of(inputs(200, 40) * torch.linspace(30, 1, 40).clamp_max(2))
    weight[:, 0] *= 100
    transform = InputTransform.make(weight, digital_rows=torch.tensor([0]))
    levels_of = from_weight("layer", transform.weight(weight), spec_of(), SEED)
    on_arrays = levels_of.levels, levels_of.scale, spec_of(), SEED, statistics, 1, transform
    matrix = MappedMatrix.from_levels("layer", *on_arrays)
    wanted = exact_product(matrix, statistics.sample, weight)
    before = product_error(matrix, statistics, wanted, SEED)
    trims = fit_trims(matrix, statistics, wanted, by_tile, SEED)
    matrix.set_trims(trims.gain, trims.offset)
    assert (trims.gain - 1).abs().max() < 0.3
    assert product_error(matrix, statistics, wanted, SEED) < before


@pytest.mark.parametrize("by_tile", [False, True])
def test_offsets_of_the_levels_are_not_trimmed(by_tile: bool) -> None:
    matrix, statistics, _ = programmed(spec_of())
    matrix.offset = torch.linspace(-3, 3, 10)
    wanted = tile_results(matrix, statistics.sample, SEED).sum(dim=1) + matrix.offset
    found = fit_trims(matrix, statistics, wanted, by_tile, SEED)
    assert found.outputs == 0
    assert found.untrimmed_error < 1e-3


@pytest.mark.parametrize("by_tile", [False, True])
def test_known_gains_and_offsets_are_found(by_tile: bool) -> None:
    spec = spec_of("best").with_settings({"dac.bits": 12, "adc.bits": 16, "adc.method": "max"})
    statistics = statistics_of(inputs(200, 40)).taken_as_all()
    matrix = from_weight("layer", inputs(10, 40, 1), spec, SEED, statistics)
    results = tile_results(matrix, statistics.sample, SEED)
    gains = 1 + 0.3 * torch.rand(
        3 if by_tile else 1, 10, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    offsets = torch.linspace(-1, 1, 10, dtype=torch.float64)
    matrix.set_trims(torch.full((3, 10), 1.5), torch.ones(10))  # not used
    found = fit_trims(matrix, statistics, (results * gains).sum(dim=1) + offsets, by_tile, SEED)
    assert found.gain.shape == (3, 10)
    torch.testing.assert_close(found.gain.double(), gains.expand(3, 10), rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(found.offset.double(), offsets, rtol=1e-2, atol=1e-2)
    assert found.outputs == 10
    assert found.trimmed_error < 0.02 < found.untrimmed_error


@settings(max_examples=30, deadline=None)
@given(
    tiles=st.integers(1, 4),
    out=st.integers(1, 4),
    rows=st.integers(3, 30),
    strength=st.sampled_from(STRENGTHS[:-1]),
    seed=st.integers(0, 10**6),
)
def test_trims_solve_the_ridge_regression(tiles: int, out: int, rows: int, strength: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    results = torch.randn(rows, tiles, out, generator=generator, dtype=torch.float64)
    wanted = torch.randn(rows, out, generator=generator, dtype=torch.float64)
    weights = 1 + torch.rand(rows, generator=generator, dtype=torch.float64)
    problem = _Problem.of(results, wanted, weights)
    whole = results.sum(dim=1)
    one_gain = (weights[:, None] * whole * wanted).sum() / (weights[:, None] * whole.square()).sum()
    found = problem.solved(strength)
    for output in range(out):  # as an ordinary least-squares problem with a row for each penalty
        features = torch.cat([results[:, :, output], torch.ones(rows, 1, dtype=torch.float64)], dim=1)
        centre = torch.cat([one_gain.expand(tiles), torch.zeros(1, dtype=torch.float64)])
        sizes = (weights[:, None] * features.square()).sum(dim=0)
        left = torch.cat([weights.sqrt()[:, None] * features, (strength * sizes).sqrt().diag()])
        right = torch.cat([weights.sqrt() * wanted[:, output], (strength * sizes).sqrt() * centre])
        torch.testing.assert_close(found[output], torch.linalg.lstsq(left, right[:, None]).solution[:, 0])
    errors = ((torch.cat([results, torch.ones(rows, 1, out)], dim=1) * found.T).sum(dim=1) - wanted).square()
    torch.testing.assert_close(problem.errors(found), (weights[:, None] * errors).sum(dim=0))
    torch.testing.assert_close(problem.solved(1e9)[:, :-1], one_gain.expand(out, tiles), rtol=1e-6, atol=1e-6)


def test_what_does_not_help_is_left_alone() -> None:
    matrix, statistics, _ = programmed(spec_of("best"))
    # what is wanted is what the chip gives, and noise that no trim explains
    results = tile_results(matrix, statistics.sample, SEED).sum(dim=1)
    noise = results.std() * torch.randn(results.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    found = fit_trims(matrix, statistics, results + noise, True, SEED)
    assert found.trimmed_error <= found.untrimmed_error
    same = (found.gain == 1).all(dim=0) & (found.offset == 0)
    assert int(same.sum()) == 10 - found.outputs
    assert (found.gain - 1).abs().mean() < 0.15
    exact = fit_trims(matrix, statistics, results, True, SEED)
    assert exact.outputs == 0
    assert torch.equal(exact.gain, torch.ones(3, 10))
    assert torch.equal(exact.offset, torch.zeros(10))


@pytest.mark.parametrize(("way", "left"), [("column", 0.995), ("tile", 0.9)])
def test_ir_drop_is_lessened_in_fresh_products(way: str, left: float) -> None:
    # the larger part differs from row to row of a tile, which no gain of its sum takes out
    spec = spec_of("best", rows=64).with_settings(
        {"wires": "{ohms: 3.0, solve: effective}", "tile.cols": 64, "weights.bits": 8}
    )
    matrix, statistics, weight = programmed(spec, 24, 100, 400)
    fresh = statistics_of(inputs(200, 100, 9))
    wanted = exact_product(matrix, fresh.sample, weight)
    before = product_error(matrix, fresh, wanted, SEED)
    fit = trim(matrix, statistics, way, SEED, weight, LayerFit("nearest"))
    assert matrix.gain_trim is not None
    after = product_error(matrix, fresh, wanted, SEED)
    assert after < left * before
    assert fit.trimmed is not None
    assert fit.trimmed > 12
    assert after == pytest.approx(fit.trimmed_error, rel=0.3)


def test_there_is_nothing_to_trim() -> None:
    matrix, statistics, weight = programmed(spec_of())
    few = replace(statistics, sample=statistics.sample[:9], weights=statistics.weights[:9])
    one_hot = one_hot_statistics(40)
    ideal, _, _ = programmed(spec_of().digital_twin())
    assert can_trim(matrix, statistics)
    for there, known in ((matrix, few), (matrix, one_hot), (ideal, statistics)):
        assert trim(there, known, "tile", SEED, weight[:, :40], LayerFit("nearest")) == LayerFit("nearest")
        assert there.gain_trim is None


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20)).eval()


TRIMMED = load_mapping({"name": "trimmed", "trim": "tile"})


def test_every_chip_has_its_own(net: nn.Module) -> None:
    batches = list(inputs(240, 40).split(60))
    spec = spec_of()
    chip = memsim.map_model(net, spec, mapping=TRIMMED, calibration=batches)
    plain = memsim.map_model(net, spec, calibration=batches)
    for name, matrix in chip.mapping.layers.items():
        assert torch.equal(matrix.levels, plain.mapping.layers[name].levels)
        assert torch.equal(matrix.states, plain.mapping.layers[name].states)
        assert matrix.gain_trim is not None
        errors = [m.deviations[name].to_full_precision for m in (chip.mapping, plain.mapping)]
        assert errors[0] < errors[1]
    assert "outputs trimmed in 2" in str(chip.mapping.report)
    statistics = memsim.measure_inputs(net, batches)
    other = remap(chip, chip.mapping.spec, seed=9, statistics=statistics)
    for name, matrix in other.mapping.layers.items():
        expected = fit_trims(
            matrix,
            statistics[name],
            exact_product(matrix, statistics[name].sample, matrix.quantised_weight()),
            True,
            9,
        )
        assert torch.equal(matrix.gain_trim, expected.gain)
        assert not torch.equal(matrix.gain_trim, chip.mapping.layers[name].gain_trim)
        assert other.mapping.report.layers[name].trimmed == expected.outputs
    twin = remap(chip, chip.mapping.spec.digital_twin(), seed=9, statistics=statistics)
    assert all(matrix.gain_trim is None for matrix in twin.mapping.layers.values())


def test_unknown_inputs_are_refused(net: nn.Module) -> None:
    with pytest.raises(InputError, match=r"^mapping trimmed: needs the inputs of 0, 2, which are not known"):
        memsim.map_model(net, spec_of(), mapping=TRIMMED)


def test_a_file_keeps_them(tiny_recogniser: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    result = memsim.map_checkpoint(
        tiny_recogniser, "physical", bits=3, calibrate="demo", mapping=TRIMMED.to_dict(), out=out
    )
    assert sum(fit.trimmed or 0 for fit in result.mapped.report.layers.values()) > 0
    mapping = mapping_of(load_chip(load_checkpoint(out))[0].model)
    assert mapping.report == result.mapped.report
    assert any(matrix.gain_trim is not None for matrix in mapping.layers.values())
    own, again = (memsim.evaluate(out, "demo", limit=2, trials=2) for _ in range(2))
    assert [trial.score for trial in own.trials] == [trial.score for trial in again.trials]
