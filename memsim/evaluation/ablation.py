"""The cost to a network's results of each non-ideality of the hardware, and of each layer that is on it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from memsim.asr import bootstrap
from memsim.asr.bootstrap import CONFIDENCE, MeanChange
from memsim.asr.running import Progress
from memsim.errors import InputError
from memsim.evaluation.partial_results import PartialResult, run_network
from memsim.evaluation.result import Evaluation, spread
from memsim.evaluation.target import Target
from memsim.evaluation.task import Network, Score, System, Task
from memsim.hardware import EFFECTS
from memsim.nn.budget import Budget, LayerBudget, layer_budget
from memsim.nn.chip import mapping_of, swapped, under
from memsim.nn.plan import MappedLayer
from memsim.nn.sources import effective_weight
from memsim.units import plural_of


@dataclass(frozen=True)
class AblationStep:
    """The scores with the non-idealities up to `effect`: one per chip, or a single one if chips do not differ."""

    effect: str
    scores: tuple[Score, ...]

    @property
    def rates(self) -> dict[str, dict[str, float | None]]:
        """Mean, standard deviation (None for a single score), minimum and maximum of each measure, by key."""
        return {key: spread([score.rates[key] for score in self.scores]) for key in self.scores[0].rates}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"effect": self.effect, "chips": len(self.scores), **self.rates}


def ablate(
    target: Target,
    evaluation: Evaluation,
    *,
    device: str = "cpu",
    progress: Progress = lambda name, done: None,
) -> tuple[AblationStep, ...]:
    """Switch the non-idealities on one by one, with the data and the number of chips of `evaluation`.

    Results of `evaluation` for the digital model and the complete chips are reused.
    """
    task, steps = evaluation.task, target.spec.steps()
    scores: dict[str, list[Score]] = {effect: [] for effect in steps}
    known = {next(reversed(steps)): [trial.score for trial in evaluation.trials]}
    twin = target.spec.digital_twin()
    known |= {effect: [evaluation.digital] for effect, step in steps.items() if step.is_same_hardware(twin)}
    for trial in range(len(evaluation.trials)):
        todo = [effect for effect in steps if effect not in known and (trial == 0 or _varies(effect))]
        chip = target.chip(trial) if todo else None
        for effect in todo:
            assert chip is not None
            network = target.running(under(chip, steps[effect], target.statistics))
            name = f"up to {effect.replace('_', ' ')}" + (f", chip {trial + 1}" if _varies(effect) else "")
            scores[effect].append(task.score(_run(task, network, device, name, progress).outcomes))
    return tuple(AblationStep(effect, tuple((scores | known)[effect])) for effect in steps)


def _run(task: Task, network: Network, device: str, name: str, progress: Progress) -> PartialResult:
    """Run a network on all the data; progress is reported under `name`."""
    done = 0
    progress(name, 0.0)

    def count(outcomes: Mapping[int, Any]) -> bool:
        nonlocal done
        done += len(outcomes)
        progress(name, done / len(task))
        return False

    return run_network(task, network, task.groups, device, count)


def _varies(effect: str) -> bool:
    """Whether chips differ once `effect` is on."""
    return EFFECTS.index(effect) >= EFFECTS.index("programming")


@dataclass(frozen=True)
class LayerScore:
    """The score with one layer on hardware, or with none where `layer` is None."""

    layer: str | None
    score: Score
    loss: float
    """The mean of the items' losses."""
    added: MeanChange | None = None
    """The increase of the loss by this layer, relative to the loss without it; None without a layer, or a loss of 0."""


@dataclass(frozen=True)
class Sensitivity:
    """The score with one layer at a time on hardware; the layer with the largest loss comes first.

    The loss (`loss_name`: CTC or RNN-T, of speech) is finer than the measure of the task.
    """

    loss_name: str
    digital: LayerScore
    layers: tuple[LayerScore, ...]
    item: str = "utterance"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""

        def plain(result: LayerScore) -> dict[str, Any]:
            facts: dict[str, Any] = {**result.score.rates, "loss": result.loss}
            if (added := result.added) is not None:
                facts["added"] = added.change.to_dict()
                facts |= {"within_noise": added.is_noise, "may_be_worst": added.may_be_largest}
            return facts

        layers = [{"name": result.layer} | plain(result) for result in self.layers]
        return {
            "loss_name": self.loss_name,
            "digital": plain(self.digital),
            "confidence": CONFIDENCE,
            "over": f"{plural_of(self.item)}, of this chip",
            "layers": layers,
        }


def sensitivity(
    target: Target, task: Task, *, device: str = "cpu", progress: Progress = lambda name, done: None
) -> Sensitivity:
    """Score the network with one layer at a time on the target's first chip, the others digital and quantised.

    Raises InputError when an item has no loss, as a transcript with a character without a token.
    """
    task = task.with_item_losses()
    digital = target.network(System("digital"))
    chip = target.chip(0).to(device)
    layers = mapping_of(chip).layers
    results: list[LayerScore] = []
    losses: list[list[float]] = []

    def show(name: str, done: float) -> None:
        progress("one layer at a time", (len(results) + done) / (1 + len(layers)))

    def run(name: str | None) -> None:
        outcomes = _run(task, digital, device, name or "digital", show).outcomes
        losses.append(task.item_losses(outcomes))
        results.append(LayerScore(name, task.score(outcomes), math.fsum(losses[-1]) / len(losses[-1])))

    run(None)
    for name, matrix in layers.items():
        with swapped(digital.model, matrix):
            run(name)
        matrix.release()
    mapping_of(digital.model).release()
    if layers and sum(losses[0]) > 0:
        added = bootstrap.mean_changes(losses[1:], losses[0])
        results[1:] = [replace(result, added=own) for result, own in zip(results[1:], added, strict=True)]
    layer_scores = sorted(results[1:], key=lambda result: -result.loss)
    return Sensitivity(task.losses or task.measures[0].name, results[0], tuple(layer_scores), task.item)


def chip_budget(target: Target, *, progress: Progress = lambda name, done: None) -> Budget:
    """Measure the error budget of the target's first chip.

    Raises InputError where inputs were not measured or the reference does not have the layers of the chip.
    """
    target.require_samples()
    planned, reference = mapping_of(target.digital).mapped, target.full_precision
    weights = None if reference is None else _weights(reference.model, planned)
    chip, steps = mapping_of(target.chip(0)), target.spec.steps()
    layers: list[LayerBudget] = []
    for name, matrix in chip.layers.items():
        weight = None if weights is None else weights[name]
        layers.append(layer_budget(matrix, steps, chip.seed, target.statistics[name], weight))
        progress("error budget", len(layers) / len(chip.layers))
    return Budget(tuple(layers), against_full_precision=weights is not None)


def _weights(reference: nn.Module, layers: Iterable[MappedLayer]) -> dict[str, Tensor]:
    """Return the weights of `layers` in full precision, [out, in / groups] each."""
    found = {}
    for layer in layers:
        try:
            weight = layer.source.matrix(effective_weight(reference, layer.source.tensor))
        except AttributeError:
            weight = None
        if weight is None or weight.shape != layer.source.shape:
            raise InputError(f"the reference has no layer {layer.name} of the same size to measure errors against")
        found[layer.name] = weight
    return found
