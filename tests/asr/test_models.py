"""Common behaviour of all shipped recognisers, whatever their encoder and kind; test_conformer.py has more."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from memsim.asr.architectures import find_architecture
from memsim.asr.corpora import load_corpus
from memsim.asr.data import Batch, FeatureSource, pad
from memsim.asr.models.transducer import Transducer
from memsim.asr.recogniser import Recogniser, load_model_config, load_recogniser
from memsim.asr.running import input_statistics, transcribe
from memsim.asr.transducer_decoding import beam_search
from memsim.hardware import load_hardware
from memsim.networks.mapped_file import load_chip
from memsim.networks.programming import plan_checkpoint, program_checkpoint
from memsim.nn.chip import mapping_of
from memsim.nn.layer_adapters import mappable_layers, matrix_sources
from memsim.nn.mapping import map_model
from memsim.nn.plan import Selection
from memsim.nn.sources import WeightSource
from memsim.storage.checkpoint import load_checkpoint, save_checkpoint
from tests.asr.networks import SMALL, TRANSDUCERS, tiny

TARGETS = [torch.tensor([1, 2, 2, 3]), torch.tensor([4]), torch.tensor([2, 1])]


def features_of(lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random features [batch, frames, 8] and their lengths."""
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(len(lengths), max(lengths), 8, generator=generator), torch.tensor(lengths)


def lively(name: str) -> Recogniser:
    """Uneven distributions, so that an untrained network has something to say."""
    recogniser = tiny(name)
    with torch.no_grad():
        for parameter in recogniser.model.parameters():
            parameter.mul_(2.5 if parameter.ndim > 1 else 1.0)
    return recogniser


@pytest.mark.parametrize("name", SMALL)
def test_sizes(name: str) -> None:
    architecture, config = load_model_config(name)
    with torch.device("meta"):
        model = find_architecture(architecture).build(config.model_copy(update={"tokens": 28}))
    assert 1.0e6 < sum(parameter.numel() for parameter in model.parameters()) < 1.5e6


