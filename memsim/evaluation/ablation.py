"""What each effect of the hardware, and the hardware of each layer, costs a recogniser."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from memsim.asr.bootstrap import CONFIDENCE, MeanChange, mean_changes
from memsim.asr.corpora import Corpus
from memsim.asr.recogniser import Recogniser
from memsim.asr.running import Progress
from memsim.asr.scoring import Score
from memsim.errors import InputError
from memsim.evaluation.result import Evaluation, spread
from memsim.evaluation.runner import Runner, part_score
from memsim.evaluation.target import EvaluationTarget, measuring
from memsim.nn.budget import Budget, LayerBudget, layer_budget, require_samples
from memsim.nn.mapping import mapping_of, swapped, under
from memsim.nn.plan import MappedLayer
from memsim.nn.sources import effective_weight
from memsim.spec import EFFECTS


@dataclass(frozen=True)
class AblationStep:
    """The recogniser with the effects up to `effect`: one score a chip, a single one where chips do not differ."""

    effect: str
    scores: tuple[Score, ...]

    @property
    def wer(self) -> dict[str, float | None]:
        """Mean, standard deviation (None of a single one), minimum and maximum."""
        return spread([score.wer for score in self.scores])

    @property
    def cer(self) -> dict[str, float | None]:
        return spread([score.cer for score in self.scores])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"effect": self.effect, "chips": len(self.scores), "wer": self.wer, "cer": self.cer}


def ablate(
    target: EvaluationTarget,
    evaluation: Evaluation,
    *,
    device: str = "cpu",
    progress: Progress = lambda name, done: None,
) -> tuple[AblationStep, ...]:
    """The WER with the effects switched on one after the other, on the data and as many chips as `evaluation`'s.

    What `evaluation` has found out for the digital model and the whole chips is not run again.
    """
    runner = Runner.make(target.recogniser, evaluation.corpus, device, progress)
    steps = target.spec.steps()
    scores: dict[str, list[Score]] = {effect: [] for effect in steps}
    known = {next(reversed(steps)): [trial.score for trial in evaluation.trials]}
    twin = target.spec.digital_twin()
    known |= {effect: [evaluation.digital] for effect, step in steps.items() if step.is_same_hardware(twin)}
    for trial in range(len(evaluation.trials)):
        todo = [effect for effect in steps if effect not in known and (trial == 0 or _varies(effect))]
        chip = target.chip(trial) if todo else None
        for effect in todo:
            assert chip is not None
            model = under(chip, steps[effect], target.statistics)
            name = f"up to {effect.replace('_', ' ')}" + (f", chip {trial + 1}" if _varies(effect) else "")
            scores[effect].append(runner.score(replace(target.recogniser, model=model), name))
    return tuple(AblationStep(effect, tuple((scores | known)[effect])) for effect in steps)


def _varies(effect: str) -> bool:
    """Whether chips differ once `effect` is on."""
    return EFFECTS.index(effect) >= EFFECTS.index("programming")


@dataclass(frozen=True)
class LayerScore:
    """The recogniser with one layer on hardware, or (no `layer`) none."""

    layer: str | None
    score: Score
    added: MeanChange | None = None
    """What the layer adds to the loss, relative to that without it; None without a layer, or a loss of 0."""

    @property
    def loss(self) -> float:
        """A token, as a mean over utterances."""
        assert self.score.loss is not None
        return self.score.loss


@dataclass(frozen=True)
class Sensitivity:
    """`layers` are sorted: the one with the largest loss, which is finer than the WER, comes first.

    `loss_name` is the kind of recogniser's: CTC or RNN-T.
    """

    loss_name: str
    digital: LayerScore
    layers: tuple[LayerScore, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""

        def plain(result: LayerScore) -> dict[str, Any]:
            facts: dict[str, Any] = {"wer": result.score.wer, "cer": result.score.cer, "loss": result.loss}
            if (added := result.added) is not None:
                facts["added"] = added.change.to_dict()
                facts |= {"within_noise": added.is_noise, "may_be_worst": added.may_be_largest}
            return facts

        layers = [{"name": result.layer} | plain(result) for result in self.layers]
        return {
            "loss_name": self.loss_name,
            "digital": plain(self.digital),
            "confidence": CONFIDENCE,
            "over": "utterances, of this chip",
            "layers": layers,
        }


def sensitivity(
    target: EvaluationTarget, corpus: Corpus, *, device: str = "cpu", progress: Progress = lambda name, done: None
) -> Sensitivity:
    """WER and loss with one layer at a time on the target's first chip, the others digital and quantised.

    Raises InputError when a transcript has a character without a token.
    """
    digital = replace(target.recogniser, model=target.digital)
    chip = target.chip(0).to(device)
    layers = mapping_of(chip).layers
    results: list[LayerScore] = []

    def show(name: str, done: float) -> None:
        progress("one layer at a time", (len(results) + done) / (1 + len(layers)))

    runner = Runner.make(digital, corpus, device, show, loss=True)
    losses: list[list[float]] = []

    def run(name: str | None) -> None:
        part = runner.part(digital, runner.groups, runner.counted(name or "digital"))
        losses.append([loss for _, loss in sorted(part.losses.items())])
        results.append(LayerScore(name, part_score(part, corpus)))

    run(None)
    for name, matrix in layers.items():
        with swapped(digital.model, matrix):
            run(name)
        matrix.release()
    mapping_of(digital.model).release()
    if layers and sum(losses[0]) > 0:
        added = mean_changes(losses[1:], losses[0])
        results[1:] = [replace(result, added=own) for result, own in zip(results[1:], added, strict=True)]
    layer_scores = sorted(results[1:], key=lambda result: -result.loss)
    return Sensitivity(digital.kind.loss_name, results[0], tuple(layer_scores))


def chip_budget(target: EvaluationTarget, *, progress: Progress = lambda name, done: None) -> Budget:
    """The error budget of the target's first chip.

    Raises InputError where inputs were not measured or the reference does not have the layers of the chip.
    """
    planned = mapping_of(target.digital).mapped
    names, remedy = (layer.name for layer in planned), measuring(target.checkpoint)
    require_samples(target.checkpoint.path, names, target.statistics, remedy)
    weights = None if target.full_precision is None else _weights(target.full_precision, planned)
    chip, steps = mapping_of(target.chip(0)), target.spec.steps()
    layers: list[LayerBudget] = []
    for name, matrix in chip.layers.items():
        weight = None if weights is None else weights[name]
        layers.append(layer_budget(matrix, steps, chip.seed, target.statistics[name], weight))
        progress("error budget", len(layers) / len(chip.layers))
    return Budget(tuple(layers), against_full_precision=weights is not None)


def _weights(reference: Recogniser, layers: Iterable[MappedLayer]) -> dict[str, Tensor]:
    """Those of `layers` in full precision, [out, in / groups] each."""
    found = {}
    for layer in layers:
        try:
            weight = layer.source.matrix(effective_weight(reference.model, layer.source.tensor))
        except AttributeError:
            weight = None
        if weight is None or weight.shape != layer.source.shape:
            raise InputError(f"the reference has no layer {layer.name} of the same size to measure errors against")
        found[layer.name] = weight
    return found
