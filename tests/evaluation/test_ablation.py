"""Effects of non-idealities and layers on a recogniser, against evaluations of the corresponding hardware."""

from __future__ import annotations

import pytest
import torch

from memsim.asr.corpora import load_corpus
from memsim.config.resources import ASSETS
from memsim.errors import InputError
from memsim.evaluation.ablation import ablate, chip_budget, sensitivity
from memsim.evaluation.speech import SpeechTask
from memsim.evaluation.target import Target
from memsim.hardware import HardwareSpec, load_hardware
from memsim.nn.budget import Budget
from memsim.nn.chip import mapping_of
from memsim.storage.checkpoint import load_checkpoint
from tests.evaluation.calls import evaluate, prepare

CORPUS = load_corpus("demo", limit=3)
ONE_BLOCK = ["output*", "frontend.*", "blocks.[1-5].*", "*.depthwise"]
DEMO = load_checkpoint(ASSETS / "checkpoints" / "demo-float.safetensors")


def spec_of(**settings: object) -> HardwareSpec:
    return load_hardware("physical").with_settings({"weights.bits": 2, "digital": ONE_BLOCK, **settings})


def task_of(target: Target) -> SpeechTask:
    return SpeechTask.of(target.template, CORPUS)


@pytest.fixture(scope="module")
def target() -> Target:
    return prepare(DEMO, spec=spec_of())


def test_each_step_is_an_evaluation_of_its_hardware(target: Target) -> None:
    result = evaluate(target, CORPUS, trials=2)
    shown = []
    steps = ablate(target, result, progress=lambda name, done: shown.append(name))
    assert [step.effect for step in steps] == list(target.spec.steps())
    for step in steps[:-1]:
        alone = evaluate(prepare(DEMO, spec=target.spec.up_to(step.effect)), CORPUS, trials=len(step.scores))
        assert step.scores == tuple(trial.score for trial in alone.trials), step.effect
    assert [len(step.scores) for step in steps] == [1, 1, 1, 2, 2, 2]
    assert steps[1].scores == (result.digital,)
    assert steps[-1].scores == tuple(trial.score for trial in result.trials)
    # and what is known already is not run again
    assert set(shown) == {
        "up to quantisation",
        "up to iv",
        *(f"up to {effect}, chip {chip}" for effect in ("programming", "adc") for chip in (1, 2)),
    }
    mean = sum(score.wer for score in steps[3].scores) / 2
    assert steps[3].to_dict() == {"effect": "programming", "chips": 2, **steps[3].rates}
    assert steps[3].rates["wer"]["mean"] == pytest.approx(mean)


def test_exact_hardware_has_one_step(target: Target) -> None:
    ideal = prepare(DEMO, spec=load_hardware("ideal").with_settings({"weights.bits": 2}))
    result = evaluate(ideal, CORPUS)
    (step,) = ablate(ideal, result)
    assert (step.effect, step.scores) == ("quantisation", (result.trials[0].score,))


def test_with_one_layer_on_arrays_its_sensitivity_is_the_chip() -> None:
    only = prepare(DEMO, spec=spec_of(digital=[*ONE_BLOCK, "*[!e]"]))
    (layer,) = mapping_of(only.digital).layers
    result = evaluate(only, CORPUS, loss=True)
    found = sensitivity(only, task_of(only))
    assert found.digital.score == result.digital
    (score,) = found.layers
    assert (score.layer, score.score) == (layer, result.trials[0].score)


def test_layers_on_ideal_cells_change_nothing(target: Target) -> None:
    exact = prepare(DEMO, spec=target.spec.digital_twin())
    found = sensitivity(exact, task_of(exact))
    assert {layer.loss for layer in found.layers} == {found.digital.loss}
    assert found.digital.loss > 0


def test_layers_are_sorted_and_the_digital_model_is_left_as_it_was(target: Target) -> None:
    before = {name: id(matrix) for name, matrix in mapping_of(target.digital).layers.items()}
    progress = []
    found = sensitivity(target, task_of(target), progress=lambda name, done: progress.append((name, done)))
    again = sensitivity(target, task_of(target))
    assert found == again
    losses = [layer.loss for layer in found.layers]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > found.digital.loss
    assert len(set(losses)) == len(losses) == 10
    assert {layer.layer for layer in found.layers} == before.keys()
    for name, module in target.digital.named_modules():
        if name in before:
            assert id(module.matrix) == before[name]
            assert module.matrix.states is None
    assert {name for name, _ in progress} == {"one layer at a time"}
    assert [done for _, done in progress] == sorted(done for _, done in progress)
    assert progress[-1][1] == 1.0
    plain = found.to_dict()
    assert plain["digital"]["loss"] == found.digital.loss
    assert [layer["name"] for layer in plain["layers"]] == [layer.layer for layer in found.layers]


def test_the_budget_of_a_mapped_file_and_of_its_source(target: Target, tmp_path) -> None:
    from memsim.networks.programming import plan_checkpoint, program_checkpoint
    from memsim.nn.plan import Selection
    from memsim.storage.checkpoint import save_checkpoint

    budget = chip_budget(target)
    assert budget.against_full_precision
    assert len(budget.layers) == 10
    mapped = program_checkpoint(DEMO, target.spec, plan_checkpoint(DEMO, target.spec, Selection()))
    save_checkpoint(tmp_path / "mapped.safetensors", mapped.tensors, mapped.metadata)
    file = load_checkpoint(tmp_path / "mapped.safetensors")
    assert close(chip_budget(prepare(file, reference=DEMO)), budget)
    alone = chip_budget(prepare(file))
    assert not alone.against_full_precision
    assert list(alone.errors) == list(budget.errors)[1:]
    assert alone.total < budget.total
    # the cells of the file count, not what its seed would draw
    chip = prepare(file)
    for matrix in mapping_of(chip.programmed).layers.values():
        matrix.states = torch.full_like(matrix.states, 0.5)
    broken = chip_budget(chip)
    assert broken.errors["iv"] == alone.errors["iv"]
    assert broken.errors["programming"] > 0.9


def close(one: Budget, other: Budget) -> bool:
    return one.errors == pytest.approx(other.errors, rel=1e-6)


def test_a_reference_of_another_shape_is_one_line(target: Target, tiny_recogniser) -> None:
    other = prepare(DEMO, spec=target.spec, reference=load_checkpoint(tiny_recogniser))
    with pytest.raises(InputError, match=r"^the reference has no layer blocks\.0\.\S+ of the same size"):
        chip_budget(other)