@pytest.mark.parametrize("name", SMALL)
@given(data=st.data())
@settings(deadline=None, max_examples=15)
def test_padding_changes_nothing(name: str, data: st.DataObject) -> None:
    recogniser = lively(name)
    lengths = data.draw(st.lists(st.integers(1, 45), min_size=1, max_size=3))
    features, _ = features_of([*lengths, max(lengths) + data.draw(st.integers(0, 9))])  # padded with noise, not zeros
    features, given_lengths = features[:-1], torch.tensor(lengths)
    targets = TARGETS[: len(lengths)]
    kind, model = recogniser.kind, recogniser.model
    with torch.inference_mode():
        encoded, frames = model(features, given_lengths)
        together = kind.outputs(model, encoded, frames, targets)
        losses = kind.losses(together, targets)
        for row, length in enumerate(lengths):
            alone_encoded, count = model(features[row : row + 1, :length], given_lengths[row : row + 1])
            alone = kind.outputs(model, alone_encoded, count, targets[row : row + 1])
            assert frames[row] == count
            mine = together.log_probs[row][together.valid[row]]
            torch.testing.assert_close(mine, alone.log_probs[0][alone.valid[0]], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(losses[row : row + 1], kind.losses(alone, targets[row : row + 1]))
    texts = recogniser.transcribe(encoded, frames)
    alone_texts = [
        recogniser.transcribe(*model(features[row : row + 1, :length], given_lengths[row : row + 1]))[0]
        for row, length in enumerate(lengths)
    ]
    assert texts == alone_texts


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_is_trained(name: str) -> None:
    recogniser = tiny(name)
    model = recogniser.model.train()
    features, lengths = features_of([40, 33, 25])
    encoded, frames = model(features, lengths)
    outputs = recogniser.kind.outputs(model, encoded, frames, TARGETS)
    recogniser.kind.losses(outputs, TARGETS).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", SMALL)
def test_dropout_is_off_in_evaluation_only(name: str) -> None:
    recogniser = tiny(name, dropout=0.5)
    features, lengths = features_of([40])

    def log_probs() -> Tensor:
        encoded, frames = recogniser.model(features, lengths)
        return recogniser.kind.outputs(recogniser.model, encoded, frames, TARGETS[:1]).log_probs

    assert torch.equal(log_probs(), log_probs())
    recogniser.model.train()
    assert not torch.equal(log_probs(), log_probs())


@pytest.mark.parametrize("name", SMALL)
def test_checkpoints_need_no_recipe(name: str, tmp_path: Path) -> None:
    recogniser, path = lively(name), tmp_path / "m.safetensors"
    save_checkpoint(path, recogniser.model.state_dict(), {"kind": "model", **recogniser.metadata()})
    loaded = load_recogniser(load_checkpoint(path))
    assert loaded.config == recogniser.config
    batch = features_of([60, 31])
    with torch.inference_mode():
        wanted, got = recogniser.model(*batch), loaded.model(*batch)
    assert torch.equal(got[0], wanted[0])
    texts = recogniser.transcribe(*wanted)
    assert loaded.transcribe(*got) == texts
    assert any(texts)


# --- on arrays -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=SMALL)
def spoken(request: pytest.FixtureRequest) -> tuple[Recogniser, tuple[Tensor, Tensor]]:
    return lively(request.param), features_of([70, 41, 64], seed=5)


def products_of(model: nn.Module) -> dict[str, WeightSource]:
    """All matrices but the tables of embeddings, which stay digital unless a spec asks for them."""
    return matrix_sources([layer for layer in mappable_layers(model) if not layer.is_lookup])


def calibrate(recogniser: Recogniser, batch: tuple[Tensor, Tensor]) -> object:
    def run(model: torch.nn.Module) -> None:
        recogniser.kind.transcribe(model, *model(*batch), recogniser.tokens)

    return run


def test_enough_bits_on_ideal_arrays_change_nothing(spoken: tuple[Recogniser, tuple[Tensor, Tensor]]) -> None:
    recogniser, batch = spoken
    chip = map_model(recogniser.model, {"base": "ideal", "digital": []}, bits=16)
    on_arrays = set(mapping_of(chip).layers)
    assert on_arrays == set(products_of(recogniser.model))
    with torch.inference_mode():
        wanted, frames = recogniser.model(*batch)
        got, _ = chip(*batch)
        for targets in (TARGETS,):
            pairs = [
                recogniser.kind.outputs(model, encoded, frames, targets).log_probs
                for model, encoded in ((chip, got), (recogniser.model, wanted))
            ]
            torch.testing.assert_close(*pairs, atol=5e-3, rtol=5e-3)
        texts = recogniser.transcribe(wanted, frames)
        assert recogniser.kind.transcribe(chip, got, frames, recogniser.tokens) == texts
        if isinstance(chip, Transducer) and isinstance(recogniser.model, Transducer):
            assert {"prediction.lstm.weight_ih_l0", "prediction.lstm.weight_hh_l0", "joiner.encoder"} < on_arrays
            assert {"joiner.prediction", "output"} < on_arrays
            found, best = beam_search(chip, got, frames), beam_search(recogniser.model, wanted, frames)
            assert [hypotheses[0].tokens for hypotheses in found] == [hypotheses[0].tokens for hypotheses in best]
    assert any(texts)


@pytest.mark.parametrize("name", TRANSDUCERS)
def test_decoding_on_noisy_arrays_is_a_function_of_chip_and_batch(name: str) -> None:
    """Each step reads prediction network and joiner with noise of its own, the same when the batch begins again."""
    recogniser, batch = lively(name), features_of([70, 41, 64], seed=5)
    chip = map_model(
        recogniser.model,
        {"base": "physical", "digital": [], "read_noise": {"bandwidth_hz": 1e12}},
        bits=4,
        seed=2,
        calibration=calibrate(recogniser, batch),
    )
    assert isinstance(chip, Transducer)

    def decoded(key: str) -> tuple[list[str], list[list[float]]]:
        mapping_of(chip).begin_batch(key)
        with torch.inference_mode():
            encoded, frames = chip(*batch)
            texts = recogniser.kind.transcribe(chip, encoded, frames, recogniser.tokens)
            beams = beam_search(chip, encoded, frames, width=3)
        return texts, [[hypothesis.log_prob for hypothesis in hypotheses] for hypotheses in beams]

    first = decoded("a")
    assert decoded("b")[1] != first[1]
    assert decoded("a") == first
    # one step, read twice, is read with noise of its own each time
    mapping_of(chip).begin_batch("c")
    with torch.inference_mode():
        one, other = (chip.predict(torch.tensor([[0]]))[0] for _ in range(2))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("hardware", ["ideal", "physical"])
def test_a_mapped_file_is_the_chip_that_map_model_makes(
    spoken: tuple[Recogniser, tuple[Tensor, Tensor]], tmp_path: Path, hardware: str
) -> None:
    recogniser, batch = spoken
    corpus = load_corpus("demo", limit=2)
    source = _NarrowSource()
    statistics = input_statistics(recogniser, corpus.utterances, source)
    assert statistics.keys() == products_of(recogniser.model).keys()
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, recogniser.model.state_dict(), {"kind": "model", **recogniser.metadata()})
    spec = load_hardware(hardware).with_settings({"weights.bits": 4})
    plan = plan_checkpoint(load_checkpoint(path), spec, Selection())
    mapped = program_checkpoint(load_checkpoint(path), spec, plan, seed=3, statistics=statistics)
    save_checkpoint(tmp_path / "c.safetensors", mapped.tensors, mapped.metadata)
    loaded, _ = load_chip(load_checkpoint(tmp_path / "c.safetensors"))
    chip = map_model(recogniser.model, spec, seed=3, calibration=statistics)
    assert "output" not in mapping_of(chip).layers
    assert not any(name.startswith("frontend.") for name in mapping_of(chip).layers)
    texts = [
        transcribe(Recogniser(model, recogniser.architecture, recogniser.config, recogniser.tokens, "kaldi"), batches)
        for model in (loaded.model, chip)
        for batches in ([Batch("k", (0, 1, 2), *batch)],)
    ]
    assert texts[0] == texts[1]
    assert any(texts[0].values())


class _NarrowSource(FeatureSource):
    """Eight mel bins of random features, whatever is said."""

    def __init__(self) -> None:
        pass

    def __call__(self, utterance: object, speed: float = 1.0) -> Tensor:
        return pad([features_of([50], seed=1)[0][0]])[0][0]
