"""Little retraining: learning from a teacher without transcripts, in stages, and through one programmed chip."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import memsim
from memsim.asr.corpora import Corpus, load_corpus
from memsim.asr.recogniser import load_recogniser
from memsim.errors import InputError
from memsim.hardware import load_hardware
from memsim.networks.mapped_file import MATRIX, load_chip
from memsim.nn.quantisation import Quantisation, QuantisationConfig
from memsim.nn.trained_chip import train_digital_parts
from memsim.storage.checkpoint import load_checkpoint
from memsim.training.chip_training import ChipTraining
from memsim.training.quantised import QuantisedTraining
from memsim.training.recipe import TrainConfig, load_train_config
from tests.asr.hugging_face_folders import save_folder
from tests.training.test_quantised import from_start
from tests.training.tones import PLAIN, RANDOM, Killed, KilledAt, Watching, job, run, same, weights

ADAPT = load_train_config("adapt").quantisation
assert ADAPT is not None
ALL_DIGITAL = ADAPT.model_copy(update={"digital_matrix_rate": 1.0})
SHORT = PLAIN.model_copy(update={"epochs": 8, "learning_rate": ((0.0, 3e-3), (1.0, 1e-4)), "average_decay": 0.0})


def hooks(config: TrainConfig, bits: int = 2, **changes: Any) -> QuantisedTraining:
    quantisation = QuantisationConfig.model_validate(
        ADAPT.model_dump() | {"mapping": None, "weight_steps": None} | changes
    )
    return QuantisedTraining(Quantisation(quantisation, bits, load_hardware("ideal")), config)


def without_texts(corpus: Corpus) -> Corpus:
    return replace(corpus, utterances=tuple(replace(utterance, text="") for utterance in corpus.utterances))


def adapted(corpus: Corpus, start: Path, out: Path, config: TrainConfig = SHORT, **changes: Any) -> Watching:
    return run(job(corpus, out, config, recogniser=from_start(start), hooks=hooks(config, **changes)))


def test_transcripts_are_not_needed(corpus: Corpus, start: Path, tmp_path: Path) -> None:
    """The losses fall, and transcripts would change nothing; the dev set is scored against the teacher's texts."""
    watching = adapted(without_texts(corpus), start, tmp_path / "without.safetensors")
    adapted(corpus, start, tmp_path / "with.safetensors")
    assert same(tmp_path / "without.safetensors", tmp_path / "with.safetensors")
    losses = [result.extra_loss for result in watching.epochs]
    assert losses[-1] < 0.5 * losses[0]
    assert {result.train_loss for result in watching.epochs} == {0.0}
    assert watching.best is not None
    assert watching.best.dev["wer"] < 0.5


def test_digital_parameters_learn_before_the_weights(corpus: Corpus, start: Path, tmp_path: Path) -> None:
    before = {name: tensor for name, tensor in weights(start).items() if not name.startswith("statistics/")}
    for begin, rate, learns in ((1.0, 0.0, False), (0.5, 1.0, True)):
        out = tmp_path / f"{begin}.safetensors"
        changes = {"weights_begin": begin, "digital_matrix_rate": rate}
        adapted(corpus, start, out, SHORT.model_copy(update={"epochs": 2}), **changes)
        after = weights(out.with_name(f"{begin}.last.safetensors"))
        changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
        scale = ".weight_quantiser.scale"
        on_arrays = {name.removesuffix(scale) + ".weight" for name in after if name.endswith(scale)}
        assert on_arrays
        assert (on_arrays & changed == set()) != learns
        assert "blocks.0.feed_forward_1.expand.bias" in changed
        assert any("norm" in name for name in changed)
        assert ("output.weight" in changed) == (rate > 0)  # this layer stays digital
        assert "output.bias" in changed


def test_it_resumes_exactly_and_hears_the_teacher_once(
    corpus: Corpus,
    start: Path,
    tmp_path: Path,
) -> None:
    config = RANDOM.model_copy(update={"epochs": 2, "evaluate_start": True})
    corpus = without_texts(corpus)

    def one(out: str) -> Any:
        changes = {"weights_begin": 0.6, "mapping": "feedback"}
        return job(corpus, tmp_path / out, config, recogniser=from_start(start), hooks=hooks(config, **changes))

    steps = len(run(one("whole.safetensors")).losses)
    for killed_at in (1, steps - 1):
        out = f"killed-{killed_at}.safetensors"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("memsim.training.loop.SAVE_SECONDS", 0.0)
            with pytest.raises(Killed):
                run(one(out), KilledAt(killed_at))
            patch.setattr("memsim.training.loop.hypotheses", None)
            run(one(out), resume=True)
        assert same(tmp_path / "whole.safetensors", tmp_path / out)


