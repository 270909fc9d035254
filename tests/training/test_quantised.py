"""Quantization-aware training of a tiny recogniser: learning, exact resuming, and mapping as trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from memsim.asr.corpora import Corpus
from memsim.asr.data import FeatureSource, pad
from memsim.asr.recogniser import Recogniser, load_recogniser
from memsim.asr.running import input_statistics
from memsim.errors import InputError
from memsim.hardware import load_hardware
from memsim.networks.mapped_file import load_chip
from memsim.networks.programming import plan_checkpoint, program_checkpoint
from memsim.nn.linear import QuantisedLinear
from memsim.nn.mapping import map_model, measure_inputs
from memsim.nn.plan import Selection
from memsim.nn.quantisation import Quantisation, QuantisationConfig
from memsim.storage.checkpoint import load_checkpoint, save_checkpoint
from memsim.training.hooks import Hooks
from memsim.training.quantised import QuantisedTraining
from memsim.training.recipe import TrainConfig, load_train_config
from tests.evaluation.calls import prepare
from tests.nn.layers import quantised_layers
from tests.training.tones import DROPOUT, PLAIN, RANDOM, Killed, KilledAt, Watching, fresh, job, run, same

ROBUST = load_train_config("robust").quantisation
PAPER = load_train_config("paper").quantisation
RECIPES = {"robust": ROBUST, "paper": PAPER}
SHORT = PLAIN.model_copy(update={"epochs": 20, "learning_rate": ((0.0, 5e-3), (1.0, 1e-4)), "average_decay": 0.0})


def from_start(start: Path) -> Recogniser:
    given = load_recogniser(load_checkpoint(start))
    return replace(given, model=given.model.train())


def hooks(config: TrainConfig, name: str = "robust", bits: int = 3, hardware: Any = "physical") -> Hooks:
    return QuantisedTraining(Quantisation(RECIPES[name], bits, load_hardware(hardware)), config)


@pytest.fixture(scope="module")
def trained(corpus: Corpus, start: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Watching]]:
    """At 3 bits, with either recipe."""
    folder = tmp_path_factory.mktemp("trained")
    return {
        name: (
            out := folder / f"{name}.safetensors",
            run(job(corpus, out, SHORT, recogniser=from_start(start), hooks=hooks(SHORT, name))),
        )
        for name in RECIPES
    }


@pytest.mark.parametrize("name", RECIPES)
def test_training_lowers_the_loss(trained: dict[str, tuple[Path, Watching]], name: str) -> None:
    _, watching = trained[name]
    losses = [result.train_loss for result in watching.epochs]
    assert min(losses[-3:]) < 0.7 * losses[0]
    assert (watching.epochs[0].extra_loss > 0) == (name == "robust")


@pytest.mark.parametrize("name", RECIPES)
def test_a_checkpoint_maps_as_it_was_trained(
    corpus: Corpus, trained: dict[str, tuple[Path, Watching]], name: str, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(trained[name][0])
    assert checkpoint.metadata["kind"] == "model"
    recogniser = load_recogniser(checkpoint)
    spec = load_hardware({"base": "ideal", "dac": {"bits": 8}})
    mapped = program_checkpoint(checkpoint, spec, plan_checkpoint(checkpoint, spec, Selection()))
    assert not mapped.uncalibrated
    assert {layer.tiling.bits for layer in mapped.plan.mapped} == {3}
    assert not [key for key in mapped.tensors if "weight_quantiser" in key or "transfer" in key]

    save_checkpoint(tmp_path / "mapped.safetensors", mapped.tensors, mapped.metadata)
    chip, _ = load_chip(load_checkpoint(tmp_path / "mapped.safetensors"))
    batch = pad([FeatureSource(recogniser.features)(utterance) for utterance in corpus.utterances])
    with torch.no_grad():
        expected, _ = recogniser.model(*batch)
        found, _ = chip.model(*batch)
    # a value near the middle of two codes may round to either: rare, and then a small step
    assert (found - expected).abs().mean() < 1e-3 * expected.abs().mean()

    target = prepare(checkpoint, spec=load_hardware("physical"))
    assert target.full_precision is None
    assert target.spec.weights.bits == 3
    with torch.no_grad():
        digital, _ = target.digital(*batch)
    assert (digital - expected).abs().mean() < 1e-3 * expected.abs().mean()


@pytest.mark.parametrize("name", RECIPES)
def test_it_resumes_exactly(corpus: Corpus, tmp_path: Path, name: str) -> None:
    config = RANDOM.model_copy(update={"epochs": 2})

    def one(out: str) -> Any:
        return job(corpus, tmp_path / out, config, recogniser=fresh(DROPOUT), hooks=hooks(config, name))

    whole = run(one("whole.safetensors"))
    steps = len(whole.losses)
    for killed_at in (1, steps // 2, steps - 1):
        out = f"killed-{killed_at}.safetensors"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("memsim.training.loop.SAVE_SECONDS", 0.0)
            with pytest.raises(Killed):
                run(one(out), KilledAt(killed_at))
            run(one(out), resume=True)
        assert same(tmp_path / "whole.safetensors", tmp_path / out)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_layers_that_begin_at_zero_resume_exactly(corpus: Corpus, tmp_path: Path, name: str) -> None:
    config = RANDOM.model_copy(update={"epochs": 2})

    def one(out: str) -> Any:
        recogniser = fresh(DROPOUT)
        block = recogniser.model.blocks[0]
        with torch.no_grad():
            block.feed_forward_1.expand.weight[:3] = 0
            block.feed_forward_2.contract.weight.zero_()
            block.feed_forward_1.contract.weight.mul_(1e-4)
            block.attention.output.weight.zero_()
        return job(corpus, tmp_path / out, config, recogniser=recogniser, hooks=hooks(config, name))

    whole = run(one("whole.safetensors"))
    for killed_at in (1, len(whole.losses) // 2):
        out = f"killed-{killed_at}.safetensors"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("memsim.training.loop.SAVE_SECONDS", 0.0)
            with pytest.raises(Killed):
                run(one(out), KilledAt(killed_at))
            run(one(out), resume=True)
        assert same(tmp_path / "whole.safetensors", tmp_path / out)
    checkpoint = load_checkpoint(tmp_path / "whole.safetensors")
    contract = checkpoint.tensors(["blocks.0.feed_forward_2.contract.weight_quantiser.scale"])
    assert 0 < next(iter(contract.values())).max() < 0.1
    spec = load_hardware("physical")
    mapped = program_checkpoint(checkpoint, spec, plan_checkpoint(checkpoint, spec, Selection()))
    assert not mapped.uncalibrated


def test_rates_are_those_of_the_scales_that_there_are() -> None:
    """A dead channel does not count; a scale or range that begins with nothing has the rate of the size it is of."""
    net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 8, bias=False))
    with torch.no_grad():
        net[0].weight[1:3] = 0
        net[1].weight.zero_()
        net[1].bias.zero_()
    quantisation = Quantisation(QuantisationConfig(scale_rate=2.0), 4, load_hardware("ideal"))
    quantisation = replace(quantisation, spec=quantisation.spec.with_settings({"dac": {"bits": 8}}))
    quantisation.apply(net, measure_inputs(net, [torch.randn(50, 8)]))
    training = QuantisedTraining(quantisation, PLAIN)
    groups = training.parameter_groups(net, PLAIN)
    rates = {id(group.parameters[0]): (group.rate_scale, group.follows_size) for group in groups[2:]}
    first, second, third = net
    scale = first.weight_quantiser.scale.detach()
    live = scale[[0, 3, 4, 5, 6, 7]]
    assert rates[id(first.weight_quantiser.scale)] == (pytest.approx(2 * live.mean().item()), False)
    assert rates[id(second.weight_quantiser.scale)] == (2.0, True)
    assert rates[id(third.input_quantiser.range)] == (2.0, True)
    assert rates[id(third.weight_quantiser.scale)][1] is False
    assert [range_.item() for range_ in training.maxima(net)] == [0.0]


def test_weights_learn_by_the_step_between_their_levels_where_the_recipe_says_so() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 4))
    with torch.no_grad():
        net[1].weight.mul_(10)
    config = QuantisationConfig(weight_steps=50.0, digital_rate=0.5)
    quantisation = Quantisation(config, 3, load_hardware({"base": "ideal", "digital": []}))
    quantisation.apply(net, measure_inputs(net, [torch.randn(30, 6)]))
    groups = QuantisedTraining(quantisation, PLAIN).parameter_groups(net, PLAIN)
    rates = {id(parameter): group.rate_scale for group in groups for parameter in group.parameters}
    for layer in net:
        assert rates[id(layer.weight)] == pytest.approx(50 * float(layer.weight_quantiser.scale.mean()))
        assert rates[id(layer.bias)] == 0.5
    assert sorted(rates) == sorted(id(parameter) for parameter in net.parameters())
    assert sum(len(group.parameters) for group in groups) == len(rates)


@pytest.mark.parametrize("name", ["physical", "paper", "best"])
def test_training_begins_on_what_an_exactly_programmed_chip_computes(corpus: Corpus, start: Path, name: str) -> None:
    recogniser = from_start(start)
    source = FeatureSource(recogniser.features)
    spec = load_hardware(name)
    statistics = input_statistics(recogniser, corpus.utterances, source)
    model = Quantisation(ROBUST, 3, spec).apply(recogniser.model, statistics).eval()
    learned = {layer: layer_of.full_scale for layer, layer_of in quantised_layers(model)}
    statistics = {layer: replace(statistics[layer], full_scale=range_) for layer, range_ in learned.items()}
    exact = spec.with_settings({"programming.exact": True, "read_noise": "none"})
    chip = map_model(model, exact, calibration=statistics)
    for layer, matrix in chip.mapping.layers.items():
        transfer = model.get_submodule(layer).transfer
        assert transfer.gain_per_ampere == pytest.approx(float(matrix.gain_per_ampere), rel=1e-5)
        torch.testing.assert_close(transfer.adc_range, matrix.adc_range, rtol=1e-5, atol=0)
    batch = pad([source(utterance) for utterance in corpus.utterances])
    with torch.no_grad():
        expected, _ = chip(*batch)
        found, _ = model(*batch)
    assert (found - expected).abs().mean() < 0.02 * expected.abs().mean()  # codes differ by one now and then


def test_layers_can_have_other_bits_or_none(corpus: Corpus, tmp_path: Path) -> None:
    config = QuantisationConfig.model_validate(
        {
            "full_precision": ["*.key"],
            "overrides": [
                {"match": "*.feed_forward_?.*", "weight_bits": 4},
                {"match": "*.contract", "weight_bits": 5, "input_bits": 6},
            ],
        }
    )
    seen = QuantisedTraining(Quantisation(config, 2, load_hardware("ideal")), PLAIN)
    recogniser = fresh()
    model = seen.prepare(recogniser, corpus.utterances, FeatureSource(recogniser.features))
    bits = {
        name.rpartition("blocks.0.")[2]: int(layer.weight_quantiser.bits)
        for name, layer in model.named_modules()
        if isinstance(layer, QuantisedLinear)
    }
    assert bits["attention.query"] == 2
    assert "attention.key" not in bits
    assert bits["feed_forward_1.expand"] == 4
    assert bits["feed_forward_2.contract"] == 5
    assert int(model.blocks[0].feed_forward_1.contract.input_quantiser.bits) == 6
    assert not any(name.startswith(("output", "frontend")) for name in bits)

    lost = config.model_copy(update={"full_precision": ("nothing*",)})
    with pytest.raises(InputError, match=r"quantisation: nothing\*: matches no layer"):
        Quantisation(lost, 2, load_hardware("ideal")).apply(fresh().model, {})


def test_inputs_must_be_on_the_grid_of_the_hardware_that_is_trained_through() -> None:
    config = QuantisationConfig.model_validate({"inputs": {"bits": 6}, "hardware": {}})
    with pytest.raises(InputError, match="inputs of 6 bits, but hardware physical has 8; bits: dac"):
        Quantisation(config, 3, load_hardware("physical")).apply(fresh().model, {})


def test_convolutions_are_trained_and_mapped_where_the_spec_has_them_on_arrays(
    corpus: Corpus, start: Path, tmp_path: Path
) -> None:
    config = PLAIN.model_copy(update={"epochs": 1})
    everything = {"base": "physical", "digital": []}
    out = tmp_path / "q.safetensors"
    run(job(corpus, out, config, recogniser=from_start(start), hooks=hooks(config, hardware=everything)))
    checkpoint = load_checkpoint(out)
    recogniser = load_recogniser(checkpoint)
    trained = dict(quantised_layers(recogniser.model))
    assert {"frontend.convolutions.0", "blocks.0.convolution.depthwise", "output"} < set(trained)

    spec = load_hardware({"base": "ideal", "dac": {"bits": 8}, "digital": []})
    mapped = program_checkpoint(checkpoint, spec, plan_checkpoint(checkpoint, spec, Selection()))
    assert {layer.name: layer.tiling.bits for layer in mapped.plan.mapped} == dict.fromkeys(trained, 3)
    assert not mapped.uncalibrated
    for name, product in trained.items():
        assert torch.equal(mapped.tensors[f"{name}.matrix.scale"], product.weight_quantiser.scale)
        assert float(mapped.tensors[f"{name}.matrix.input_range"]) == pytest.approx(product.full_scale)
    save_checkpoint(tmp_path / "mapped.safetensors", mapped.tensors, mapped.metadata)
    chip, _ = load_chip(load_checkpoint(tmp_path / "mapped.safetensors"))
    batch = pad([FeatureSource(recogniser.features)(utterance) for utterance in corpus.utterances])
    with torch.no_grad():
        expected, _ = recogniser.model(*batch)
        found, _ = chip.model(*batch)
    assert (found - expected).abs().mean() < 1e-3 * expected.abs().mean()
