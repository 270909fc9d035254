"""Running a recogniser over speech: in full precision, quantised, and on simulated chips."""

from __future__ import annotations

import statistics as stats
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from memsim import __version__
from memsim.asr.bootstrap import CONFIDENCE, compare, wer_interval
from memsim.asr.corpora import Corpus, Utterance
from memsim.asr.ctc import ctc_losses
from memsim.asr.data import Batch, FeatureSource, evaluation_batches, pad, total_seconds
from memsim.asr.decoding import greedy
from memsim.asr.recogniser import Recogniser, load_recogniser
from memsim.asr.scoring import Score, score
from memsim.checkpoint import Checkpoint
from memsim.crossbar.matrix import needs_calibration
from memsim.crossbar.statistics import InputStatistics
from memsim.device import load_device
from memsim.errors import InputError
from memsim.mapped import is_full_precision, load_chip, stored_statistics
from memsim.nn.mapping import ChipMapping, clip_rate, map_model, mapping_of, measure, remap
from memsim.nn.plan import chosen_bits
from memsim.spec import HardwareSpec

CACHED_BYTES = 1e8
"""Features of this size, of nearly two hours, are kept between passes; what is beyond is read again by each."""

STATISTICS_UTTERANCES = 200

Progress = Callable[[str, float], None]
"""Told which pass is running and the fraction of it that is done."""


@dataclass(frozen=True)
class Trial:
    """One chip's result."""

    seed: int
    score: Score
    real_time_factor: float  # seconds of computing per second of audio
    dac_clip_rate: float | None
    adc_clip_rate: float | None


@dataclass(frozen=True)
class Evaluation:
    """What `memsim eval` finds out. `full_precision` is None where no full-precision weights were at hand."""

    checkpoint: Checkpoint
    corpus: Corpus
    seconds: float
    spec: HardwareSpec
    seed: int
    full_precision: Score | None
    digital: Score
    trials: tuple[Trial, ...]
    mapping: ChipMapping

    def to_dict(self) -> dict[str, Any]:
        """The JSON of interface.md."""
        references = {"to_digital": self.digital, "to_full_precision": self.full_precision}
        mean_wer = stats.fmean(trial.score.wer for trial in self.trials)
        return {
            "memsim": __version__,
            "checkpoint": {
                "path": str(self.checkpoint.path),
                "kind": self.checkpoint.kind,
                "sha256": self.checkpoint.sha256,
            },
            "data": {
                "name": self.corpus.name,
                "split": self.corpus.split,
                "text_style": self.corpus.text_style,
                "synthetic": self.corpus.synthetic,
                "utterances": len(self.corpus.utterances),
                "words": self.corpus.words,
                "seconds": round(self.seconds, 3),
                "utterance_words": [words for _, words in self.digital.utterance_errors],
            },
            "hardware": {"name": self.spec.name, "sha256": self.spec.sha256(), "spec": self.spec.to_dict()},
            "seed": self.seed,
            **({} if self.full_precision is None else {"full_precision": self.full_precision.to_detailed_dict()}),
            "digital": self.digital.to_detailed_dict(),
            "mapped": {
                "wer": spread([trial.score.wer for trial in self.trials]),
                "cer": spread([trial.score.cer for trial in self.trials]),
                "trials": [{"seed": trial.seed, **trial.score.to_detailed_dict()} for trial in self.trials],
            },
            "relative_degradation": {
                key: mean_wer / reference.wer - 1
                for key, reference in references.items()
                if reference is not None and reference.wer > 0
            },
            "intervals": self.intervals(),
            "clip_rate": {
                "dac": _mean([trial.dac_clip_rate for trial in self.trials]),
                "adc": _mean([trial.adc_clip_rate for trial in self.trials]),
            },
            "clip_rate_by_layer": {  # of the last chip
                name: {"dac": rate.dac, "adc": rate.adc} for name, rate in self.mapping.clip_rates().items()
            },
            "real_time_factor": stats.fmean(trial.real_time_factor for trial in self.trials),
        }

    def intervals(self) -> dict[str, Any]:
        """95 % bootstrap intervals over utterances: the WER of each, and the mapped one's degradation, paired."""
        words = [words for _, words in self.digital.utterance_errors]
        mapped = [_errors(trial.score) for trial in self.trials]
        references = {"digital": self.digital, "full_precision": self.full_precision}
        known = {key: _errors(score) for key, score in references.items() if score is not None}
        systems = {key: [errors] for key, errors in known.items()} | {"mapped": mapped}
        return {
            "confidence": CONFIDENCE,
            "wer": {key: wer_interval(errors, words).to_dict() for key, errors in systems.items()},
            **{f"to_{key}": compare(mapped, errors, words).to_dict() for key, errors in known.items()},
        }


