"""The cost of whole networks: sums, scaling, and measurement on the inputs that the chip reads."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import memsim
from memsim import load_hardware
from memsim.asr.corpora import Corpus, load_corpus
from memsim.asr.input_rates import sample_utterance
from memsim.asr.recogniser import load_recogniser
from memsim.crossbar.matrix import MappedMatrix
from memsim.errors import InputError
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
    statistics, rates = stored_statistics(opened), sample_utterance(load_recogniser(opened)).vectors()
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


# Networks that are no recognisers


class Sequences(nn.Module):
    """A network with attention, a recurrent layer and a layer that stays digital."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.recurrent = nn.LSTM(8, 6, batch_first=True)
        self.output = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.recurrent(self.encoder(x))[0][:, -1])


@pytest.fixture(scope="module")
def sequences() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(4, 5, 8)


@pytest.fixture(scope="module")
def on_chip(sequences: Tensor) -> nn.Module:
    torch.manual_seed(0)
    return memsim.map_model(Sequences(), {"base": "physical", "weights": {"bits": 3}}, calibration=[sequences])


def test_examples_by_hand(on_chip: nn.Module, sequences: Tensor) -> None:
    """Vectors of every layer for an example, and the currents of the cells at these inputs."""
    cost = memsim.estimate_cost(on_chip, sequences)
    assert (cost.per, cost.examples, cost.batch) == ("example", 4, "float32 [4, 5, 8]")
    vectors = {layer.name: layer.vectors for layer in cost.layers}
    assert "output" not in vectors  # the spec keeps it digital
    assert set(vectors.values()) == {5.0}
    mapping, watts = mapping_of(on_chip), dict[str, float]()
    hooks = [
        matrix.register_forward_pre_hook(
            lambda own, x: watts.update({own.name: watts.get(own.name, 0.0) + own.cell_watts(x[0].flatten(0, -2))})
        )
        for matrix in mapping.layers.values()
    ]
    with torch.inference_mode(), mapping.batch("cost"):
        on_chip(sequences)
    for hook in hooks:
        hook.remove()
    for layer in cost.layers:
        assert layer.cell_joules == pytest.approx(1e-7 * watts[layer.name] / 20, rel=1e-5), layer.name
    chip = cost.to_dict()["chip"]
    weights = {layer.name: layer.arrays.macs for layer in cost.layers}
    products = math.fsum(5 * macs for macs in weights.values()) + 6 * 3
    attention = 2 * 5 * 5 * 8  # queries with keys, and weights with values
    assert chip["macs"] == pytest.approx(products + attention)
    assert chip["joules"]["nominal"] == pytest.approx(math.fsum(chip["joules_by_circuit"].values()))
    assert chip["joules"]["nominal"] == pytest.approx(math.fsum(chip["layers"].values()))
    assert chip["joules_by_circuit"]["cells"] == pytest.approx(cost.joules["cells"], rel=1e-6)
    assert chip["examples"] == 4
    assert "audio_seconds" not in chip


def test_an_example_takes_the_same_energy_alone_and_in_a_batch(on_chip: nn.Module, sequences: Tensor) -> None:
    many, one = (memsim.estimate_cost(on_chip, batch).to_dict()["chip"] for batch in (sequences, sequences[:1]))
    for circuit in ("dac", "adc", "sums", "buffers", "network", "products", "operations"):
        assert many["joules_by_circuit"][circuit] == pytest.approx(one["joules_by_circuit"][circuit], rel=1e-6), circuit
    # a batch goes through the recurrent layer step by step, all examples at once
    times = [chip["schedule"] for chip in (many, one)]
    assert times[0]["examples_per_second"] == pytest.approx(times[1]["examples_per_second"], rel=0.01)
    assert times[1]["latency_seconds"] < times[0]["latency_seconds"] < 4 * times[1]["latency_seconds"]
    assert times[0]["seconds_per_example"]["1"] == pytest.approx(times[0]["latency_seconds"] / 4)


def test_estimates_leave_no_trace(on_chip: nn.Module, sequences: Tensor) -> None:
    first, again = (memsim.estimate_cost(on_chip, sequences).to_dict() for _ in range(2))
    assert first == again
    assert not mapping_of(on_chip).reads.count_work


def test_named_arguments_and_a_chip_of_ones_own(sequences: Tensor, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: pcm-64-core\ncores: 3\npowered: always\n")
    spec = {"base": "physical", "chip": str(tmp_path / "mine.yaml"), "tile": {"rows": 256, "cols": 256}}
    chip = memsim.map_model(Sequences(), spec, bits=3, calibration=[sequences])
    cost = memsim.estimate_cost(chip, {"x": sequences}, examples=2)
    found = cost.to_dict()["chip"]
    assert (found["name"], found["spec"]["cores"], found["examples"]) == ("mine", 3, 2)
    assert cost.batch == "{x: float32 [4, 5, 8]}"
    assert "whole chip, an example" in str(cost)
    assert "a batch of 2 examples takes" in str(cost)
    # nobody knows how long such a network waits for its next input: leakage is that of computing
    area = sum(found["square_millimetres_by_part"][part] for part in ("cores", "digital", "memory"))
    watts = cost.chip.chip.prices()["leakage_watts_per_square_millimetre"] * area  # type: ignore[union-attr]
    expected = watts * found["schedule"]["latency_seconds"] / 2
    assert found["joules_by_circuit"]["leakage"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("network", "batch", "examples", "said"),
    [
        (nn.Linear(3, 3), torch.ones(1, 3), None, "chip: is not on arrays"),
        (None, 3, None, "batch holds no tensor with examples"),
        (None, torch.ones(1, 5, 8), 0, "examples: 0; a batch has at least one"),
        (None, {"y": torch.ones(1, 5, 8)}, None, "the network fails on a batch of"),
        (None, torch.ones(1, 5, 7), None, "batch: the network fails on float32"),
    ],
)
def test_what_is_no_chip_or_batch(
    on_chip: nn.Module, network: nn.Module | None, batch: Any, examples: int | None, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        memsim.estimate_cost(network or on_chip, batch, examples=examples)


def test_evaluations_of_modules_have_a_cost(sequences: Tensor, tmp_path: Path) -> None:
    """Of the only point and of every point of a sweep; a report brings it along."""

    def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.argmax(1) == targets

    def run(**settings: Any) -> memsim.EvaluationResult:
        torch.manual_seed(0)
        batches = [(sequences, torch.tensor([0, 1, 2, 0]))]
        return memsim.evaluate(Sequences(), batches, score=accuracy, hardware="physical", bits=3, **settings)

    costly = memsim.Findings(cost=True)
    cost = run(findings=costly).cost
    assert cost is not None
    assert (cost.examples, cost.batch) == (4, "float32 [4, 5, 8]")
    points = run(findings=costly, set=["adc.bits=6,8"]).to_dict()["points"]
    few, many = (point["cost"]["chip"]["joules_by_circuit"]["adc"] for point in points)
    assert few == pytest.approx(many / 4)
    run().write_report(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "energy for an example, whole chip" in page
    with pytest.raises(InputError, match="no shipped chips config"):
        run(findings=costly, set=["chip=nowhere"])
