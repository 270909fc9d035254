from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn

from memsim.asr.corpora import Corpus
from memsim.asr.data import FeatureSource, encode_text, evaluation_batches
from memsim.asr.kinds import Outputs
from memsim.asr.recogniser import Recogniser, load_recogniser
from memsim.asr.running import outputs
from memsim.asr.utterances import Utterance
from memsim.crossbar.statistics import PREFIX, statistics_from_tensors
from memsim.errors import InputError
from memsim.nn.layer_adapters import mappable_layers, matrix_sources
from memsim.storage.checkpoint import load_checkpoint
from memsim.training.epoch_batches import TrainingBatch
from memsim.training.hooks import Hooks, Moment, ParameterGroup
from memsim.training.recipe import TrainConfig
from tests.training.tones import DROPOUT, MODEL, PLAIN, RANDOM, Watching, fresh, hooks_of, job, run, same, weights


@pytest.fixture(scope="module")
def trained(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Watching]:
    out = tmp_path_factory.mktemp("trained") / "model.safetensors"
    return out, run(job(corpus, out, seed=7))


# --- a whole training ------------------------------------------------------------------------------------------------


def test_a_few_utterances_can_be_learnt_by_heart(trained: tuple[Path, Watching]) -> None:
    _, watching = trained
    assert watching.epochs[0].train_loss > 1
    assert watching.epochs[-1].train_loss < 0.05
    assert watching.epochs[-1].dev_wer == watching.epochs[-1].dev_cer == 0
    assert watching.epochs[-1].is_best
    assert watching.best.epoch == PLAIN.epochs
    assert watching.best.dev["wer"] == 0
    assert watching.best.dev["hits"] == 6
    assert len(watching.losses) == len(watching.epochs) == PLAIN.epochs


def test_what_is_written(trained: tuple[Path, Watching]) -> None:
    out, watching = trained
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "model.csv",
        "model.last.safetensors",
        "model.safetensors",
        "model.tensorboard",
    ]
    with out.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(1, PLAIN.epochs + 1))
    for row, result in zip(rows, watching.epochs, strict=True):
        assert set(row) == set(vars(result))
        assert float(row["train_loss"]) == pytest.approx(result.train_loss, rel=1e-5)
        assert row["is_best"] == str(result.is_best)
    assert float(rows[-1]["learning_rate"]) == pytest.approx(1e-4)


def test_both_checkpoints_can_be_run(trained: tuple[Path, Watching]) -> None:
    out, _ = trained
    for path in (out, out.with_name("model.last.safetensors")):
        checkpoint = load_checkpoint(path)
        assert checkpoint.kind == "model"
        assert (checkpoint.metadata["seed"], checkpoint.metadata["data"]) == ("7", "tones")
        recogniser = load_recogniser(checkpoint)
        assert recogniser.tokens.characters == (" ", "a", "b")
        assert recogniser.config.width == MODEL.width


def test_the_best_carries_the_statistics_of_every_matrix(trained: tuple[Path, Watching]) -> None:
    out, _ = trained
    checkpoint = load_checkpoint(out)
    sources = matrix_sources(mappable_layers(load_recogniser(checkpoint).model))
    statistics = statistics_from_tensors(checkpoint.tensors())
    assert statistics.keys() == sources.keys()
    for name, measured in statistics.items():
        assert measured.sample.shape[1] == sources[name].groups * sources[name].shape[1]
        assert 0 < measured.absmax <= float(measured.edges[-1])
    last = load_checkpoint(out.with_name("model.last.safetensors"))
    assert not any(name.startswith(PREFIX) for name in last.names)


def test_the_best_is_not_the_last_where_dev_got_worse(corpus: Corpus, tmp_path: Path) -> None:
    def forget(model: nn.Module, moment: Moment) -> None:
        if moment.epoch == 40:
            with torch.no_grad():
                model.output.weight.zero_()

    config = PLAIN.model_copy(update={"epochs": 40, "average_decay": 0.0})
    watching = run(job(corpus, tmp_path / "m.safetensors", config, hooks=hooks_of(before_step=forget)))
    assert watching.best.epoch < 40
    assert watching.best.dev["wer"] < watching.epochs[-1].dev_wer
    assert weights(tmp_path / "m.safetensors")["output.weight"].abs().max() > 0.1
    assert weights(tmp_path / "m.last.safetensors")["output.weight"].abs().max() < 0.02


