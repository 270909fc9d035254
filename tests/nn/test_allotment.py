"""Allotments of bits, copies and digital layers to small networks, against brute force over all settings."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import memsim
from memsim.errors import InputError
from memsim.networks.mapped_file import load_chip, stored_report
from memsim.nn.deviation import largest

BITS = (2, 3, 4)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    layers = [nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 8)]
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def statistics(network):
    torch.manual_seed(1)
    return memsim.measure_inputs(network, [torch.randn(200, 32)], with_moments=True, with_sensitivity=True)


def recipe(budget="cells_per_weight", at_most=4.5, **keys):
    return {"base": "feedback", "allot": {"budget": budget, "at_most": at_most, "bits": list(BITS), **keys}}


def on(network, statistics, mapping, hardware="ideal", **options):
    return memsim.map_model(network, hardware, calibration=statistics, mapping=mapping, **options).mapping


@pytest.mark.parametrize(("budget", "at_most"), [("cells_per_weight", 4.5), ("bits_per_weight", 3.3)])
def test_it_is_the_least_rise_of_all_settings(network, statistics, budget, at_most):
    names, weights, rises = [], {}, {}
    for bits in BITS:
        mapped = on(network, statistics, "feedback", bits=bits)
        names = [layer.name for layer in mapped.mapped]
        weights = {layer.name: layer.tiling.weights for layer in mapped.mapped}
        for name, deviation in mapped.deviations.items():
            rises[name, bits] = statistics[name].sensitivity * largest(deviation) ** 2
    each = {bits: 2 * (bits - 1) if budget == "cells_per_weight" else bits for bits in BITS}
    within = {
        chosen: sum(rises[name, bits] for name, bits in zip(names, chosen, strict=True))
        for chosen in itertools.product(BITS, repeat=len(names))
        if sum(weights[n] * each[b] for n, b in zip(names, chosen, strict=True)) <= at_most * sum(weights.values())
    }
    best = min(within, key=within.get)
    mapped = on(network, statistics, recipe(budget, at_most))
    assert tuple(layer.tiling.bits for layer in mapped.mapped) == best
    assert len(set(best)) > 1  # a uniform one would prove little
    allotment = mapped.report.allotment
    assert allotment.spent <= at_most
    assert allotment.is_of_loss
    assert sum(layer.rise for layer in allotment.layers.values()) == pytest.approx(within[best])


def test_the_choice_is_overrides_of_the_hardware(network, statistics):
    mapped = on(network, statistics, recipe())
    again = on(network, statistics, "feedback", hardware=mapped.spec.to_dict())
    assert [layer.tiling for layer in again.mapped] == [layer.tiling for layer in mapped.mapped]
    for name, matrix in mapped.layers.items():
        assert torch.equal(matrix.levels, again.layers[name].levels)
    assert mapped.spec.title == "ideal with weights.scale=per_tile"
    report = mapped.report
    assert type(report).from_dict(report.to_dict()) == report


def test_copies_digital_layers_and_energy(network, statistics):
    x = torch.randn(64, 32)
    physical = on(network, x.split(32), recipe(at_most=8, copies=[1, 2]), hardware="physical")
    assert physical.report.allotment.spent <= 8
    assert any(layer.tiling.copies == 2 for layer in physical.mapped)
    energy = on(network, x.split(32), recipe("picojoules_per_mac", 1000), hardware="physical")
    spent = energy.report.allotment.spent
    less = on(network, x.split(32), recipe("picojoules_per_mac", 0.9 * spent), hardware="physical")
    assert 0.5 * spent < less.report.allotment.spent <= 0.9 * spent
    digital = on(network, statistics, recipe(digital=0.15))
    kept = [name for name, layer in digital.report.allotment.layers.items() if layer.bits is None]
    assert kept == ["4"]  # the others have more of the weights
    assert [layer.name for layer in digital.mapped] == ["0", "2"]


def test_bits_that_are_given_stay(network, statistics):
    spec = {"base": "ideal", "overrides": [{"match": "2", "weights": {"bits": 6}}]}
    mapped = on(network, statistics, recipe(at_most=8), hardware=spec)
    assert {layer.name: layer.tiling.bits for layer in mapped.mapped}["2"] == 6
    assert mapped.report.allotment.layers["2"].rise is None


def test_without_sensitivities_errors_alone_count(network):
    plain = memsim.measure_inputs(network, [torch.randn(200, 32)], with_moments=True)
    allotment = on(network, plain, recipe()).report.allotment
    assert not allotment.is_of_loss
    assert allotment.spent <= 4.5


def test_messages(network, statistics):
    with pytest.raises(InputError, match=r"1.5 cells per weight are too few: .* take 2$"):
        on(network, statistics, recipe(at_most=1.5))
    with pytest.raises(InputError, match="hardware ideal has no converters"):
        on(network, statistics, recipe("picojoules_per_mac", 1.0), hardware="ideal")
    with pytest.raises(InputError, match="--bits 4: the recipe allots the bits of each layer"):
        on(network, statistics, recipe(), bits=4)
    with pytest.raises(InputError, match="needs the inputs of 0"):
        memsim.map_model(network, "ideal", mapping=recipe())


def test_an_evaluation_has_the_same_bits_on_every_chip(network, statistics):
    data = [(torch.randn(16, 32), torch.randint(8, (16,))) for _ in range(2)]

    def accuracy(outputs, targets):
        return outputs.argmax(1) == targets

    result = memsim.evaluate(
        network, data, score=accuracy, calibration=statistics, hardware="physical", mapping=recipe(), trials=2
    )
    chips = [trial.chip for trial in result.trials]
    assert chips[0].bits == chips[1].bits
    assert len(chips[0].bits) > 1
    assert chips[0].cells_per_weight == chips[1].cells_per_weight <= 4.5


@pytest.mark.parametrize("calibrate", [None, "demo"])
def test_a_file_holds_the_choice(tiny_recogniser, tmp_path, calibrate):
    """The loss of a recogniser's own transcripts counts where there are data; else errors of all layers count alike."""
    out, mapping = tmp_path / "mixed.mapped.safetensors", recipe(at_most=4.5)
    given = {"mapping": mapping, "calibrate": calibrate, "calibration_utterances": 3}
    result = memsim.map_checkpoint(tiny_recogniser, "ideal", out=out, **given)
    allotment = result.mapped.report.allotment
    assert allotment.spent <= 4.5
    assert allotment.is_of_loss == (calibrate is not None)
    chosen = {layer.name: layer.tiling.bits for layer in result.plan.mapped}
    assert len(set(chosen.values())) > 1
    assert "of at most 4.5 cells per weight" in str(result)
    assert result.to_dict()["mapping"]["allotment"]["layers"].keys() == chosen.keys()
    file = memsim.load_checkpoint(out)
    assert stored_report(file).allotment == allotment
    assert {layer.name: layer.tiling.bits for layer in load_chip(file)[0].model.mapping.mapped} == chosen
    with pytest.raises(InputError, match="--dry-run: bits are allotted by measured errors"):
        memsim.map_checkpoint(tiny_recogniser, "ideal", mapping=mapping, dry_run=True)
