from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel

from memsim import train as training
from memsim.asr.corpora import Corpus, Utterance
from memsim.asr.features import AugmentConfig, FeatureConfig
from memsim.asr.models.conformer import ConformerConfig, ConvConfig
from memsim.asr.recogniser import Recogniser, build, load_recogniser
from memsim.asr.tokens import CharacterTokens
from memsim.checkpoint import load_checkpoint
from memsim.crossbar.statistics import PREFIX, statistics_from_tensors
from memsim.errors import InputError
from memsim.nn.front_ends import mappable_layers, matrix_sources
from memsim.train import EpochResult, TrainConfig, _ctc_loss, _optimiser, _warming_average, train

TEXTS = ("ab", "ba", "a b", "bb a")
HZ = {"a": 500.0, "b": 2000.0, " ": 0.0}

MODEL = ConformerConfig(
    features=FeatureConfig(mel_bins=16),
    frontend=(ConvConfig(channels=4, stride_time=2, stride_frequency=2), ConvConfig(channels=4, stride_time=2)),
    width=24,
    blocks=1,
    heads=2,
    feed_forward_width=48,
    kernel_frames=7,
    dropout=0.0,
)

PLAIN = TrainConfig(
    name="plain",
    epochs=60,
    batch_seconds=100.0,
    learning_rate=((0.0, 1e-3), (0.2, 1e-2), (1.0, 1e-4)),
    average_decay=0.5,
    augment=AugmentConfig(speeds=(1.0,), time_mask_frames=0, frequency_masks_min=0, frequency_masks_max=0),
)

# Everything that draws: speeds, masks, warping, dropout, several batches an epoch.
RANDOM = PLAIN.model_copy(
    update={
        "epochs": 2,
        "batch_seconds": 1.5,
        "average_decay": 0.9,
        "augment": AugmentConfig(frequency_mask_bins=2, frequency_warp=0.1),
    }
)


