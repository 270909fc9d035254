"""The cost of whole networks: sums, scaling, and measurement on the inputs that the chip reads."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from memsim import load_hardware
from memsim.asr.corpora import Corpus, load_corpus
from memsim.asr.input_rates import vectors_per_audio_second
from memsim.asr.recogniser import load_recogniser
from memsim.crossbar.matrix import MappedMatrix
from memsim.evaluation.network_cost import chip_cost
from memsim.evaluation.target import Target
from memsim.hardware import HardwareSpec
from memsim.networks.programming import stored_statistics
from memsim.nn.chip import mapping_of
from memsim.nn.layer_cost import Cost, LayerCost, stored_cost
from memsim.storage.checkpoint import load_checkpoint
from tests.crossbar.matrices import from_weight
from tests.evaluation.calls import prepare

HARDWARE: list[dict[str, Any]] = [
    {},
    {"dac": {"polarity": "two_phase", "slice_bits": 3}},
    {"weights": {"bits": 3, "copies": 2}, "adc": {"range": "fixed", "precision_bits": 3, "range_bits": 3}},
]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus("demo", limit=3)


def subject_of(path: Path, settings: dict[str, Any] | None = None, **changes: Any) -> Target:
    spec = load_hardware({"base": "physical", "weights": {"bits": 3}, **changes}).with_settings(settings or {})
    return prepare(load_checkpoint(path), spec=spec)


@pytest.fixture(scope="module")
def cost(tiny_recogniser: Path, corpus: Corpus) -> Cost:
    return chip_cost(subject_of(tiny_recogniser), corpus)


@pytest.mark.parametrize("changes", HARDWARE, ids=str)
def test_layers_add_up_to_the_whole(tiny_recogniser: Path, corpus: Corpus, changes: dict[str, Any]) -> None:
    facts = chip_cost(subject_of(tiny_recogniser, **changes), corpus).to_dict()
    layers, joules = facts["layers"], facts["joules"]
    assert len(layers) == 10
    for circuit in ("dac", "adc", "cells"):
        assert joules[circuit] == pytest.approx(math.fsum(layer["joules"][circuit] for layer in layers))
        assert joules[circuit] > 0
    for key in ("seconds", "arrays", "dacs", "adcs"):
        assert facts[key] == pytest.approx(math.fsum(layer[key] for layer in layers))
    area = facts["square_millimetres"]
    assert area["total"] == pytest.approx(math.fsum(layer["square_millimetres"] for layer in layers))
    assert area["total"] == pytest.approx(area["cells"] + area["dacs"] + area["adcs"])
    whole = facts["programming"]["joules"]
    assert whole == pytest.approx(math.fsum(layer["programming_joules"] for layer in layers))
    assert joules["programming"] == pytest.approx(whole / 86400)
    assert joules["total"] == pytest.approx(sum(joules[c] for c in ("dac", "adc", "cells", "programming")))
    assert math.fsum(facts["shares"].values()) == pytest.approx(1)
    reading = joules["total"] - joules["programming"]
    assert facts["programming"]["audio_seconds_of_as_much_reading"] == pytest.approx(whole / reading)
    tera_operations = math.fsum(layer["tops_per_watt"] * layer["joules"]["total"] for layer in layers)
    assert facts["tops_per_watt"] == pytest.approx(tera_operations / reading)


def test_the_cells_are_those_of_the_chip_at_the_inputs_that_it_reads(tiny_recogniser: Path, corpus: Corpus) -> None:
    """Utterance by utterance, from what arrives at each matrix."""
    target = subject_of(tiny_recogniser)
    cost = chip_cost(target, corpus)
    chip = target.chip(0)
    mapping = mapping_of(chip)
    watts, vectors = dict.fromkeys(mapping.layers, 0.0), dict.fromkeys(mapping.layers, 0)

    def hook(matrix: MappedMatrix, inputs: tuple[Tensor]) -> None:
        rows = inputs[0].flatten(0, -2)
        watts[matrix.name] += matrix.cell_watts(rows)
        vectors[matrix.name] += len(rows)

    for matrix in mapping.layers.values():
        matrix.register_forward_pre_hook(hook)
    from memsim.asr.data import FeatureSource, evaluation_batches
    from memsim.asr.running import transcribe

    source = FeatureSource(target.template.features)
    transcribe(replace(target.template, model=chip), evaluation_batches(corpus.utterances, source, 0.0))
    assert cost.audio_seconds is not None
    for layer in cost.layers:
        assert layer.vectors * cost.audio_seconds == pytest.approx(vectors[layer.name])
        assert layer.cell_joules == pytest.approx(1e-7 * watts[layer.name] / vectors[layer.name], rel=1e-6)


@pytest.mark.parametrize(
    ("key", "value", "scaled"),
    [
        ("cost.cell.read_seconds", 2e-7, {"cells"}),
        ("cost.adc.joules_per_step", 2e-14, {"adc"}),
        ("adc.bits", 9, {"adc"}),
        ("cost.audio_seconds_per_programming", 43200.0, {"programming"}),
        ("programming.pulse_seconds", 2e-6, {"programming"}),
        ("cost.dac", {"joules_per_step": 2.2e-15, "driver_joules": 7.8e-13}, {"dac"}),
    ],
)
def test_what_doubles(
    tiny_recogniser: Path, corpus: Corpus, cost: Cost, key: str, value: object, scaled: set[str]
) -> None:
    other = chip_cost(subject_of(tiny_recogniser, {key: value}), corpus)
    for circuit in ("dac", "adc", "cells", "programming"):
        factor = 2 if circuit in scaled else 1
        # other ADC codes change what the layers behind read, a little
        tolerance = 0.02 if key == "adc.bits" and circuit == "cells" else 1e-6
        assert other.joules[circuit] == pytest.approx(factor * cost.joules[circuit], rel=tolerance), circuit


def test_a_chip_that_was_programmed_elsewhere_does_not_say_what_that_took(
    tiny_recogniser: Path, corpus: Corpus, tmp_path: Path, cost: Cost
) -> None:
    from memsim.networks.programming import plan_checkpoint, program_checkpoint
    from memsim.nn.plan import Selection
    from memsim.storage.checkpoint import save_checkpoint

    opened = load_checkpoint(tiny_recogniser)
    spec = load_hardware({"base": "physical", "weights": {"bits": 3}})
    mapped = program_checkpoint(opened, spec, plan_checkpoint(opened, spec, Selection()))
    save_checkpoint(tmp_path / "m.safetensors", mapped.tensors, mapped.metadata)
    facts = chip_cost(prepare(load_checkpoint(tmp_path / "m.safetensors")), corpus).to_dict()
    assert {facts["programming"][key] for key in ("joules", "seconds", "audio_seconds_of_as_much_reading")} == {None}
    assert facts["joules"]["programming"] is None
    assert facts["shares"]["programming"] is None
    assert facts["joules"]["total"] == pytest.approx(cost.energy.total)


def matrices(path: Path, spec: HardwareSpec) -> dict[str, MappedMatrix]:
    return mapping_of(prepare(load_checkpoint(path), spec=spec).chip(0)).layers


def test_without_data_the_inputs_are_those_that_the_checkpoint_keeps(
    tiny_recogniser: Path, corpus: Corpus, cost: Cost
) -> None:
    opened = load_checkpoint(tiny_recogniser)
    spec = load_hardware({"base": "physical", "weights": {"bits": 3}})
    statistics, rates = stored_statistics(opened), vectors_per_audio_second(load_recogniser(opened))
    layers = [stored_cost(matrix, statistics, rates) for matrix in matrices(tiny_recogniser, spec).values()]
    estimate = Cost(tuple(layers), "audio_second", spec.cost.audio_seconds_per_programming)
    assert estimate.per == "audio_second"
    assert estimate.audio_seconds is None
    # utterances of 2 s instead of one of 10 s: frames at the edges, and positions, which are twice the frames
    for layer in cost.layers:
        assert rates[layer.name] == pytest.approx(layer.vectors, rel=0.03)
    assert estimate.joules["adc"] == pytest.approx(cost.joules["adc"], rel=0.03)
    # 24 input rows for each layer, from the same three utterances
    assert estimate.joules["cells"] == pytest.approx(cost.joules["cells"], rel=0.2)
    assert estimate.joules["programming"] == cost.joules["programming"]


def test_a_network_that_nobody_knows_is_priced_by_the_vector(tiny_recogniser: Path) -> None:
    spec = load_hardware({"base": "physical", "weights": {"bits": 3}})
    statistics = stored_statistics(load_checkpoint(tiny_recogniser))
    some = list(matrices(tiny_recogniser, spec).values())[:2]
    cost = Cost(
        tuple(stored_cost(matrix, statistics, None) for matrix in some),
        "vector",
        spec.cost.audio_seconds_per_programming,
    )
    facts = cost.to_dict()
    assert facts["per"] == "vector"
    assert [layer["vectors"] for layer in facts["layers"]] == [1, 1]
    assert facts["joules"]["programming"] is None
    assert facts["programming"]["joules"] > 0
    assert facts["programming"]["audio_seconds_of_as_much_reading"] is None


def test_cells_without_known_inputs_are_left_open(tiny_recogniser: Path) -> None:
    spec = load_hardware({"base": "physical", "weights": {"bits": 3}})
    known, unknown = list(matrices(tiny_recogniser, spec).values())[:2]
    statistics = {known.name: stored_statistics(load_checkpoint(tiny_recogniser))[known.name]}
    cost = Cost(
        tuple(stored_cost(matrix, statistics, None) for matrix in (known, unknown)),
        "vector",
        spec.cost.audio_seconds_per_programming,
    )
    assert [layer.cell_joules is None for layer in cost.layers] == [False, True]
    assert cost.joules["cells"] is None
    assert cost.shares["cells"] is None
    assert cost.joules["total"] == pytest.approx(cost.energy.dac + cost.energy.adc)


def test_exact_hardware_takes_the_time_of_a_read_alone(tiny_recogniser: Path, corpus: Corpus) -> None:
    target = prepare(load_checkpoint(tiny_recogniser), spec=load_hardware("ideal").with_settings({"weights.bits": 3}))
    facts = chip_cost(target, corpus).to_dict()
    assert facts["joules"] == {"dac": 0, "adc": 0, "cells": None, "programming": None, "total": 0}
    assert facts["tops_per_watt"] is None
    assert facts["seconds"] == pytest.approx(1e-7 * math.fsum(layer["vectors"] for layer in facts["layers"]))


def test_ideal_cells_have_no_currents_but_may_have_a_price(tiny_recogniser: Path, corpus: Corpus) -> None:
    unknown = chip_cost(subject_of(tiny_recogniser, cell="ideal"), corpus)
    assert unknown.joules["cells"] is None
    assert unknown.joules["adc"] > 0
    assert unknown.tops_per_watt is None
    priced = chip_cost(subject_of(tiny_recogniser, {"cost.cell.read_joules": 1e-15}, cell="ideal"), corpus)
    pulses = math.fsum(layer.vectors * layer.arrays.read_pulses for layer in priced.layers)
    assert priced.joules["cells"] == pytest.approx(1e-15 * pulses)
    assert priced.tops_per_watt is not None


def test_a_layer_is_priced_from_its_matrix_alone() -> None:
    """A network's numbers are sums of these; see tests/crossbar/test_cost.py for how they come about."""
    spec = load_hardware({"base": "physical", "weights": {"bits": 3}})
    matrix = from_weight("layer", torch.ones(4, 6), spec, 0)
    layer = LayerCost.of(matrix, 25.0, 3e-5)
    assert layer.energy.cells == pytest.approx(25 * 3e-12)
    assert layer.energy.adc == pytest.approx(25 * layer.arrays.adc_joules)
    assert layer.operations == 25 * 2 * 24
    assert layer.tops_per_watt == pytest.approx(25 * 48e-12 / layer.energy.total)
