"""The decoder of an evaluation: beam search with a recogniser's prior, its weights tuned on the digital model."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from memsim.asr.beam import BeamOptions, BeamSearch, words_to_recognise
from memsim.asr.corpora import Corpus
from memsim.asr.data import FeatureSource, evaluation_batches
from memsim.asr.hugging_face.kinds import GenerationBeam, HuggingFaceSeq2Seq
from memsim.asr.kinds import RNNT, TransducerBeam
from memsim.asr.prior import measure_log_prior, stored_log_prior
from memsim.asr.recogniser import Decoder, Recogniser
from memsim.asr.running import Progress, outputs
from memsim.asr.scoring import score
from memsim.asr.text import as_scored
from memsim.asr.tokens import Tokens
from memsim.evaluation.options import Decoding
from memsim.evaluation.result import Evaluation
from memsim.evaluation.speech import GREEDY
from memsim.evaluation.target import Target
from memsim.evaluation.task import System
from memsim.nn.chip import mapping_of
from memsim.storage.checkpoint import Checkpoint
from memsim.storage.files import file_sha256

LM_WEIGHTS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
PRIOR_WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class GridPoint:
    """The error rates that a pair of weights gave."""

    lm_weight: float
    prior_weight: float
    wer: float
    cer: float


@dataclass(frozen=True)
class Tuning:
    """A grid of weights; `best` has the lowest WER, then the lowest CER, then the smallest weights."""

    corpus: Corpus
    points: tuple[GridPoint, ...]

    @property
    def best(self) -> GridPoint:
        """The point with the lowest WER."""
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


class DigitalOutputs:
    """The digital model's outputs for a corpus, computed when they are first used and kept from then on."""

    def __init__(self, target: Target, corpus: Corpus, device: str, progress: Progress) -> None:
        self.target = target
        self.corpus = corpus
        self._device = device
        self._progress = progress
        self._kept: list[tuple[tuple[int, ...], Tensor, Tensor]] = []

    def __iter__(self) -> Iterator[tuple[tuple[int, ...], Tensor, Tensor]]:
        """Yield batches: the utterances' numbers, log-probabilities [batch, frames, tokens] and lengths [batch]."""
        if not self._kept:
            digital = replace(self.target.template, model=self.target.digital.to(self._device))
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


def find_log_prior(checkpoint: Checkpoint, tokens: Tokens, digital: DigitalOutputs) -> tuple[Tensor, str]:
    """Return the prior [tokens] in the checkpoint, else that of the digital model's outputs, and its source."""
    stored = stored_log_prior(checkpoint, len(tokens))
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
        heard = [as_scored(texts[i], digital.corpus.text_style) for i in range(len(texts))]
        found = score(references, heard)
        points.append(GridPoint(lm_weight, prior_weight, found.wer, found.cer))
        progress("tuning", len(points) / total)
    tuning = Tuning(digital.corpus, tuple(points))
    search.use(replace(search.options, lm_weight=tuning.best.lm_weight, prior_weight=tuning.best.prior_weight))
    return tuning


def make_decoder(
    options: Decoding,
    target: Target,
    checkpoint: Checkpoint,
    corpus: Corpus,
    dev: Corpus | None,
    device: str,
    progress: Progress,
) -> tuple[Decoder | None, dict[str, Any]]:
    """Make the requested beam search (None for greedy decoding), and its description for results.

    `dev` is the corpus that weights are tuned on. Raises InputError where files, packages or words are missing.
    """
    if options.decoder == "greedy":
        return None, dict(GREEDY)
    if isinstance(target.template.kind, RNNT):
        options.require_beam_size_alone("a Transducer")
        return _of_width(TransducerBeam(target.template.tokens), options)
    if isinstance(target.template.kind, HuggingFaceSeq2Seq):
        options.require_beam_size_alone("a recogniser that generates text")
        return _of_width(GenerationBeam(target.template.tokens), options)
    tokens, lm = target.template.tokens, None if options.lm is None else Path(options.lm)
    names = ("lm_weight", "prior_weight", "beam_size", "beam_tokens", "beam_threshold")
    given = {name: getattr(options, name) for name in names}
    settings = replace(BeamOptions(), **{name: value for name, value in given.items() if value is not None})
    if lm is None:
        settings = replace(settings, lm_weight=0.0)
    words = words_to_recognise(tokens, options.lexicon, lm)
    BeamSearch(tokens, words, lm, None, settings)  # report missing inputs now, not after the outputs
    outputs = DigitalOutputs(target, dev or corpus, device, progress)
    log_prior, source = None, None
    if options.tune or settings.prior_weight:
        log_prior, source = find_log_prior(checkpoint, tokens, outputs)
    search = BeamSearch(tokens, words, lm, log_prior, settings)
    facts: dict[str, Any] = {
        "decoder": "beam",
        "words": search.words,
        "language_model": None if lm is None else {"path": str(lm), "sha256": file_sha256(lm)},
        "prior": source,
    }
    if options.tune:
        facts["tuned"] = tune(search, outputs, LM_WEIGHTS if lm else (0.0,), progress=progress).to_dict()
    return search, facts | {"options": asdict(search.options)}


def _of_width(beam: TransducerBeam | GenerationBeam, options: Decoding) -> tuple[Decoder, dict[str, Any]]:
    """Return a beam search that keeps as many hypotheses as `options` ask for, and its description for results."""
    beam = beam if options.beam_size is None else replace(beam, width=options.beam_size)
    return beam, {"decoder": "beam", "options": {"beam_size": beam.width}}


def hypotheses(
    evaluation: Evaluation,
    target: Target | None = None,
    *,
    nbest: int = 0,
    device: str = "cpu",
    progress: Progress = lambda name, done: None,
) -> Iterator[dict[str, Any]]:
    """Yield a row for every utterance and system: `full precision`, `digital`, and each chip by its seed.

    With `nbest`, which needs beam search, all networks of `target` run once more for their best hypotheses.
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
            assert target is not None
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
    """Return the best hypotheses of each utterance, with their scores."""
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
