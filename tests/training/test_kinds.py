"""Training of recognisers other than the Conformer CTC: learning, resuming, teachers, and mapping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from memsim.asr.architectures import ARCHITECTURES
from memsim.asr.corpora import Corpus
from memsim.asr.data import FeatureSource, evaluation_batches, pad
from memsim.asr.kinds import Kind, TrainingPass, TransducerBeam
from memsim.asr.models.lstm import LSTMConfig
from memsim.asr.models.transducer import ConformerTransducerConfig, LSTMTransducerConfig, PredictionConfig, Transducer
from memsim.asr.recogniser import Recogniser, build, load_recogniser
from memsim.asr.running import transcribe
from memsim.asr.tokens import CharacterTokens
from memsim.asr.transducer_decoding import beam_search
from memsim.crossbar.statistics import PREFIX
from memsim.evaluation.partial_results import run_network
from memsim.evaluation.speech import SpeechTask
from memsim.hardware import load_hardware
from memsim.nn.quantisation import Quantisation
from memsim.storage.checkpoint import load_checkpoint
from memsim.training.epoch_batches import TrainingSet
from memsim.training.hooks import Moment
from memsim.training.quantised import QuantisedTraining
from memsim.training.recipe import load_train_config
from memsim.training.teacher import Teacher
from tests.evaluation.calls import evaluate, prepare
from tests.nn.layers import quantised_layers
from tests.training.tones import MODEL, PLAIN, RANDOM, TEXTS, Killed, KilledAt, job, run, same

FRONT = {"features": MODEL.features, "frontend": MODEL.frontend, "width": 24, "dropout": 0.0}
PARTS = {"prediction": PredictionConfig(embedding=8, hidden=32), "joiner_width": 32}
CONFIGS = {
    "lstm_ctc": LSTMConfig(**FRONT, layers=1, hidden=32),
    "conformer_transducer": ConformerTransducerConfig(**MODEL.model_dump(), **PARTS),
    "lstm_transducer": LSTMTransducerConfig(**FRONT, layers=1, hidden=32, **PARTS),
}


def fresh(architecture: str, **changes: object) -> Recogniser:
    torch.manual_seed(0)
    config = CONFIGS[architecture].model_copy(update=changes)
    return build(architecture, config, CharacterTokens(tuple(" ab")), "kaldi")


STEEP = PLAIN.model_copy(
    update={"epochs": 8, "batch_seconds": 3.0, "learning_rate": ((0.0, 1e-3), (0.2, 1.5e-2), (1.0, 1e-4))}
)


@pytest.fixture(scope="module")
def learnt(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each architecture, trained to know the tones."""
    folder = tmp_path_factory.mktemp("learnt")
    paths = {}
    for architecture in CONFIGS:
        paths[architecture] = folder / f"{architecture}.safetensors"
        whole = job(corpus, paths[architecture], STEEP, recogniser=fresh(architecture))
        watching = run(replace(whole, corpora=[corpus] * 30))
        assert watching.epochs[0].train_loss > 1
        assert watching.epochs[-1].train_loss < 0.05
        assert watching.epochs[-1].dev_cer < 0.25, architecture
    return paths


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_few_utterances_are_learnt_by_heart_and_heard_on_chips(
    learnt: dict[str, Path], corpus: Corpus, architecture: str
) -> None:
    checkpoint = load_checkpoint(learnt[architecture])
    statistics = {name for name in checkpoint.names if name.startswith(PREFIX)}
    assert any("lstm.weight_hh_l0" in name for name in statistics)
    assert any("joiner.prediction" in name for name in statistics) == architecture.endswith("transducer")
    spec = load_hardware("physical").with_settings({"weights.bits": 6})
    result = evaluate(prepare(checkpoint, spec=spec), corpus, trials=2)
    assert result.digital.cer < 0.25
    assert max(trial.score.cer for trial in result.trials) < 0.35
    assert evaluate(prepare(checkpoint, spec=spec), corpus, trials=2).trials[0].score == result.trials[0].score


@pytest.mark.parametrize("architecture", [name for name in CONFIGS if name.endswith("transducer")])
def test_a_beam_adds_up_what_greedy_decoding_misses(learnt: dict[str, Path], corpus: Corpus, architecture: str) -> None:
    """A token that is unlikely in each of many frames can be likely in one of them: greedy decoding passes it by."""
    recogniser = load_recogniser(load_checkpoint(learnt[architecture]))
    assert isinstance(recogniser.model, Transducer)
    batch = pad([FeatureSource(recogniser.features)(utterance) for utterance in corpus.utterances])
    with torch.inference_mode():
        found = beam_search(recogniser.model, *recogniser.model(*batch))
    assert [recogniser.tokens.decode(hypotheses[0].tokens) for hypotheses in found] == list(TEXTS)
    assert all(hypotheses[0].log_prob > -0.1 for hypotheses in found)
    searching = replace(recogniser, decoder=TransducerBeam(recogniser.tokens))
    batches = evaluation_batches(corpus.utterances, FeatureSource(recogniser.features))
    assert transcribe(searching, batches) == dict(enumerate(TEXTS))


