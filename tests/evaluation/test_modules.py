"""Evaluation of any module with batches and a score, in the same study as a recogniser's."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import memsim
from memsim.errors import InputError
from memsim.evaluation.ablation import ablate, sensitivity
from memsim.evaluation.merge import merge
from memsim.evaluation.module_batches import Batches, inputs_and_targets
from memsim.evaluation.modules import ModuleNetworks, ModuleTask
from memsim.evaluation.run import run_study
from memsim.evaluation.study import Study
from memsim.evaluation.sweep import sweep_points
from memsim.hardware import apply_settings, load_hardware

EXAMPLES = 53
SIZES = (20, 20, 13)


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.argmax(1) == targets


def squared_error(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs.argmax(1) - targets).double().square().mean())


@pytest.fixture(scope="module")
def model() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    made = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
    return made.train()


@pytest.fixture(scope="module")
def data(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(EXAMPLES, 12, generator=generator)
    with torch.no_grad():
        targets = model(inputs).argmax(1)
    targets[::7] = (targets[::7] + 1) % 4  # the network errs in every seventh
    return list(zip(inputs.split(20), targets.split(20), strict=True))


@pytest.fixture
def study(model: nn.Module, data: list) -> Callable[..., Study]:
    def make(settings: tuple[str, ...] = (), score: Any = accuracy, trials: int = 2, **options: Any) -> Study:
        base = load_hardware("best").with_settings({"weights.bits": 3})
        batches = Batches(data)
        task = ModuleTask.of(model, batches, score, **options)
        networks = ModuleNetworks(model, [inputs_and_targets(batch)[0] for batch in batches], "digits")
        return Study(task, networks, sweep_points(settings, lambda chosen: apply_settings(base, chosen)), trials)

    return make


def plain(results: list) -> list[dict[str, Any]]:
    found = [dict(point.settings) | evaluation.to_dict() for point, evaluation in results]
    return [{key: value for key, value in result.items() if key != "seconds_per_example"} for result in found]


def test_scores_are_those_of_the_function(study, model, data):
    ((_, result),) = run_study(study())
    right = sum(int(accuracy(model.eval()(inputs), targets).sum()) for inputs, targets in data)
    assert result.full_precision.value == right / EXAMPLES == 1 - 8 / EXAMPLES
    assert len(result.full_precision.contributions) == EXAMPLES
    target = study().target()
    chip = target.chip(1)
    hits = 0
    for number, (inputs, targets) in enumerate(data):
        chip.mapping.begin_batch(f"batch {number}")
        hits += int(accuracy(chip(inputs), targets).sum())
    assert result.trials[1].score.value == hits / EXAMPLES
    facts = json.loads(json.dumps(result.to_dict()))
    assert facts["mapped"]["accuracy"]["mean"] == pytest.approx(sum(t.score.value for t in result.trials) / 2)
    assert facts["data"]["examples"] == EXAMPLES
    interval = facts["intervals"]["accuracy"]["full_precision"]
    assert interval["low"] < interval["value"] < interval["high"] <= 1
    assert facts["measures"][0] == {
        "key": "accuracy", "name": "accuracy", "lower_is_better": False, "in_percent": True
    }  # fmt: skip


def test_means_of_batches_are_weighted_by_their_examples(study, model, data):
    ((_, result),) = run_study(study(score=squared_error, lower_is_better=True))
    every = torch.cat([(model.eval()(x).argmax(1) - y).double().square() for x, y in data])
    assert result.full_precision.value == pytest.approx(float(every.mean()))
    assert len(result.full_precision.contributions) == len(SIZES)
    assert "batches" in result.to_dict()["intervals"]["over"]


def test_the_module_is_untouched(study, model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    run_study(study())
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not hasattr(model, "mapping")


def test_shards_processes_and_resuming_change_nothing(study, tmp_path):
    sweep = {"settings": ("adc.bits=3,8",)}
    whole = plain(run_study(study(**sweep)))
    assert plain(run_study(study(**sweep), jobs=2, results=tmp_path / "all.jsonl")) == whole
    assert plain(merge([tmp_path / "all.jsonl"])) == whole
    assert plain(run_study(study(**sweep), results=tmp_path / "all.jsonl")) == whole  # nothing is left to run
    for number in (1, 2):
        run_study(study(**sweep), shard=(number, 2), results=tmp_path / f"{number}.jsonl")
    assert plain(merge([tmp_path / "1.jsonl", tmp_path / "2.jsonl"])) == whole


def test_results_of_other_data_or_weights_are_refused(study, model, data, tmp_path):
    run_study(study(), results=tmp_path / "r.jsonl")
    other = Batches([(inputs + 1, targets) for inputs, targets in data])
    task = ModuleTask.of(model, other, accuracy)
    first = study()
    with pytest.raises(InputError, match="holds results of another command"):
        run_study(Study(task, first.networks, first.points, 2), results=tmp_path / "r.jsonl")


def test_ablation_and_sensitivity(study):
    it = study()
    target = it.target()
    ((_, result),) = run_study(it, target=target)
    steps = ablate(target, result)
    assert steps[-1].scores == tuple(trial.score for trial in result.trials)
    found = sensitivity(target, it.task)
    assert {layer.layer for layer in found.layers} == {"0", "2"}
    assert found.digital.loss == pytest.approx(1 - result.digital.value)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda data: iter(data),
        lambda data: torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])), 20
        ),
        lambda data: [{"input": x, "labels": y} for x, y in data],
        lambda data: [[x, y] for x, y in data],
    ],
    ids=["iterator", "loader", "mappings", "lists"],
)
def test_forms_of_batches(wrap, data, model):
    batches = Batches(wrap(data))
    assert batches.sizes == list(SIZES)
    for pass_ in range(2):
        for number in (0, 1, 2, 1):
            assert torch.equal(inputs_and_targets(batches[number])[1], data[number][1]), pass_


def test_large_data_are_read_again_in_every_pass(data, monkeypatch):
    monkeypatch.setattr("memsim.evaluation.module_batches.KEPT_BYTES", 1)
    passes = []

    class Stream:
        def __iter__(self):
            passes.append(None)
            return iter(data)

    batches = Batches(Stream())
    before = len(passes)
    assert [len(batches[number][0]) for number in (0, 1, 2)] == list(SIZES)
    assert len(passes) == before + 1
    assert [len(batches[number][0]) for number in (2, 0)] == [SIZES[2], SIZES[0]]


def test_data_that_differ_from_pass_to_pass_are_refused(monkeypatch):
    monkeypatch.setattr("memsim.evaluation.module_batches.KEPT_BYTES", 1)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.arange(64.0)), 8, shuffle=True)
    with pytest.raises(InputError, match="differs from one pass to the next"):
        Batches(loader)


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (lambda outputs, targets: outputs.sum(1).abs()[:3], "gives 3 values for a batch of 20 examples"),
        (lambda outputs, targets: -1.0, "gives -1; scores must be finite and not negative"),
        (lambda outputs, targets: float("nan"), "gives nan"),
        (lambda outputs, targets: outputs.no_such, "fails: 'Tensor' object has no attribute 'no_such'"),
        (lambda outputs, targets: None, "fails: Could not infer dtype of NoneType"),
        (lambda outputs, targets: "good", "fails: new(): invalid data type 'str'"),
    ],
)
def test_scores_that_make_no_sense(model, data, score, said):
    with pytest.raises(InputError) as error:
        ModuleTask.of(model, Batches(data), score)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_score_without_a_name_is_called_score(model, data):
    assert ModuleTask.of(model, Batches(data), lambda outputs, targets: 1.0).measure.name == "score"


@pytest.mark.parametrize("data", [[], torch.zeros(3, 4), [3.0]])
def test_data_that_are_no_batches(data):
    with pytest.raises(InputError, match=r"^data: "):
        Batches(data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([(torch.ones(3, 5), torch.ones(3))], "batch 0, (float32 [3, 5], float32 [3]): mat1 and mat2 shapes"),
        ([{"x": torch.ones(3, 12), "label": torch.ones(3)}], "got an unexpected keyword argument 'x'"),
    ],
)
def test_batches_that_do_not_fit_the_network(model, data, said):
    with pytest.raises(InputError) as error:
        memsim.evaluate(model, data, score=accuracy)
    assert str(error.value).startswith("data: the network fails on ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_nan_is_located(data):
    class Broken(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / 0 * 0

    task = ModuleTask.of(nn.Linear(12, 4), Batches(data), accuracy)
    from memsim.evaluation.modules import RunningModule

    with pytest.raises(FloatingPointError, match=r"^1: "):
        task.run_batch(RunningModule(nn.Sequential(nn.Identity(), Broken(12, 4))), task.groups[0], "cpu")


def test_the_call_gives_what_a_recogniser_gets(model, data, tmp_path):
    findings = memsim.Findings(budget=True, ablate=True, sensitivity=True)
    result = memsim.evaluate(model, data, score=accuracy, hardware="physical", bits=3, trials=2, findings=findings)
    assert len(result.trials) == 2
    assert {layer.name for layer in result.budget.layers} == {"0", "2"}
    assert result.to_dict()["hardware"]["title"] == "physical with weights.bits=3"
    assert "accuracy %" in str(result)
    assert "mapped, 2 chips" in result._repr_html_()
    result.write_report(tmp_path / "r.html")
    assert "accuracy" in (tmp_path / "r.html").read_text()
    sweep = memsim.evaluate(model, iter(data), score=accuracy, set=["weights.bits=2,4"])
    sweep.write_figure(tmp_path / "s.svg")
    assert [dict(point.settings) for point in sweep.points] == [{"weights.bits": 2}, {"weights.bits": 4}]
    sharing = memsim.Sharing(results=tmp_path / "r.jsonl")
    again = memsim.evaluate(model, data, score=accuracy, bits=3, trials=2, sharing=sharing)
    assert plain(again.points) == plain(memsim.merge_results(tmp_path / "r.jsonl").points)
    assert again.trials[1].score.value == result.trials[1].score.value


def test_without_calibration_the_first_examples_set_the_ranges(model, data, monkeypatch):
    monkeypatch.setattr("memsim.evaluation.modules.CALIBRATION_EXAMPLES", 20)
    first = [data[0][0]]
    default = memsim.evaluate(model, data, score=accuracy, bits=3)
    given = memsim.evaluate(model, data, score=accuracy, bits=3, calibration=first)
    assert plain(given.points) == plain(default.points)
    other = memsim.evaluate(model, data, score=accuracy, bits=3, calibration=[100 * data[0][0]])
    assert plain(other.points) != plain(default.points)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"split": "dev"}, "split: only for a recogniser's checkpoint"),
        ({"text_style": "rwth"}, "text_style: only for a recogniser's checkpoint"),
        ({"decoding": memsim.Decoding(decoder="beam")}, "decoding: only for"),
        ({"findings": memsim.Findings(loss=True)}, "findings.loss: only for"),
        ({"score": None}, "a module is evaluated on batches by a score"),
        ({"data": "demo"}, "a module is evaluated on batches by a score"),
        ({"set": ["adc.bits=4,5"], "findings": memsim.Findings(ablate=True)}, "--ablate: only for a single point"),
        ({"hardware": "no-such"}, "no-such"),
    ],
)
def test_arguments_that_do_not_go_with_a_module(model, data, options, said):
    with pytest.raises(InputError) as error:
        memsim.evaluate(model, **({"data": data, "score": accuracy} | options))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_what_cannot_be_sent_to_other_processes_is_refused(model, data):
    with pytest.raises(InputError, match=r"jobs=2: .* cannot be sent to other processes"):
        memsim.evaluate(model, data, score=lambda outputs, targets: 1.0, bits=3, sharing=memsim.Sharing(jobs=2))


def test_a_score_goes_with_a_module_only(data):
    with pytest.raises(InputError, match="only for a module"):
        memsim.evaluate("demo", "demo", score=accuracy)
    with pytest.raises(InputError, match="batches need a module"):
        memsim.evaluate("demo", data)


def test_a_sweep_over_recipes_is_its_points_one_by_one(model, data, tmp_path):
    """One result and one file, whose shards and continuation are as those of other swept keys."""
    given = {"score": accuracy, "hardware": "best", "bits": 3, "trials": 2}
    sweep = memsim.evaluate(model, data, mapping="nearest,feedback", **given)
    assert [dict(point.settings) for point in sweep.points] == [{"mapping": "nearest"}, {"mapping": "feedback"}]
    for point in sweep.points:
        alone = memsim.evaluate(model, data, mapping=point.settings["mapping"], **given)
        assert point.evaluation.digital.contributions == alone.digital.contributions
        assert [trial.score for trial in point.evaluation.trials] == [trial.score for trial in alone.trials]
    sweep.write_figure(tmp_path / "sweep.svg")
    assert "mapping" in (tmp_path / "sweep.svg").read_text()
    file = tmp_path / "r.jsonl"
    sharing = memsim.Sharing(results=file)
    first = memsim.evaluate(model, data, mapping="nearest,feedback", sharing=sharing, **given)
    again = memsim.evaluate(model, data, mapping="nearest,feedback", sharing=sharing, **given)
    assert first.to_dict()["points"] == again.to_dict()["points"] == memsim.merge_results(file).to_dict()["points"]
    with pytest.raises(InputError, match="holds results of another command"):
        memsim.evaluate(model, data, mapping="feedback", sharing=sharing, **given)
