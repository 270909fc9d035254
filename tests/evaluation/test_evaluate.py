"""Evaluation in Python: inputs that change a result, and inputs that must not."""

from __future__ import annotations

import pytest
import torch

from memsim.asr.corpora import load_corpus
from memsim.asr.data import FeatureSource, evaluation_batches
from memsim.asr.running import transcribe
from memsim.asr.scoring import score
from memsim.config.resources import ASSETS
from memsim.evaluation.result import spread
from memsim.hardware import load_hardware
from memsim.nn.chip import mapping_of, remap
from memsim.storage.checkpoint import load_checkpoint
from tests.evaluation.calls import evaluate, prepare


@pytest.fixture(scope="module")
def checkpoint():
    return load_checkpoint(ASSETS / "checkpoints" / "demo-float.safetensors")


@pytest.fixture(scope="module")
def target(checkpoint):
    return prepare(checkpoint, spec=load_hardware("physical").with_settings({"weights.bits": 3}))


@pytest.fixture(scope="module")
def corpus():
    return load_corpus("demo", limit=8)


def log_probs(target, chip, batch):
    mapping_of(chip).begin_batch(batch.key)
    with torch.inference_mode():
        return chip(batch.features, batch.lengths)


@pytest.mark.parametrize("hardware", ["physical", "paper"])
def test_a_batch_gives_what_its_utterances_give_alone(checkpoint, corpus, hardware):
    spec = load_hardware(hardware).with_settings(
        {"weights.bits": 2, "read_noise": None, "programming": {"cycling": None}}
    )
    quiet = prepare(checkpoint, spec=spec)
    chip = quiet.chip(0)
    source = FeatureSource(quiet.template.features)
    (together,) = evaluation_batches(corpus.utterances, source, batch_seconds=1000)
    padded, lengths = log_probs(quiet, chip, together)
    for alone in evaluation_batches(corpus.utterances, source, batch_seconds=0.1):
        row = together.indices.index(alone.indices[0])
        single, (length,) = log_probs(quiet, chip, alone)
        assert length == lengths[row]
        # float rounding before an ADC may move one of its codes, which is a small part of a log-probability
        assert (padded[row, :length] - single[0]).abs().mean() < 1e-3
        assert torch.equal(padded[row, :length].argmax(-1), single[0].argmax(-1))


def test_noise_is_keyed_by_batch_and_trial(target, corpus):
    chip = target.chip(0)
    batch = next(evaluation_batches(corpus.utterances, FeatureSource(target.template.features)))
    first, _ = log_probs(target, chip, batch)
    again, _ = log_probs(target, chip, batch)
    assert torch.equal(first, again)
    mapping_of(chip).begin_batch("another batch")
    with torch.inference_mode():
        other_batch, _ = chip(batch.features, batch.lengths)
    assert not torch.equal(first, other_batch)
    same_cells = remap(chip, target.spec, seed=0, trial=1, statistics=target.statistics)
    other_trial, _ = log_probs(target, same_cells, batch)
    assert not torch.equal(first, other_trial)


def test_chips_share_levels_and_differ_in_states(target):
    chips = [mapping_of(target.chip(trial)).layers for trial in (0, 1, 0)]
    name = "blocks.0.attention.key"
    assert torch.equal(chips[0][name].levels, chips[1][name].levels)
    assert not torch.equal(chips[0][name].states, chips[1][name].states)
    assert torch.equal(chips[0][name].states, chips[2][name].states)
    # a layer's cells depend on its name, not on what was programmed before it
    assert not torch.equal(chips[0][name].states, chips[0]["blocks.1.attention.key"].states)


def test_remap_leaves_the_chip_as_it_was(target, corpus):
    chip = target.chip(0)
    batch = next(evaluation_batches(corpus.utterances, FeatureSource(target.template.features)))
    before, _ = log_probs(target, chip, batch)
    other = remap(chip, load_hardware("ideal"), seed=3, statistics=target.statistics)
    assert mapping_of(other).layers["blocks.0.attention.key"].states is None
    assert mapping_of(other).spec.name == "ideal"
    after, _ = log_probs(target, chip, batch)
    assert torch.equal(before, after)


def test_results_do_not_depend_on_how_many_threads_compute_them(target):
    corpus = load_corpus("demo", limit=2)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(evaluate(target, corpus, trials=1).to_dict())
    finally:
        torch.set_num_threads(threads)
    for result in results:
        result.pop("real_time_factor")
    assert results[0] == results[1]


def test_transcripts_are_those_of_the_corpus_by_number(target, corpus):
    batches = evaluation_batches(corpus.utterances, FeatureSource(target.template.features), batch_seconds=5)
    found = transcribe(target.template, batches)
    texts = [found[number] for number in range(len(corpus.utterances))]
    references = [utterance.text for utterance in corpus.utterances]
    assert score(references, texts).cer < 0.3
    assert score(references, texts[1:] + texts[:1]).cer > 0.5


def test_an_unmapped_checkpoint_needs_hardware(checkpoint):
    with pytest.raises(ValueError, match="needs a hardware spec"):
        prepare(checkpoint)


def test_spread():
    assert spread([0.2]) == {"mean": 0.2, "std": None, "min": 0.2, "max": 0.2}
    assert spread([1.0, 3.0]) == {"mean": 2.0, "std": pytest.approx(2**0.5), "min": 1.0, "max": 3.0}