@pytest.mark.parametrize("architecture", CONFIGS)
def test_it_resumes_exactly(corpus: Corpus, tmp_path: Path, architecture: str) -> None:
    config = RANDOM.model_copy(update={"epochs": 2})

    def one(out: str) -> object:
        return job(corpus, tmp_path / out, config, recogniser=fresh(architecture, dropout=0.2))

    whole = run(one("whole.safetensors"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("memsim.training.loop.SAVE_SECONDS", 0.0)
        with pytest.raises(Killed):
            run(one("killed.safetensors"), KilledAt(len(whole.losses) // 2))
        run(one("killed.safetensors"), resume=True)
    assert same(tmp_path / "whole.safetensors", tmp_path / "killed.safetensors")


def test_the_loss_that_is_reported_is_the_one_that_is_trained(learnt: dict[str, Path], corpus: Corpus) -> None:
    for architecture, path in learnt.items():
        recogniser = load_recogniser(load_checkpoint(path))
        data = TrainingSet(corpus.utterances, recogniser, PLAIN, seed=0)
        batch = data.load(1, [(i, 1.0) for i in range(4)])
        with torch.no_grad():
            outputs = TrainingPass(recogniser.model, recogniser.kind)(batch.features, batch.lengths, batch.targets)
        wanted = recogniser.kind.losses(outputs, batch.targets).mean().item()
        task = SpeechTask.of(recogniser, corpus, loss=True)
        score = task.score(run_network(task, recogniser, task.groups, "cpu", lambda outcomes: False).outcomes)
        assert score.cer < 0.25
        assert score.loss == pytest.approx(wanted, rel=1e-3), architecture


def divergence(
    kind: Kind, teacher: nn.Module, pupil: Recogniser, corpus: Corpus, numbers: Sequence[int] = range(4)
) -> torch.Tensor:
    """Of `pupil` from `teacher`, of each utterance of a batch, as the recipe `robust` weighs it."""
    config = load_train_config("robust")
    assert config.quantisation is not None
    training = QuantisedTraining(Quantisation(config.quantisation, 3, load_hardware("physical")), config)
    assert config.quantisation.teacher is not None
    teaching = replace(pupil, model=teacher)
    training._teacher = Teacher(config.quantisation.teacher, teaching, config.precision, pupil.model)
    data = TrainingSet(corpus.utterances, pupil, PLAIN, seed=0)
    batch = data.load(1, [(i, 1.0) for i in numbers])
    outputs = TrainingPass(pupil.model, kind)(batch.features, batch.lengths, batch.targets)
    return training.extra_losses(batch, outputs, Moment(0, 1, 0, 0.5))


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_teacher_teaches_at_every_place(learnt: dict[str, Path], corpus: Corpus, architecture: str) -> None:
    knowing = load_recogniser(load_checkpoint(learnt[architecture]))
    same_losses = divergence(knowing.kind, knowing.model, knowing, corpus)
    assert same_losses.abs().max() < 1e-3  # its weights' products are rounded to 16 bits, as in the training
    pupil = fresh(architecture)
    losses = divergence(knowing.kind, knowing.model, pupil, corpus)
    assert losses.min() > 0.1
    alone = torch.cat([divergence(knowing.kind, knowing.model, pupil, corpus, [i]) for i in range(4)])
    torch.testing.assert_close(losses, alone, rtol=0.02, atol=0)  # nothing is learned from padding
    losses.sum().backward()
    assert all(parameter.grad is not None for parameter in pupil.model.parameters())


def test_a_transducer_is_trained_for_few_bits(learnt: dict[str, Path], corpus: Corpus, tmp_path: Path) -> None:
    config = PLAIN.model_copy(update={"epochs": 4, "learning_rate": ((0.0, 2e-3), (1.0, 1e-4)), "average_decay": 0.0})
    quantisation = load_train_config("robust").quantisation
    assert quantisation is not None
    hooks = QuantisedTraining(Quantisation(quantisation, 4, load_hardware("physical")), config)
    given = load_recogniser(load_checkpoint(learnt["conformer_transducer"]))
    recogniser = replace(given, model=given.model.train())
    out = tmp_path / "few.safetensors"
    watching = run(job(corpus, out, config, recogniser=recogniser, hooks=hooks))
    assert watching.epochs[-1].train_loss < 0.02  # it starts from a network that has learnt the texts
    assert watching.epochs[0].extra_loss > 0
    trained = load_recogniser(load_checkpoint(out))
    names = {name for name, _ in quantised_layers(trained.model)}
    assert {"joiner.encoder", "joiner.prediction", "blocks.0.attention.query"} <= names
    assert "output" not in names
    result = evaluate(prepare(load_checkpoint(out), spec=load_hardware("physical")), corpus, trials=2)
    assert max(trial.score.cer for trial in result.trials) < 0.35


def test_every_shipped_architecture_is_tried_here() -> None:
    # tests/training/test_loop.py, tests/asr/test_wav2vec2.py, tests/asr/test_hugging_face.py
    tried_elsewhere = {"conformer_ctc", "wav2vec2_ctc", "hugging_face_ctc", "hugging_face_seq2seq"}
    assert CONFIGS.keys() == ARCHITECTURES.keys() - tried_elsewhere


def test_features_are_those_of_the_config(corpus: Corpus) -> None:
    recogniser = fresh("lstm_transducer")
    features = FeatureSource(recogniser.features)(corpus.utterances[0])
    assert features.shape[1] == MODEL.features.mel_bins
