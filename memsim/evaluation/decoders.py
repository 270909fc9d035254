"""The decoder of an evaluation: beam search with a recogniser's prior, its weights tuned on the digital model."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from memsim.asr.beam import BeamSearch
from memsim.asr.corpora import Corpus
from memsim.asr.data import FeatureSource, evaluation_batches
from memsim.asr.prior import measure_log_prior, stored_log_prior
from memsim.asr.recogniser import Recogniser
from memsim.asr.running import Progress, outputs
from memsim.asr.scoring import score
from memsim.evaluation.result import Evaluation
from memsim.evaluation.target import EvaluationTarget
from memsim.evaluation.task import System
from memsim.nn.mapping import mapping_of
from memsim.units import counted

LM_WEIGHTS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
PRIOR_WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class GridPoint:
    """What a pair of weights gave."""

    lm_weight: float
    prior_weight: float
    wer: float
    cer: float


@dataclass(frozen=True)
class Tuning:
    """A grid of weights; `best` has the lowest WER (of equal ones the lowest CER, then the smallest weights)."""

    corpus: Corpus
    points: tuple[GridPoint, ...]

    @property
    def best(self) -> GridPoint:
        return min(self.points, key=lambda point: (point.wer, point.cer, point.lm_weight, point.prior_weight))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        best = self.best
        return {
            "data": self.corpus.name,
            "split": self.corpus.split,
            "utterances": len(self.corpus.utterances),
            "wer": best.wer,
            "grid": [[point.lm_weight, point.prior_weight, round(point.wer, 6)] for point in self.points],
        }


def describe(decoding: Mapping[str, Any]) -> str:
    """A line on what a result says of its decoder."""
    if decoding["decoder"] == "greedy":
        return "greedy decoding"
    options = decoding["options"]
    if "words" not in decoding:
        return f"beam search of {options['beam_size']} hypotheses"
    count, model = decoding["words"], decoding["language_model"]
    said = f"beam search of {counted(count, 'word')}, "
    said += "no language model" if model is None else f"{Path(model['path']).name} by {options['lm_weight']:g}"
    prior = decoding["prior"]
    said += f", prior of the {prior} by {options['prior_weight']:g}" if prior else ", no prior"
    if tuned := decoding.get("tuned"):
        said += f" (tuned on {tuned['data']} {tuned['split']}: digital WER {tuned['wer']:.2%})"
    return said


class DigitalOutputs:
    """What the digital model of `target` gives for `corpus`; computed at the first use and then kept."""

    def __init__(self, target: EvaluationTarget, corpus: Corpus, device: str, progress: Progress) -> None:
        self.target = target
        self.corpus = corpus
        self._device = device
        self._progress = progress
        self._kept: list[tuple[tuple[int, ...], Tensor, Tensor]] = []

    def __iter__(self) -> Iterator[tuple[tuple[int, ...], Tensor, Tensor]]:
        """Of each batch the utterances' numbers, log-probabilities [batch, frames, tokens] and lengths [batch]."""
        if not self._kept:
            digital = replace(self.target.recogniser, model=self.target.digital.to(self._device))
            utterances = self.corpus.utterances
            name, done = f"digital, {self.corpus.split}", 0
            for batch, log_probs, lengths in outputs(
                digital, evaluation_batches(utterances, FeatureSource(digital.features))
            ):
                self._kept.append((batch.indices, log_probs.cpu(), lengths.cpu()))
                done += len(batch.indices)
                self._progress(name, done / len(utterances))
            mapping_of(self.target.digital).release()
        return iter(self._kept)


def find_log_prior(target: EvaluationTarget, digital: DigitalOutputs) -> tuple[Tensor, str]:
    """The prior [tokens] in the checkpoint, else that of the digital model's outputs; and which of them it is."""
    stored = stored_log_prior(target.checkpoint, len(target.recogniser.tokens))
    if stored is not None:
        return stored, "checkpoint"
    measured = measure_log_prior((log_probs, lengths) for _, log_probs, lengths in digital)
    return measured, f"outputs on {digital.corpus.name} {digital.corpus.split}"


def tune(
    search: BeamSearch,
    digital: DigitalOutputs,
    lm_weights: Sequence[float] = LM_WEIGHTS,
    prior_weights: Sequence[float] = PRIOR_WEIGHTS,
    progress: Progress = lambda name, done: None,
) -> Tuning:
    """Decode the digital model's outputs with every pair of weights; `search` is left with the best pair."""
    references = [utterance.text for utterance in digital.corpus.utterances]
    points: list[GridPoint] = []
    total = len(lm_weights) * len(prior_weights)
    for lm_weight, prior_weight in itertools.product(lm_weights, prior_weights):
        search.use(replace(search.options, lm_weight=lm_weight, prior_weight=prior_weight))
        texts: dict[int, str] = {}
        for indices, log_probs, lengths in digital:
            texts |= zip(indices, search.texts(log_probs, lengths), strict=True)
        found = score(references, [texts[i] for i in range(len(texts))])
        points.append(GridPoint(lm_weight, prior_weight, found.wer, found.cer))
        progress("tuning", len(points) / total)
    tuning = Tuning(digital.corpus, tuple(points))
    search.use(replace(search.options, lm_weight=tuning.best.lm_weight, prior_weight=tuning.best.prior_weight))
    return tuning


def hypotheses(
    evaluation: Evaluation,
    target: EvaluationTarget,
    *,
    nbest: int = 0,
    device: str = "cpu",
    progress: Progress = lambda name, done: None,
) -> Iterator[dict[str, Any]]:
    """Yield a row for every utterance and system: `full precision`, `digital`, and each chip by its seed.

    With `nbest`, which needs beam search, all of them run once more for their best hypotheses.
    """
    systems: list[tuple[str, System, Any]] = [
        ("full precision", System("full_precision"), evaluation.full_precision),
        ("digital", System("digital"), evaluation.digital),
    ]
    chips = enumerate(evaluation.trials)
    systems += [(f"chip of seed {trial.seed}", System("chip", trial=i), trial.score) for i, trial in chips]
    for name, system, result in systems:
        if result is None:
            continue
        best = {}
        if nbest:
            recogniser = target.network(system)
            best = _best(recogniser, evaluation.task.corpus, nbest, device, f"n-best, {name}", progress)
            if system.role != "full_precision":
                mapping_of(recogniser.model).release()
        for i, utterance in enumerate(evaluation.task.corpus.utterances):
            errors, words = result.utterance_errors[i]
            yield {
                "system": name,
                "utterance": utterance.id,
                "words": words,
                "errors": errors,
                "reference": utterance.text,
                "hypothesis": result.hypotheses[i],
                **({"nbest": best[i]} if nbest else {}),
            }


def _best(
    recogniser: Recogniser, corpus: Corpus, count: int, device: str, name: str, progress: Progress
) -> dict[int, list[dict[str, Any]]]:
    """The best hypotheses of each utterance, with their scores."""
    search = recogniser.decoder
    if not isinstance(search, BeamSearch):
        raise ValueError("several hypotheses of an utterance need beam search")
    recogniser.model.to(device)
    best: dict[int, list[dict[str, Any]]] = {}
    batches = evaluation_batches(corpus.utterances, FeatureSource(recogniser.features))
    for batch, log_probs, lengths in outputs(recogniser, batches):
        for i, found in zip(batch.indices, search.best(log_probs, lengths, count), strict=True):
            best[i] = [{"text": one.text, "score": round(one.score, 4)} for one in found]
        progress(name, len(best) / len(corpus.utterances))
    return best