def _errors(score: Score) -> list[int]:
    """The word errors of every utterance."""
    return [errors for errors, _ in score.utterance_errors]


def spread(values: list[float]) -> dict[str, float]:
    """Mean, sample standard deviation (0 of a single value), minimum and maximum."""
    return {
        "mean": stats.fmean(values),
        "std": stats.stdev(values) if len(values) > 1 else 0.0,
        "min": min(values),
        "max": max(values),
    }


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return stats.fmean(known) if known else None


@dataclass(frozen=True)
class Subject:
    """A checkpoint ready to be evaluated: its quantised digital self, and how chips are made of it."""

    checkpoint: Checkpoint
    recogniser: Recogniser
    spec: HardwareSpec
    seed: int
    statistics: Mapping[str, InputStatistics]
    full_precision: Recogniser | None
    digital: nn.Module
    programmed: nn.Module | None  # the chip of a mapped file, where it is to run as it is

    def chip(self, trial: int) -> nn.Module:
        """The chip of seed `seed` + `trial`."""
        if trial == 0 and self.programmed is not None:
            return self.programmed
        return remap(self.digital, self.spec, seed=self.seed + trial, trial=trial, statistics=self.statistics)


def prepare(
    checkpoint: Checkpoint,
    *,
    spec: HardwareSpec | None = None,
    seed: int | None = None,
    reference: Checkpoint | None = None,
) -> Subject:
    """Load `checkpoint` for evaluation on chips with the seeds `seed` (default 0), `seed` + 1, ...

    An unmapped checkpoint needs a `spec`, on which it is mapped. A mapped one runs as it is where `spec` and `seed` are
    None, and later chips program its levels again; otherwise its levels are mapped under `spec` (default: its own).
    Raises InputError when the checkpoint cannot be run or lacks the statistics that the spec's converters need.
    """
    programmed: nn.Module | None = None
    full_precision: Recogniser | None = None
    if spec is not None and spec.cell != "ideal":
        load_device(spec.cell)  # a broken device file is said before anything runs
    statistics: Mapping[str, InputStatistics]
    if checkpoint.kind == "mapped":
        recogniser, statistics = load_chip(checkpoint)
        mapping = mapping_of(recogniser.model)
        if spec is None and seed is None:
            programmed = recogniser.model
        seed = mapping.seed if seed is None else seed
        spec = spec or mapping.spec
        digital = remap(recogniser.model, spec.digital_twin(), seed=seed, statistics=statistics)
    else:
        if spec is None:
            raise ValueError("an unmapped checkpoint needs a hardware spec")
        recogniser = load_recogniser(checkpoint)
        if is_full_precision(checkpoint):
            full_precision = recogniser
        statistics = stored_statistics(checkpoint)
        seed = seed or 0
        digital = map_model(recogniser.model, spec.digital_twin(), calibration=statistics, seed=seed)
        spec = chosen_bits(spec, mapping_of(digital).plan)
    _require_statistics(checkpoint, spec, mapping_of(digital), statistics)
    if reference is not None:
        full_precision = load_recogniser(reference)
    return Subject(checkpoint, recogniser, spec, seed, statistics, full_precision, digital, programmed)


def _require_statistics(
    checkpoint: Checkpoint, spec: HardwareSpec, mapping: ChipMapping, statistics: Mapping[str, InputStatistics]
) -> None:
    """Converters and cells take their ranges from input statistics; exact hardware needs none."""
    missing = [
        layer.name
        for layer in mapping.mapped
        if layer.name not in statistics and needs_calibration(spec.for_layer(layer.name))
    ]
    if missing:
        more = f" and {len(missing) - 1} more layers" if len(missing) > 1 else ""
        raise InputError(
            f"{checkpoint.path}: holds no input statistics for {missing[0]}{more}, so converter ranges are open; "
            "map it with `memsim map --calibrate DATA`"
        )


def evaluate(
    subject: Subject,
    corpus: Corpus,
    *,
    trials: int = 1,
    device: str = "cpu",
    progress: Progress = lambda name, done: None,
) -> Evaluation:
    """WER of `subject` on `corpus`: full precision where there is one, digital, and `trials` chips."""
    recogniser = subject.recogniser
    runner = Runner.make(recogniser, corpus, device, progress)
    full_precision = None
    if subject.full_precision is not None:
        full_precision = runner.score(subject.full_precision, "full precision")
    digital = runner.score(replace(recogniser, model=subject.digital), "digital")
    mapping_of(subject.digital).release()
    results = []
    for trial in range(trials):
        chip = subject.chip(trial)
        results.append(runner.trial(replace(recogniser, model=chip), f"chip {trial + 1} of {trials}"))
        mapping = mapping_of(chip)
        mapping.release()
    return Evaluation(
        subject.checkpoint,
        corpus,
        runner.seconds,
        subject.spec,
        subject.seed,
        full_precision,
        digital,
        tuple(results),
        mapping,
    )


