"""A task other than speech, a classifier of random vectors, through everything that speech goes through."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import memsim
from memsim.evaluation import results_file
from memsim.evaluation.ablation import ablate, chip_budget, sensitivity
from memsim.evaluation.evaluation_result import EvaluatedPoint, EvaluationResult
from memsim.evaluation.measure import Measure
from memsim.evaluation.run import run_study
from memsim.evaluation.study import Point, Study
from memsim.evaluation.target import Target, digital_twin
from memsim.evaluation.task import CheckpointFacts, Score, Task
from memsim.hardware import HardwareSpec, load_hardware
from memsim.post_training.recipe import NEAREST
from tests.evaluation.conftest import Counting

ITEMS, SIZE, CLASSES = 60, 24, 4


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, SIZE, generator=generator)
    labels = torch.arange(ITEMS) % CLASSES
    return centres[labels] + 1.2 * torch.randn(ITEMS, SIZE, generator=generator), labels


class Accuracy(Score):
    """The fraction of examples that are right."""

    loss = None

    def __init__(self, right: Sequence[bool]) -> None:
        self.right = right

    @property
    def rates(self) -> dict[str, float]:
        return {"accuracy": sum(self.right) / len(self.right)}

    @property
    def contributions(self) -> list[tuple[float, float]]:
        return [(float(right), 1.0) for right in self.right]

    def to_dict(self) -> dict[str, Any]:
        return self.rates

    def to_detailed_dict(self) -> dict[str, Any]:
        return {**self.rates, "right": list(self.right)}


@dataclass(frozen=True)
class Examples(Task):
    """Vectors and their classes."""

    groups: Sequence[Sequence[int]] = tuple(range(i, i + 20) for i in range(0, ITEMS, 20))

    kind = "examples"
    measures = (Measure("accuracy", "accuracy", lower_is_better=False),)
    item, outcome = "example", "prediction"
    speed_key = "seconds_per_example"
    remedies = dict.fromkeys(("full precision", "digital, quantised", "mapped"), "is it trained?")
    name, extent = "vectors", float(ITEMS)

    def __len__(self) -> int:
        return ITEMS

    def run_batch(self, network: Any, group: Sequence[int], device: str) -> tuple[dict[int, bool], float]:
        vectors, labels = data()
        started = time.perf_counter()
        if hasattr(network.model, "mapping"):
            network.model.mapping.begin_batch(str(group[0]))
        with torch.inference_mode():
            found = network.model(vectors[list(group)].to(device)).argmax(-1).cpu()
        right = (found == labels[list(group)]).tolist()
        return dict(zip(group, right, strict=True)), time.perf_counter() - started

    def score(self, outcomes: Mapping[int, bool]) -> Accuracy:
        return Accuracy([outcomes[i] for i in sorted(outcomes)])

    @classmethod
    def why_unusable(cls, scores: Sequence[Accuracy]) -> str | None:
        return None

    def to_dict(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_dict(cls, line: Mapping[str, Any]) -> Examples:
        return cls()

    def identity(self) -> dict[str, Any]:
        return {"data": self.name}

    def outcomes_to_dict(self, outcomes: Mapping[int, bool]) -> dict[str, Any]:
        return {"items": list(outcomes), "right": list(outcomes.values())}

    def outcomes_from_dict(self, values: Mapping[str, Any]) -> dict[int, bool]:
        return dict(zip(values["items"], values["right"], strict=True))

    def data_dict(self, score: Accuracy) -> dict[str, Any]:
        return {"name": self.name, "items": ITEMS, "item": self.item}

    def describe(self) -> str:
        return f"{self.name}: {ITEMS} examples"

    def speed_line(self, seconds: float) -> str:
        return f"{seconds:.2g} s an example"


@dataclass(frozen=True)
class Plain:
    model: nn.Module


class Classifier:
    """One linear layer that knows the centres, and its chips."""

    facts = CheckpointFacts(Path("classifier"), "model", "0" * 64)
    reference_sha256 = None
    calibrated_on = None
    has_full_precision = True
    stored_seed = 0
    recipe = NEAREST

    @property
    def stored_spec(self) -> HardwareSpec:
        raise NotImplementedError

    def target(self, spec: HardwareSpec | None, seed: int | None) -> Target:
        assert spec is not None
        vectors, labels = data()
        model = nn.Sequential(nn.Linear(SIZE, CLASSES, bias=False))
        with torch.no_grad():
            model[0].weight.copy_(torch.stack([vectors[labels == i].mean(0) for i in range(CLASSES)]))
        digital, spec, statistics = digital_twin(model, spec, memsim.measure_inputs(model, [vectors]), seed or 0)
        return Target(self.facts.path, spec, seed or 0, statistics, digital, Plain(model), Plain(model), "")


@pytest.fixture
def study() -> Study:
    base = load_hardware("physical").with_settings({"weights.bits": 3})
    points = tuple(Point({"adc.bits": bits}, base.with_settings({"adc.bits": bits})) for bits in (2, 8))
    return Study(Examples(), Classifier(), points, trials=2)


def test_a_classifier_has_chips_intervals_tables_and_pages(study: Study, tmp_path: Path) -> None:
    coarse, fine = run_study(study)
    assert fine[1].full_precision.value > 0.9
    assert coarse[1].trials[0].score.value < fine[1].trials[0].score.value
    interval = fine[1].intervals["accuracy"]["mapped"]
    assert interval["low"] <= interval["value"] <= interval["high"]
    # fewer that are right are worse
    assert coarse[1].intervals["to_digital"]["probability_worse"] > 0.9
    assert coarse[1].relative_degradation["to_digital"] < 0

    target = study.target(1)
    found = {
        "ablation": ablate(target, fine[1]),
        "sensitivity": sensitivity(target, study.task),
        "budget": chip_budget(target),
    }
    assert found["ablation"][-1].scores == tuple(trial.score for trial in fine[1].trials)
    (layer,) = found["sensitivity"].layers
    assert layer.loss == pytest.approx(1 - fine[1].trials[0].score.value)
    alone = EvaluationResult((EvaluatedPoint(*fine),), **found)
    sweep = EvaluationResult((EvaluatedPoint(*coarse), EvaluatedPoint(*fine)))
    for result in (alone, sweep):
        text = str(result)
        assert "vectors: 60 examples" in text
        assert "accuracy %" in text
        assert "WER" not in text
        assert "utterance" not in text
        result.write_report(tmp_path / "page.html")
        page = (tmp_path / "page.html").read_text("utf-8")
        assert "60 examples" in page
        assert "accuracy" in page
        assert "WER" not in page
    sweep.write_figure(tmp_path / "sweep.svg")
    assert "accuracy (%)" in (tmp_path / "sweep.svg").read_text()


def test_its_results_are_kept_and_merged(study: Study, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(results_file.TASKS, "examples", "tests.evaluation.test_task:Examples")
    whole = [evaluation.to_dict() for _, evaluation in run_study(study)]
    path, listener = tmp_path / "r.jsonl", Counting(stop_after=7)
    with pytest.raises(memsim.errors.Stopped):
        run_study(study, results=path, listener=listener, stop_request=listener.stop_request)
    again = Counting()
    run_study(study, results=path, listener=again)
    assert again.begun == (6 * ITEMS, 7 * 20)
    merged = [point.evaluation.to_dict() for point in memsim.merge_results(path).points]
    for result in (*whole, *merged):
        result.pop("seconds_per_example")
    assert merged == whole