def test_the_dev_loss_is_that_of_the_network_that_is_kept(corpus: Corpus, tmp_path: Path) -> None:
    """Transcripts with characters that have no token are left out of it."""
    config = PLAIN.model_copy(update={"epochs": 3, "best_by": "loss"})
    training = job(corpus, tmp_path / "m.safetensors", config)
    unwritable = replace(corpus.utterances[0], text="c", id="unwritable")
    watching = run(replace(training, dev=replace(corpus, utterances=(unwritable, *corpus.utterances))))
    recogniser = load_recogniser(load_checkpoint(tmp_path / "m.safetensors"))
    source = FeatureSource(recogniser.features)
    losses = []
    for batch, encoded, frames in outputs(recogniser, evaluation_batches(corpus.utterances, source)):
        targets = [encode_text(recogniser.tokens, corpus.utterances[i]) for i in batch.indices]
        losses += recogniser.losses(encoded, frames, targets).tolist()
    assert len(losses) == len(corpus.utterances)
    assert watching.best.dev_loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert watching.best.dev_loss == min(result.dev_loss for result in watching.epochs)


def test_the_seed_decides_every_weight(corpus: Corpus, tmp_path: Path) -> None:
    outs = {}
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        torch.rand(seed)  # whatever was drawn before
        recogniser = fresh(DROPOUT)
        torch.manual_seed(len(name))
        outs[name] = tmp_path / f"{name}.safetensors"
        run(job(corpus, outs[name], RANDOM, recogniser=recogniser, seed=seed))
    last = {name: out.with_name(f"{name}.last.safetensors") for name, out in outs.items()}
    assert same(outs["one"], outs["again"])
    assert same(last["one"], last["again"])
    assert not same(last["one"], last["other"])


def test_caching_changes_nothing(corpus: Corpus, tmp_path: Path) -> None:
    for gigabytes in (0.0, 1e-5, 1.0):  # none, some and all features fit
        config = RANDOM.model_copy(update={"feature_cache_gigabytes": gigabytes})
        run(job(corpus, tmp_path / f"{gigabytes}.safetensors", config))
    none, some, all_ = (tmp_path / f"{gigabytes}.last.safetensors" for gigabytes in (0.0, 1e-5, 1.0))
    assert same(none, some)
    assert same(none, all_)


@pytest.mark.parametrize("changes", [{"optimiser": "radam"}, {"precision": "bfloat16"}, {"average_decay": 0.0}])
def test_other_recipes_train_too(corpus: Corpus, tmp_path: Path, changes: dict[str, object]) -> None:
    config = PLAIN.model_copy(update={"epochs": 12} | changes)
    watching = run(job(corpus, tmp_path / "m.safetensors", config))
    assert watching.epochs[-1].train_loss < 0.9 * watching.epochs[0].train_loss
    assert {tensor.dtype for tensor in weights(tmp_path / "m.last.safetensors").values()} == {torch.float32}


def test_a_corpus_named_twice_counts_twice(corpus: Corpus, tmp_path: Path) -> None:
    config = PLAIN.model_copy(update={"epochs": 1, "batch_seconds": 0.01})
    once = job(corpus, tmp_path / "m.safetensors", config)
    assert len(run(replace(once, corpora=[corpus, corpus])).losses) == 8


def test_a_second_training_starts_its_logs_anew(corpus: Corpus, tmp_path: Path) -> None:
    config = PLAIN.model_copy(update={"epochs": 1})
    for _ in range(2):
        run(job(corpus, tmp_path / "m.safetensors", config))
    assert len((tmp_path / "m.csv").read_text().splitlines()) == 2
    assert len(list((tmp_path / "m.tensorboard").iterdir())) == 1


# RAdam's first steps are linear in the gradient, so that a difference of rounding stays one: Adam would make a step of
# full size out of a gradient that is nothing but rounding.
LINEAR = RANDOM.model_copy(
    update={"optimiser": "radam", "epochs": 4, "batch_seconds": 100.0, "clip_norm": 1e6, "average_decay": 0.0}
)