@dataclass
class Runner:
    """Scores networks on one corpus, whose features are read once where they are not too many."""

    corpus: Corpus
    source: FeatureSource
    seconds: float
    device: str
    progress: Progress

    @classmethod
    def make(cls, recogniser: Recogniser, corpus: Corpus, device: str, progress: Progress) -> Runner:
        """`recogniser` says which features; `device` is where networks run."""
        seconds = total_seconds(corpus.utterances)
        source = FeatureSource(recogniser.features, cache_bytes=CACHED_BYTES)
        return cls(corpus, source, seconds, device, progress)

    def score(self, recogniser: Recogniser, name: str) -> Score:
        """`name` is what progress calls the run."""
        return self._scored(transcribe(recogniser, self._batches(recogniser, name)))

    def score_and_loss(self, recogniser: Recogniser, targets: Sequence[Tensor], name: str) -> tuple[Score, float]:
        """Likewise, and the mean CTC loss a character; `targets` are the token ids of every utterance's text."""
        texts: dict[int, str] = {}
        loss = 0.0
        for batch, log_probs, lengths in outputs(recogniser, self._batches(recogniser, name)):
            texts |= zip(batch.indices, greedy(log_probs, lengths, recogniser.tokens), strict=True)
            chosen = [targets[i] for i in batch.indices]
            loss += ctc_losses(log_probs.float(), lengths, chosen).sum().item()
        return self._scored([texts[i] for i in range(len(texts))]), loss / len(texts)

    def _scored(self, hypotheses: list[str]) -> Score:
        return score([u.text for u in self.corpus.utterances], hypotheses)

    def _batches(self, recogniser: Recogniser, name: str) -> Iterable[Batch]:
        recogniser.model.to(self.device)
        return self._counted(evaluation_batches(self.corpus.utterances, self.source), name)

    def trial(self, recogniser: Recogniser, name: str) -> Trial:
        mapping = mapping_of(recogniser.model)
        mapping.reads.count_clips = True
        started = time.perf_counter()
        result = self.score(recogniser, name)
        elapsed = time.perf_counter() - started
        rate = clip_rate(mapping.layers.values())
        return Trial(mapping.seed, result, elapsed / self.seconds, rate.dac, rate.adc)

    def _counted(self, batches: Iterable[Batch], name: str) -> Iterable[Batch]:
        done = 0
        self.progress(name, 0.0)
        for batch in batches:
            yield batch
            done += len(batch.indices)
            self.progress(name, done / len(self.corpus.utterances))


def outputs(recogniser: Recogniser, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    """Each batch with its log-probabilities [batch, frames', tokens] and their lengths [batch]."""
    mapping = getattr(recogniser.model, "mapping", None)
    device = _device(recogniser.model)
    for batch in batches:
        if isinstance(mapping, ChipMapping):
            mapping.begin_batch(batch.key)
        with torch.inference_mode():
            log_probs, lengths = recogniser.model(batch.features.to(device), batch.lengths.to(device))
        if log_probs.isnan().any():
            raise FloatingPointError("the network's output holds NaN")
        yield batch, log_probs, lengths


def transcribe(recogniser: Recogniser, batches: Iterable[Batch]) -> list[str]:
    """Greedy transcripts in the order of the utterances that `batches` were made from."""
    texts = transcribe_some(recogniser, batches)
    return [texts[i] for i in range(len(texts))]


def transcribe_some(recogniser: Recogniser, batches: Iterable[Batch]) -> dict[int, str]:
    """Greedy transcripts by the utterances' numbers, of whichever batches are given."""
    texts: dict[int, str] = {}
    for batch, log_probs, lengths in outputs(recogniser, batches):
        texts |= zip(batch.indices, greedy(log_probs, lengths, recogniser.tokens), strict=True)
    return texts


def _device(model: nn.Module) -> torch.device:
    tensor: torch.Tensor = next(iter(model.state_dict().values()))
    return tensor.device


def input_statistics(
    recogniser: Recogniser, utterances: Sequence[Utterance], source: FeatureSource, *, seed: int = 0
) -> dict[str, InputStatistics]:
    """The input statistics of all matrices that can be mapped, of about 200 utterances, evenly taken, one at a time."""
    every = max(1, len(utterances) // STATISTICS_UTTERANCES)
    device = _device(recogniser.model)

    def run(model: nn.Module) -> None:
        for utterance in utterances[::every]:
            features, lengths = pad([source(utterance)])
            model(features.to(device), lengths.to(device))

    return measure(recogniser.model, run, seed=seed)
