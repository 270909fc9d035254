"""The error budget of a layer: closed forms where they exist, and the chip itself as its last step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from memsim import load_hardware
from memsim.crossbar.convert import dac_codes
from memsim.crossbar.read_context import ReadContext
from memsim.crossbar.statistics import InputStatistics
from memsim.errors import InputError
from memsim.hardware import HardwareSpec
from memsim.nn.budget import Budget, LayerBudget, increments, layer_budget, require_samples
from memsim.nn.plan import layer_spec
from tests.crossbar.by_hand import statistics_of
from tests.crossbar.matrices import from_weight

EVERYTHING: dict[str, Any] = {
    "base": "physical",
    "weights": {"bits": 3},
    "tile": {"rows": 16, "cols": 16},
    "programming": {"relaxation": 0.02},
    "dac": {"vmax_volts": 0.6},
    "read_disturb": "settle",
    "retention": {"age_seconds": 1e6},
    "faults": {"stuck_lrs": 0.02},
    "wires": {"ohms": 2.0, "solve": "effective"},
}
EFFECTS = [
    "quantisation",
    "dac",
    "iv",
    "programming",
    "read_disturb",
    "retention",
    "faults",
    "wires",
    "adc",
    "read_noise",
]


@pytest.fixture(scope="module")
def weight() -> Tensor:
    return torch.randn(20, 30, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def statistics() -> InputStatistics:
    return statistics_of(torch.randn(100, 30, generator=torch.Generator().manual_seed(2)))


def relative(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


def budget_of(
    spec: HardwareSpec, weight: Tensor, statistics: InputStatistics, seed: int = 0, against_quantised: bool = False
) -> LayerBudget:
    matrix = from_weight("layer", weight, spec.for_layer("layer"), seed, statistics)
    return layer_budget(matrix, spec.steps(), seed, statistics, None if against_quantised else weight)


def test_exact_hardware_has_the_error_of_its_weights_alone(weight: Tensor, statistics: InputStatistics) -> None:
    spec = load_hardware("ideal").with_settings({"weights.bits": 3})
    matrix = from_weight("layer", weight, spec, 0)
    quantised = matrix.levels.double() * matrix.scale.double()[:, None]
    x = statistics.sample.double()
    wanted = relative(x @ quantised.T, x @ weight.double().T)
    assert wanted > 0.05
    assert dict(budget_of(spec, weight, statistics).errors) == {"quantisation": pytest.approx(wanted, rel=1e-5)}


def test_a_dac_adds_the_rounding_of_inputs(weight: Tensor, statistics: InputStatistics) -> None:
    spec = load_hardware({"base": "ideal", "weights": {"bits": 3}, "dac": {"bits": 4, "method": "max"}})
    matrix = from_weight("layer", weight, spec, 0, statistics)
    quantised = matrix.levels.double() * matrix.scale.double()[:, None]
    step = statistics.absmax / 7
    x = statistics.sample
    rounded = dac_codes(x, statistics.absmax, 4).double() * step
    errors = budget_of(spec, weight, statistics).errors
    assert list(errors) == ["quantisation", "dac"]
    assert errors["dac"] == pytest.approx(relative(rounded @ quantised.T, x.double() @ weight.double().T), rel=1e-5)
    # against the quantised weights it is the rounding alone, and quantisation is no step
    against_quantised = budget_of(spec, weight, statistics, against_quantised=True).errors
    wanted = relative(rounded @ quantised.T, x.double() @ quantised.T)
    assert dict(against_quantised) == {"dac": pytest.approx(wanted, rel=1e-5)}


def test_exact_hardware_against_its_own_weights_has_no_error(weight: Tensor, statistics: InputStatistics) -> None:
    spec = load_hardware("ideal").with_settings({"weights.bits": 3})
    budget = Budget((budget_of(spec, weight, statistics, against_quantised=True),), against_full_precision=False)
    assert budget.to_dict() == {
        "against": "quantised",
        "error": 0.0,
        "effects": [],
        "layers": [{"name": "layer", "error": 0.0, "effects": []}],
    }


@pytest.mark.parametrize("hardware", ["physical", "paper", "incremental-reset", "multilevel", EVERYTHING])
def test_the_last_error_is_that_of_the_chip(
    hardware: str | dict[str, Any], weight: Tensor, statistics: InputStatistics
) -> None:
    spec = load_hardware(hardware).with_settings({"weights.bits": 3})
    if spec.programming.scheme == "single_pulse" and spec.programming.cycling:
        spec = spec.with_settings({"programming.cycling.pulses_per_round": 2})
    matrix = from_weight("layer", weight, spec, 3, statistics)
    shared = matrix.reads
    budget = layer_budget(matrix, spec.steps(), 3, statistics, weight)
    assert matrix.reads is shared
    matrix.reads = ReadContext(3, batch="budget")
    x = statistics.sample
    assert budget.total == pytest.approx(relative(matrix(x), x.double() @ weight.double().T), rel=1e-6)
    assert list(budget.errors) == [effect for effect in EFFECTS if effect in spec.steps()]
    if hardware is EVERYTHING:
        assert list(budget.errors) == EFFECTS


def test_every_step_is_the_chip_that_its_spec_describes(weight: Tensor, statistics: InputStatistics) -> None:
    """Programmed on its own, from the same seed: sharing cells between steps changes nothing."""
    spec = load_hardware(EVERYTHING)
    errors = budget_of(spec, weight, statistics, seed=5).errors
    x = statistics.sample
    for effect, step in spec.steps().items():
        alone = from_weight("layer", weight, step, 5, statistics)
        alone.reads = ReadContext(5, batch="budget")
        assert errors[effect] == pytest.approx(relative(alone(x), x.double() @ weight.double().T), rel=1e-6), effect


def test_chips_differ_from_programming_on(weight: Tensor, statistics: InputStatistics) -> None:
    spec = load_hardware(EVERYTHING)
    one, other = (budget_of(spec, weight, statistics, seed).errors for seed in (0, 1))
    first = EFFECTS.index("programming")
    assert all(one[effect] == other[effect] for effect in EFFECTS[:first])
    assert all(one[effect] != other[effect] for effect in EFFECTS[first:])


def test_what_a_layer_leaves_out_adds_nothing_to_it(weight: Tensor, statistics: InputStatistics) -> None:
    overrides = [{"match": "layer", "adc": None, "read_noise": None}]
    spec = load_hardware({"base": "physical", "weights": {"bits": 3}, "overrides": overrides})
    budget = budget_of(spec, weight, statistics)
    added = increments(budget.errors)
    assert added["programming"] > 0
    assert (added["adc"], added["read_noise"]) == (0.0, 0.0)
    assert budget.errors["adc"] == budget.errors["programming"] == budget.total


def test_a_matrix_of_zeros_has_no_relative_error(statistics: InputStatistics) -> None:
    budget = budget_of(load_hardware("physical").with_settings({"weights.bits": 3}), torch.zeros(4, 30), statistics)
    assert set(budget.errors.values()) == {0.0}


# Bookkeeping


@given(st.lists(st.floats(0, 10), min_size=1, max_size=8))
def test_squares_of_increments_add_up(values: list[float]) -> None:
    errors = {f"effect {i}": value for i, value in enumerate(values)}
    added = increments(errors)
    assert list(added) == list(errors)
    total = math.fsum(math.copysign(a * a, a) for a in added.values())
    assert total == pytest.approx(values[-1] ** 2, abs=1e-9)
    for before, effect in zip([0.0, *values], errors, strict=False):
        assert (added[effect] < 0) == (errors[effect] ** 2 < before**2)


def test_layers_count_alike_and_the_worst_are_named() -> None:
    near = LayerBudget("near", {"quantisation": 0.3, "adc": 0.5})
    far = LayerBudget("far", {"quantisation": 0.1, "adc": 0.1})
    budget = Budget((far, near), against_full_precision=True)
    assert budget.errors == {"quantisation": pytest.approx(0.05**0.5), "adc": pytest.approx(0.13**0.5)}
    assert budget.total == budget.errors["adc"]
    assert budget.worst_layer("quantisation") == ("near", pytest.approx(0.3))
    assert budget.worst_layer("adc") == ("near", pytest.approx(0.4))
    found = budget.to_dict()
    assert [layer["name"] for layer in found["layers"]] == ["near", "far"]
    assert found["effects"][1] == {"effect": "adc", "error": budget.total, "added": pytest.approx(0.08**0.5)}
    assert found["layers"][0]["effects"][1] == {"effect": "adc", "error": 0.5, "added": pytest.approx(0.4)}


def test_layers_without_statistics_are_named_in_one_line(statistics: InputStatistics) -> None:
    require_samples(Path("a"), ["x"], {"x": statistics})
    with pytest.raises(InputError, match=r"^a: holds no input statistics for y and 1 more layer, .* --calibrate DATA"):
        require_samples(Path("a"), ["x", "y", "z"], {"x": statistics})


def test_the_standard_error_is_the_spread_over_inputs(weight: Tensor) -> None:
    """Against the spread of the errors of many samples of as many inputs."""
    spec = load_hardware({"base": "physical", "weights": {"bits": 3}, "read_noise": None})
    everything = torch.randn(4000, 30, generator=torch.Generator().manual_seed(5)) ** 3  # some rows weigh more
    matrix = from_weight("layer", weight, layer_spec("layer", spec), 1, statistics_of(everything))
    found = []
    for rows in everything.split(40):
        found.append(layer_budget(matrix, spec.steps(), 1, statistics_of(rows), weight))
    errors = torch.tensor([budget.total for budget in found])
    claimed = torch.tensor([budget.standard_error for budget in found])
    assert claimed.mean() == pytest.approx(float(errors.std()), rel=0.3)
    single = layer_budget(matrix, spec.steps(), 1, statistics_of(rows[:1]), weight)
    assert single.standard_error is None
    assert "standard_error" not in single.to_dict()


def test_the_worst_layer_may_be_chance() -> None:
    def layer(name: str, error: float, standard_error: float | None) -> LayerBudget:
        return LayerBudget(name, {"adc": error}, standard_error)

    layers = (layer("a", 0.3, 0.03), layer("b", 0.35, 0.03), layer("c", 0.1, 0.001), layer("d", 0.2, None))
    assert Budget(layers, against_full_precision=True).like_the_worst() == ["b", "a"]
    assert Budget((layers[2], layers[3]), against_full_precision=True).like_the_worst() == ["d"]