def log_likelihood_of_blanks(batch: TrainingBatch, outputs: Outputs, moment: Moment) -> Tensor:
    return torch.stack(
        [row[:count, 0].mean() for row, count in zip(outputs.log_probs, outputs.frames.tolist(), strict=True)]
    )


@pytest.mark.parametrize("parts", [2, 3, 5])  # of 4 utterances
def test_a_batch_in_parts_gives_the_same_step(corpus: Corpus, tmp_path: Path, parts: int) -> None:
    hooks = hooks_of(extra_losses=log_likelihood_of_blanks)
    made = {}
    for accumulate in (1, parts):
        config = LINEAR.model_copy(update={"accumulate": accumulate})
        made[accumulate] = run(job(corpus, tmp_path / f"{accumulate}.safetensors", config, hooks=hooks)).epochs
    whole, divided = (weights(tmp_path / f"{accumulate}.last.safetensors") for accumulate in (1, parts))
    torch.testing.assert_close(divided, whole, rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(divided[name], whole[name]) for name in whole)
    for one, other in zip(*made.values(), strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, rel=1e-5)
        assert other.extra_loss == pytest.approx(one.extra_loss, rel=1e-5)


# --- what a training method adds -------------------------------------------------------------------------------------


class Scaled(nn.Module):
    """A linear layer with a parameter and a buffer of its own."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("ramp", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = self.linear(x) * self.scale
        return scaled


def prepare(recogniser: Recogniser, utterances: tuple[Utterance, ...], source: FeatureSource) -> nn.Module:
    assert source(utterances[0]).shape[1] == recogniser.features.mel_bins
    recogniser.model.output = Scaled(recogniser.model.output)
    return recogniser.model


def groups(model: nn.Module, config: TrainConfig) -> list[ParameterGroup]:
    scale = model.output.scale
    matrices, vectors = Hooks().parameter_groups(model, config)
    others = [parameter for parameter in vectors.parameters if parameter is not scale]
    return [matrices, replace(vectors, parameters=others), ParameterGroup([scale], 0.0, rate_scale=0.0)]


def follow(model: nn.Module, moment: Moment) -> None:
    model.output.ramp.fill_(moment.fraction)


def test_a_method_s_parameters_and_buffers_are_trained_and_written(corpus: Corpus, tmp_path: Path) -> None:
    config = RANDOM.model_copy(update={"epochs": 2})
    run(job(corpus, tmp_path / "m.safetensors", config, hooks=hooks_of(prepare=prepare, before_step=follow)))
    last = weights(tmp_path / "m.last.safetensors")
    assert last["output.ramp"] == 1  # the fraction that is done with the last step
    assert last["output.scale"] != 1
    assert {"output.linear.weight", "output.linear.bias"} <= last.keys()


def test_a_group_has_a_learning_rate_of_its_own(corpus: Corpus, tmp_path: Path) -> None:
    config = RANDOM.model_copy(update={"epochs": 2})
    run(job(corpus, tmp_path / "m.safetensors", config, hooks=hooks_of(prepare=prepare, parameter_groups=groups)))
    assert weights(tmp_path / "m.last.safetensors")["output.scale"] == 1


def test_groups_must_hold_every_parameter_once(corpus: Corpus, tmp_path: Path) -> None:
    def without_vectors(model: nn.Module, config: TrainConfig) -> list[ParameterGroup]:
        return Hooks().parameter_groups(model, config)[:1]

    with pytest.raises(ValueError, match=r"parameter groups hold .*bias 0 times"):
        run(job(corpus, tmp_path / "m.safetensors", hooks=hooks_of(parameter_groups=without_vectors)))


def test_moments(corpus: Corpus, tmp_path: Path) -> None:
    seen: list[Moment] = []
    config = RANDOM.model_copy(update={"epochs": 2})
    hooks = hooks_of(before_step=lambda model, moment: seen.append(moment))
    made = run(job(corpus, tmp_path / "m.safetensors", config, hooks=hooks, seed=3))
    assert [moment.step for moment in seen] == list(range(len(made.losses)))
    assert {moment.epoch for moment in seen} == {1, 2}
    assert {moment.seed for moment in seen} == {3}
    fractions = [moment.fraction for moment in seen]
    assert fractions == sorted(set(fractions))
    assert fractions[-1] == 1
    assert 0 < fractions[0] <= 0.25


def test_an_extra_loss_is_minimised_and_logged(corpus: Corpus, tmp_path: Path) -> None:
    def blank(batch: TrainingBatch, outputs: Outputs, moment: Moment) -> Tensor:
        log_probs, frames = outputs.log_probs, outputs.frames
        assert len(batch.utterances) == len(batch.targets) == len(batch.features) == len(frames) == len(log_probs)
        return -100 * log_probs[:, :, 0].mean(dim=1)  # let everything be silence

    config = PLAIN.model_copy(update={"epochs": 20})
    watching = run(job(corpus, tmp_path / "m.safetensors", config, hooks=hooks_of(extra_losses=blank)))
    first, last = watching.epochs[0], watching.epochs[-1]
    assert last.extra_loss < 0.1 * first.extra_loss
    assert last.train_loss > first.train_loss  # the CTC loss by itself
    assert last.dev_wer == 1


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number(corpus: Corpus, tmp_path: Path) -> None:
    recogniser = fresh()
    with torch.no_grad():
        recogniser.model.output.bias.fill_(math.nan)
    said = (
        r"the loss is nan at epoch 1, batch 1 \(u\d, u\d, u\d, \.\.\.\); output: the first place whose output holds NaN"
    )
    with pytest.raises(FloatingPointError, match=said):
        run(job(corpus, tmp_path / "m.safetensors", recogniser=recogniser))
    assert not list(tmp_path.glob("*.safetensors"))


def test_an_extra_loss_that_is_no_number(corpus: Corpus, tmp_path: Path) -> None:
    def bad(batch: TrainingBatch, outputs: Outputs, moment: Moment) -> Tensor:
        return outputs.log_probs.sum(dim=(1, 2)) * (math.inf if moment.step == 4 else 1)

    with pytest.raises(FloatingPointError, match=r"the extra loss is -inf at epoch 2, batch 2 \(u[^;]*$"):
        run(job(corpus, tmp_path / "m.safetensors", RANDOM, hooks=hooks_of(extra_losses=bad)))


def test_a_gradient_that_is_no_number(corpus: Corpus, tmp_path: Path) -> None:
    recogniser = fresh()
    recogniser.model.output.bias.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(FloatingPointError, match=r"the norm of the gradient is (nan|inf) at epoch 1, batch 1[^;]*$"):
        run(job(corpus, tmp_path / "m.safetensors", recogniser=recogniser))


def test_a_character_without_a_token(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"0\.wav: u0: no token for the character 'b'"):
        run(job(corpus, tmp_path / "m.safetensors", recogniser=fresh(characters=" a")))
    assert not list(tmp_path.iterdir())


def test_audio_that_is_missing(corpus: Corpus, tmp_path: Path) -> None:
    lost = replace(corpus, utterances=(replace(corpus.utterances[0], audio=tmp_path / "none.wav"),))
    with pytest.raises(InputError, match=r"none\.wav: no such audio file \(utterance u0\)"):
        run(job(lost, tmp_path / "m.safetensors"))


def test_an_utterance_too_short_for_its_text_is_counted_and_harms_nothing(corpus: Corpus, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "short.wav", np.full(200, 0.1), 16000)
    short = Utterance("short", tmp_path / "short.wav", "ab ab")
    once = PLAIN.model_copy(update={"epochs": 1})
    with_short = replace(corpus, utterances=(*corpus.utterances, short))
    watching = run(job(with_short, tmp_path / "m.safetensors", once))
    assert watching.epochs[0].too_short == 1
    assert all(math.isfinite(loss) for loss in watching.losses)
    with pytest.raises(InputError, match=r"short\.wav: every utterance has fewer frames than its text needs"):
        run(job(Corpus("short", "all", (short,)), tmp_path / "n.safetensors", once))