def test_the_start_is_kept_where_no_epoch_is_better(corpus: Corpus, start: Path, tmp_path: Path) -> None:
    corpus, changes = without_texts(corpus), {"epochs": 2, "evaluate_start": True}
    ruin = SHORT.model_copy(update={**changes, "learning_rate": ((0.0, 1.0), (1.0, 1.0))})
    watching = adapted(corpus, start, tmp_path / "ruined.safetensors", ruin, bits=8)
    assert watching.best is not None
    assert watching.best.epoch == 0
    assert all(result.dev_wer > watching.best.dev["wer"] for result in watching.epochs)
    kept, before = weights(tmp_path / "ruined.safetensors"), weights(start)
    assert torch.equal(kept["output.weight"], before["output.weight"])
    better = adapted(corpus, start, tmp_path / "better.safetensors", SHORT.model_copy(update=changes))
    assert better.best is not None
    assert better.best.epoch > 0


def test_the_epoch_of_least_divergence_is_kept_where_the_loss_decides(
    corpus: Corpus, start: Path, tmp_path: Path
) -> None:
    """With many bits the network is its teacher; with two, the WER of two epochs is the same and the loss decides."""
    changes = {"epochs": 3, "evaluate_start": True, "best_by": "loss"}
    config = SHORT.model_copy(update={**changes, "learning_rate": ((0.0, 1e-3), (0.4, 1e-3), (0.6, 1.0), (1.0, 1.0))})
    start_losses = {}
    for bits in (2, 4, 12):
        watching = adapted(corpus, start, tmp_path / f"{bits}.safetensors", config, bits=bits)
        losses = {0: watching.start_loss, **{result.epoch: result.dev_loss for result in watching.epochs}}
        assert watching.best is not None
        assert watching.best.dev_loss == min(losses.values()) == losses[watching.best.epoch]
        assert losses[3] > 2 * watching.best.dev_loss
        start_losses[bits] = watching.start_loss
    assert abs(start_losses[12]) < 0.01 * start_losses[4] < 0.1 * start_losses[2]