@dataclass
class Watching:
    losses: list[float] = field(default_factory=list)
    epochs: list[EpochResult] = field(default_factory=list)

    def step(self, epoch: int, done: int, total: int, loss: float) -> None:
        assert 1 <= done <= total
        self.losses.append(loss)

    def epoch(self, result: EpochResult) -> None:
        self.epochs.append(result)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Each character a tone of its own, with a pause after it."""
    folder = tmp_path_factory.mktemp("tones")
    time = np.arange(2400) / 16000
    utterances = []
    for i, text in enumerate(TEXTS):
        pieces = [[0.3 * np.sin(2 * math.pi * HZ[c] * time), np.zeros(1600)] for c in text]
        samples = np.concatenate([piece for pair in pieces for piece in pair])
        samples += 0.003 * np.random.default_rng(i).standard_normal(len(samples))
        soundfile.write(folder / f"{i}.wav", samples, 16000)
        utterances.append(Utterance(f"u{i}", folder / f"{i}.wav", text))
    return Corpus("tones", "all", tuple(utterances))


def fresh(config: ConformerConfig = MODEL, characters: str = " ab") -> Recogniser:
    torch.manual_seed(0)
    return build("conformer_ctc", config, CharacterTokens(tuple(characters)), "kaldi")


def run(
    corpus: Corpus,
    out: Path,
    config: TrainConfig = PLAIN,
    *,
    recogniser: Recogniser | None = None,
    seed: int = 0,
    provenance: Mapping[str, str] | None = None,
) -> Watching:
    watching = Watching()
    train(
        recogniser or fresh(),
        config,
        [corpus],
        corpus,
        out,
        seed=seed,
        provenance=provenance or {},
        watcher=watching,
    )
    return watching


@pytest.fixture(scope="module")
def trained(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Watching]:
    out = tmp_path_factory.mktemp("trained") / "model.safetensors"
    return out, run(corpus, out, provenance={"data": "tones"}, seed=7)


# --- a whole training ------------------------------------------------------------------------------------------------


def test_a_few_utterances_can_be_learnt_by_heart(trained: tuple[Path, Watching]) -> None:
    _, watching = trained
    assert watching.epochs[0].train_loss > 1
    assert watching.epochs[-1].train_loss < 0.05
    assert watching.epochs[-1].dev_wer == watching.epochs[-1].dev_cer == 0
    assert watching.epochs[-1].is_best
    assert len(watching.losses) == len(watching.epochs) == PLAIN.epochs


def test_what_is_written(trained: tuple[Path, Watching]) -> None:
    out, watching = trained
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "model.csv",
        "model.last.safetensors",
        "model.safetensors",
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
        assert 0 < measured.absmax <= measured.limit
    last = load_checkpoint(out.with_name("model.last.safetensors"))
    assert not any(name.startswith(PREFIX) for name in last.names)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path).tensors()


def test_the_seed_decides_every_weight(corpus: Corpus, tmp_path: Path) -> None:
    model = MODEL.model_copy(update={"dropout": 0.2})
    made = {}
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        torch.rand(seed)  # whatever was drawn before
        recogniser = fresh(model)
        torch.manual_seed(len(name))
        run(corpus, tmp_path / f"{name}.safetensors", RANDOM, recogniser=recogniser, seed=seed)
        made[name] = [weights(tmp_path / f"{name}{kind}.safetensors") for kind in ("", ".last")]
    for one, again in zip(made["one"], made["again"], strict=True):
        assert one.keys() == again.keys()
        assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(made["one"][1]["output.weight"], made["other"][1]["output.weight"])


def test_caching_changes_nothing(corpus: Corpus, tmp_path: Path) -> None:
    for cache in (False, True):
        config = RANDOM.model_copy(update={"cache_features": cache})
        run(corpus, tmp_path / f"{cache}.safetensors", config)
    with_cache, without = (weights(tmp_path / f"{cache}.last.safetensors") for cache in (True, False))
    assert all(torch.equal(with_cache[name], without[name]) for name in with_cache)


@pytest.mark.parametrize(
    "changes", [{"optimiser": "radam"}, {"precision": "bfloat16"}, {"average_decay": 0.0, "cache_features": False}]
)
def test_other_recipes_train_too(corpus: Corpus, tmp_path: Path, changes: dict[str, object]) -> None:
    config = PLAIN.model_copy(update={"epochs": 12} | changes)
    watching = run(corpus, tmp_path / "m.safetensors", config)
    assert watching.epochs[-1].train_loss < 0.9 * watching.epochs[0].train_loss
    assert {tensor.dtype for name, tensor in weights(tmp_path / "m.last.safetensors").items()} == {torch.float32}


def test_a_corpus_named_twice_counts_twice(corpus: Corpus, tmp_path: Path) -> None:
    config = PLAIN.model_copy(update={"epochs": 1, "batch_seconds": 0.01})
    watching = Watching()
    out = tmp_path / "m.safetensors"
    train(fresh(), config, [corpus, corpus], corpus, out, seed=0, provenance={}, watcher=watching)
    assert len(watching.losses) == 8


def test_a_second_training_starts_its_log_anew(corpus: Corpus, tmp_path: Path) -> None:
    config = PLAIN.model_copy(update={"epochs": 1})
    for _ in range(2):
        run(corpus, tmp_path / "m.safetensors", config)
    assert len((tmp_path / "m.csv").read_text().splitlines()) == 2


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number(corpus: Corpus, tmp_path: Path) -> None:
    recogniser = fresh()
    with torch.no_grad():
        recogniser.model.output.bias.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"the loss is nan at epoch 1, batch 1 \(u\d, u\d, u\d, \.\.\.\)"):
        run(corpus, tmp_path / "m.safetensors", recogniser=recogniser)
    assert not list(tmp_path.iterdir())


def test_a_gradient_that_is_no_number(corpus: Corpus, tmp_path: Path) -> None:
    recogniser = fresh()
    recogniser.model.output.bias.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(FloatingPointError, match=r"the norm of the gradient is (nan|inf) at epoch 1, batch 1"):
        run(corpus, tmp_path / "m.safetensors", recogniser=recogniser)


def test_a_character_without_a_token(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"0\.wav: u0: no token for the character 'b'"):
        run(corpus, tmp_path / "m.safetensors", recogniser=fresh(characters=" a"))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_missing_is_told_before_the_first_epoch(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"m\.safetensors: the folder .*none does not exist"):
        run(corpus, tmp_path / "none" / "m.safetensors")


def test_audio_that_is_missing(corpus: Corpus, tmp_path: Path) -> None:
    lost = replace(corpus, utterances=(replace(corpus.utterances[0], audio=tmp_path / "none.wav"),))
    with pytest.raises(InputError, match=r"none\.wav: no such audio file \(utterance u0\)"):
        run(lost, tmp_path / "m.safetensors")


def test_an_utterance_too_short_for_its_text_is_counted_and_harms_nothing(corpus: Corpus, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "short.wav", np.full(200, 0.1), 16000)
    short = Utterance("short", tmp_path / "short.wav", "ab ab")
    once = PLAIN.model_copy(update={"epochs": 1})
    watching = run(replace(corpus, utterances=(*corpus.utterances, short)), tmp_path / "m.safetensors", once)
    assert watching.epochs[0].too_short == 1
    assert all(math.isfinite(loss) for loss in watching.losses)
    with pytest.raises(InputError, match=r"short\.wav: every utterance has fewer frames than its text"):
        run(Corpus("short", "all", (short,)), tmp_path / "n.safetensors", once)


# --- the parts -------------------------------------------------------------------------------------------------------


@given(st.floats(0, 1))
def test_the_learning_rate_is_linear_between_its_points(fraction: float) -> None:
    points = ((0.0, 1e-4), (0.12, 1.5e-3), (0.5, 1e-3), (1.0, 1e-5))
    config = PLAIN.model_copy(update={"learning_rate": points})
    expected = np.interp(fraction, [f for f, _ in points], [rate for _, rate in points])
    assert config.learning_rate_at(fraction) == pytest.approx(expected, rel=1e-9)


def test_the_learning_rate_at_its_points() -> None:
    assert [PLAIN.learning_rate_at(f) for f in (0, 0.1, 0.2, 0.6, 1)] == pytest.approx(
        [1e-3, 5.5e-3, 1e-2, 5.05e-3, 1e-4]
    )


@pytest.mark.parametrize("optimiser", ["adamw", "radam"])
def test_weight_decay_is_on_matrices_only(optimiser: str) -> None:
    model = fresh().model
    config = PLAIN.model_copy(update={"weight_decay": 0.5, "optimiser": optimiser})
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimiser_ = _optimiser(model, config)
    assert sum(len(group["params"]) for group in optimiser_.param_groups) == len(before)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser_.step()
    for name, parameter in model.named_parameters():
        kept = 1 - 1e-3 * 0.5 if parameter.ndim > 1 else 1
        torch.testing.assert_close(parameter.detach(), kept * before[name], msg=name)


def test_the_moving_average() -> None:
    model = nn.Linear(1, 1, bias=False)
    averaged = AveragedModel(model, multi_avg_fn=_warming_average(0.6))
    values = [3.0, -1.0, 4.0, 1.0, 5.0, -9.0, 2.0, 6.0, 5.0, 3.0, 5.0, 8.0, 9.0, 7.0]
    expected = values[0]
    for n, value in enumerate(values):
        with torch.no_grad():
            model.weight.fill_(value)
        averaged.update_parameters(model)
        if n:
            decay = min(0.6, (1 + n) / (10 + n))
            expected = decay * expected + (1 - decay) * value
        assert averaged.module.weight.item() == pytest.approx(expected, rel=1e-5)
    assert (1 + 12) / (10 + 12) < 0.6 == min(0.6, (1 + 13) / (10 + 13))  # both sides of the minimum were seen


def test_without_a_decay_the_average_is_the_weights() -> None:
    model = nn.Linear(3, 3)
    averaged = AveragedModel(model, multi_avg_fn=_warming_average(0.0))
    for _ in range(3):
        nn.init.normal_(model.weight)
        averaged.update_parameters(model)
        assert torch.equal(averaged.module.weight, model.weight)


def test_the_loss_is_per_character() -> None:
    # One frame a character and certainty: no loss. Uniform over 3 tokens, one frame, one character: log 3.
    certain = torch.tensor([[[0.0, -99, -99], [-99, 0, -99]]])
    assert _ctc_loss(certain, torch.tensor([2]), [torch.tensor([1])]).item() == pytest.approx(0, abs=1e-6)
    uniform = torch.full((2, 2, 3), -math.log(3))
    assert _ctc_loss(uniform[:1, :1], torch.tensor([1]), [torch.tensor([2])]).item() == pytest.approx(math.log(3))
    # Two different characters in two frames have one path: 2 log 3, over 2 characters.
    targets = [torch.tensor([1, 2]), torch.tensor([1, 2])]
    assert _ctc_loss(uniform, torch.tensor([2, 2]), targets).item() == pytest.approx(math.log(3))
    # Too few frames count as no loss.
    assert _ctc_loss(uniform, torch.tensor([2, 1]), targets).item() == pytest.approx(math.log(3) / 2)


def test_every_epoch_and_seed_has_batches_of_its_own(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    original = training.training_batches

    def noting(*given: object) -> object:
        seeds.append(given[-1].initial_seed())
        return original(*given)

    monkeypatch.setattr(training, "training_batches", noting)
    for seed in (0, 1):
        run(corpus, tmp_path / "m.safetensors", RANDOM, seed=seed)
    assert len(set(seeds)) == len(seeds) == 4