@pytest.fixture(scope="module")
def mapped(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mapped") / "chip.mapped.safetensors"
    memsim.map_checkpoint(start, "physical", bits=3, seed=3, out=out)
    return out


def in_the_loop(corpus: Corpus, mapped: Path, teacher: Path | None, out: Path, config: TrainConfig) -> Any:
    checkpoint = load_checkpoint(mapped)
    recogniser, _ = load_chip(checkpoint)
    teaching = None if teacher is None else load_recogniser(load_checkpoint(teacher))
    made = job(
        corpus, out, config, recogniser=recogniser, hooks=ChipTraining(ALL_DIGITAL, config, checkpoint, teaching)
    )
    return replace(made, provenance={**checkpoint.metadata, **made.provenance})


@pytest.mark.parametrize("has_teacher", [True, False])
def test_a_chip_in_the_loop_keeps_its_cells(
    corpus: Corpus,
    start: Path,
    mapped: Path,
    tmp_path: Path,
    has_teacher: bool,
) -> None:
    out = tmp_path / "out.mapped.safetensors"
    config = SHORT.model_copy(update={"epochs": 6})
    teacher = start if has_teacher else None
    watching = run(in_the_loop(without_texts(corpus) if has_teacher else corpus, mapped, teacher, out, config))
    losses = [result.extra_loss if has_teacher else result.train_loss for result in watching.epochs]
    assert losses[-1] < (0.7 if has_teacher else 0.95) * losses[0]
    before, after = weights(mapped), weights(out)
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert not any(MATRIX in name for name in changed)
    assert {name.rpartition(MATRIX)[2] for name in after.keys() - before.keys()} == {"gain_trim", "offset_trim"}
    assert {"output.weight", "blocks.0.feed_forward_1.expand.bias"} < changed
    metadata = load_checkpoint(out).metadata
    assert metadata["kind"] == "mapped"
    assert "best" in metadata
    result = memsim.evaluate(out, data="demo", limit=1)
    assert result is not None


def test_rates_of_a_chip_in_the_loop_are_those_of_the_recipe(mapped: Path) -> None:
    checkpoint = load_checkpoint(mapped)
    recogniser, _ = load_chip(checkpoint)
    trained_matrices = train_digital_parts(recogniser.model)
    assert ADAPT is not None
    rates = ADAPT.model_copy(update={"digital_rate": 0.5, "digital_matrix_rate": 0.25, "scale_rate": 2.0})
    training = ChipTraining(rates, SHORT, checkpoint, None)
    groups = training.parameter_groups(recogniser.model, SHORT)
    found = {id(parameter): group.rate_scale for group in groups for parameter in group.parameters}
    gains = {id(matrix.gain_trim) for matrix in trained_matrices.values()}
    for name, parameter in recogniser.model.named_parameters():
        expected = 2.0 if id(parameter) in gains else 0.125 if parameter.ndim > 1 else 0.5
        assert found[id(parameter)] == expected, name


def test_a_chip_in_the_loop_resumes_exactly(corpus: Corpus, start: Path, mapped: Path, tmp_path: Path) -> None:
    config = RANDOM.model_copy(update={"epochs": 2})

    def one(out: str) -> Any:
        return in_the_loop(corpus, mapped, start, tmp_path / out, config)

    steps = len(run(one("whole.safetensors")).losses)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("memsim.training.loop.SAVE_SECONDS", 0.0)
        with pytest.raises(Killed):
            run(one("killed.safetensors"), KilledAt(steps // 2))
        run(one("killed.safetensors"), resume=True)
    assert same(tmp_path / "whole.safetensors", tmp_path / "killed.safetensors")


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"bits": 3}, "is mapped and has its own bits; leave --bits out"),
        ({"hardware": "best"}, "is mapped and has its own hardware; leave --hardware out"),
        ({"model": "conformer-small"}, "is mapped and has its own model; leave --model out"),
        ({"config": "float"}, "--config float: is a recipe for full precision"),
        ({"teacher": "demo-float"}, "--teacher demo-float: has other tokens than the network that learns"),
        (
            {"config": {"base": "adapt", "quantisation": {"teacher": None}}, "teacher": "demo-float"},
            "learns from none",
        ),
        ({"init": None}, "--bits is missing: 2 to 16, or float"),
        ({"teacher": "MAPPED"}, "is mapped onto arrays; learn from the checkpoint that was mapped"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(mapped: Path, tmp_path: Path, options: dict[str, Any], found: str) -> None:
    usual: dict[str, Any] = {"data": "demo", "dev": "demo", "init": mapped, "out": tmp_path / "out.safetensors"}
    options = {name: str(mapped) if value == "MAPPED" else value for name, value in options.items()}
    with pytest.raises(InputError, match=found) as caught:
        memsim.train(**usual | options)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "out.safetensors").exists()


def test_a_recogniser_that_generates_text_adapts_without_transcripts_and_then_on_its_chip(tmp_path: Path) -> None:
    save_folder(tmp_path / "whisper", "whisper")
    some = load_corpus("demo", limit=1).utterances
    for utterance in some:
        shutil.copy(utterance.audio, tmp_path)
    untold = tmp_path / "untold.tsv"
    untold.write_text("\n".join(["audio", *(utterance.audio.name for utterance in some)]) + "\n")
    told = tmp_path / "told.tsv"
    told.write_text("\n".join(["audio\ttext", *(f"{utterance.audio.name}\tyes" for utterance in some)]) + "\n")
    recipe = {"base": "adapt", "epochs": 1, "precision": "float32", "augment": {"speeds": [1.0]}}
    usual: dict[str, Any] = {"data": untold, "dev": told, "config": recipe, "compute": "cpu"}
    out, chip, tuned = (tmp_path / f"{name}.safetensors" for name in ("out", "chip", "tuned"))
    result = memsim.train(init=tmp_path / "whisper", bits=4, hardware="ideal", out=out, **usual)
    assert result.epochs[0].extra_loss > 0
    memsim.map_checkpoint(out, "physical", out=chip)
    with pytest.raises(InputError, match="lacks `text`"):
        memsim.train(init=chip, out=tuned, **usual)  # without a teacher, transcripts are needed
    memsim.train(init=chip, teacher=tmp_path / "whisper", out=tuned, **usual)
    before, after = weights(chip), weights(tuned)
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert not any(MATRIX in name for name in changed)
    assert {name.rpartition(MATRIX)[2] for name in after.keys() - before.keys()} == {"gain_trim", "offset_trim"}
    assert any("layer_norm" in name for name in changed)
    assert load_chip(load_checkpoint(tuned))[0].tokens.kind == "hugging_face"
