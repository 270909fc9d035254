"""Running a recogniser over speech: in full precision, quantised, and on simulated chips."""

from __future__ import annotations

import itertools
import math
import statistics as stats
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from memsim import __version__
from memsim.asr.audio import duration_seconds
from memsim.asr.bootstrap import CONFIDENCE, compare, wer_interval
from memsim.asr.corpora import Corpus, Utterance, with_unwritable
from memsim.asr.ctc import encode_text
from memsim.asr.data import BATCH_SECONDS, Batch, FeatureSource, bucket, evaluation_batch, evaluation_batches, pad
from memsim.asr.prior import measure_log_prior
from memsim.asr.recogniser import Recogniser, load_recogniser
from memsim.asr.scoring import Score, score
from memsim.checkpoint import Checkpoint
from memsim.crossbar.matrix import needs_calibration
from memsim.crossbar.read import ClipCounts
from memsim.crossbar.statistics import InputStatistics
from memsim.device import load_device
from memsim.errors import InputError
from memsim.mapped import is_full_precision, load_chip, stored_statistics
from memsim.nn.calibration import CalibrationData
from memsim.nn.finite import first_not_finite
from memsim.nn.mapping import ChipMapping, ClipRate, clip_rate, map_model, mapping_of, remap
from memsim.nn.plan import chosen_bits
from memsim.parts import ChipFacts, Part
from memsim.spec import HardwareSpec
from memsim.units import counted
from memsim.verdicts import hardware_dict, warnings_of, why_unusable

CACHED_BYTES = 1e8
"""Features of this size, of nearly two hours, are kept between passes; what is beyond is read again by each."""

STATISTICS_UTTERANCES = 200
PRIOR_UTTERANCES = 2000

Progress = Callable[[str, float], None]
"""Told which pass is running and the fraction of it that is done."""

GREEDY = {"decoder": "greedy"}
"""What a result file says of decoding without a search."""

Heed = Callable[[Mapping[int, str]], bool]
"""Called with the transcripts of a batch, by their utterances' numbers; whether to stop after it."""


@dataclass(frozen=True)
class Trial:
    """One chip's result."""

    chip: ChipFacts
    score: Score
    real_time_factor: float  # seconds of computing per second of audio
    clips: Mapping[str, ClipCounts]

    @classmethod
    def of(cls, part: Part, corpus: Corpus, seconds: float) -> Trial:
        """The result of a chip whose `part` is all of `corpus`, `seconds` of audio."""
        if part.chip is None:
            raise ValueError("a trial is of a chip")
        return cls(part.chip, part_score(part, corpus), part.compute_seconds / seconds, part.clips)

    @property
    def seed(self) -> int:
        return self.chip.seed

    @property
    def clip_rate(self) -> ClipRate:
        """Over all layers."""
        return clip_rate(self.clips.values())

    @property
    def clip_rates(self) -> dict[str, ClipRate]:
        """By layer."""
        return {layer: clip_rate([clips]) for layer, clips in self.clips.items()}


@dataclass(frozen=True)
class CheckpointFacts:
    """Which checkpoint was evaluated."""

    path: Path
    kind: str
    sha256: str

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> CheckpointFacts:
        return cls(checkpoint.path, checkpoint.kind, checkpoint.sha256)


@dataclass(frozen=True)
class Evaluation:
    """What `memsim eval` finds out. `full_precision` is None where no full-precision weights were at hand."""

    checkpoint: CheckpointFacts
    corpus: Corpus
    seconds: float
    loss_name: str
    decoding: Mapping[str, Any]
    full_precision: Score | None
    digital: Score
    trials: tuple[Trial, ...]

    @property
    def chip(self) -> ChipFacts:
        """The first chip; the others differ in their seeds."""
        return self.trials[0].chip

    @property
    def spec(self) -> HardwareSpec:
        return self.chip.spec

    @property
    def seed(self) -> int:
        """That of the first chip."""
        return self.chip.seed

    def to_dict(self) -> dict[str, Any]:
        """The JSON of interface.md."""
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
                **({} if self.corpus.unwritable is None else {"unwritable": asdict(self.corpus.unwritable)}),
            },
            "hardware": hardware_dict(self.spec),
            "seed": self.seed,
            **({} if self.full_precision is None else {"full_precision": self.full_precision.to_detailed_dict()}),
            "digital": self.digital.to_detailed_dict(),
            "mapped": {
                "wer": spread([trial.score.wer for trial in self.trials]),
                "cer": spread([trial.score.cer for trial in self.trials]),
                **({"loss_name": self.loss_name, "loss": spread(self.losses)} if self.losses else {}),
                "trials": [{"seed": trial.seed, **trial.score.to_detailed_dict()} for trial in self.trials],
            },
            "relative_degradation": self.relative_degradation,
            "unusable": self.unusable,
            "warnings": [*self._about_references(), *self.warnings],
            "intervals": self.intervals(),
            "decoding": self.decoding,
            "clip_rate": {
                "dac": _mean([trial.clip_rate.dac for trial in self.trials]),
                "adc": _mean([trial.clip_rate.adc for trial in self.trials]),
            },
            "clip_rate_by_layer": {  # of the last chip
                name: {"dac": rate.dac, "adc": rate.adc} for name, rate in self.trials[-1].clip_rates.items()
            },
            "real_time_factor": stats.fmean(trial.real_time_factor for trial in self.trials),
        }

    @property
    def clip_rates(self) -> dict[str, ClipRate]:
        """By layer, over all chips."""
        return {name: clip_rate(trial.clips[name] for trial in self.trials) for name in self.trials[0].clips}

    def clipped_beyond(self, rate: float) -> dict[str, dict[str, float]]:
        """The layers that clip more than `rate` of their conversions, worst first, where `dac` or `adc` has any."""
        found: dict[str, dict[str, float]] = {}
        for kind in ("dac", "adc"):
            known = {name: getattr(rates, kind) for name, rates in self.clip_rates.items()}
            beyond = {name: clipped for name, clipped in known.items() if clipped is not None and clipped > rate}
            if beyond:
                found[kind] = dict(sorted(beyond.items(), key=lambda layer: -layer[1]))
        return found

    @property
    def losses(self) -> list[float]:
        """Of each chip; empty where none were computed."""
        return [trial.score.loss for trial in self.trials if trial.score.loss is not None]

    @cached_property
    def unusable(self) -> dict[str, str]:
        """Why, of each network that is of no use: `full_precision`, `digital`, or `mapped`, all chips together."""
        networks = {
            "full_precision": [] if self.full_precision is None else [self.full_precision],
            "digital": [self.digital],
            "mapped": [trial.score for trial in self.trials],
        }
        found = {name: why_unusable(scores) for name, scores in networks.items() if scores}
        return {name: reason for name, reason in found.items() if reason is not None}

    @cached_property
    def warnings(self) -> list[str]:
        """Sentences on unusable networks and lost texts."""
        return warnings_of(self.full_precision, self.digital, {trial.seed: trial.score for trial in self.trials})

    @property
    def relative_degradation(self) -> dict[str, float | None]:
        """The chips' mean WER against each reference's: `to_digital`, `to_full_precision`; less 1.

        None where either is unusable; left out where the reference makes no errors.
        """
        references = {"digital": self.digital, "full_precision": self.full_precision}
        wer = stats.fmean(trial.score.wer for trial in self.trials)
        return {
            f"to_{name}": None if self.unusable.keys() & {name, "mapped"} else wer / reference.wer - 1
            for name, reference in references.items()
            if reference is not None and reference.wer > 0
        }

    def _about_references(self) -> list[str]:
        """Say what the recogniser cannot write, which counts as errors whatever it hears."""
        corpus = self.corpus
        return [] if corpus.unwritable is None else [f"{corpus.name} {corpus.split}: {corpus.unwritable}"]

    def intervals(self) -> dict[str, Any]:
        """95 % bootstrap intervals over utterances: the WER of each, and the mapped one's degradation, paired."""
        words = [words for _, words in self.digital.utterance_errors]
        mapped = [_errors(trial.score) for trial in self.trials]
        references = {"digital": self.digital, "full_precision": self.full_precision}
        known = {key: _errors(score) for key, score in references.items() if score is not None}
        systems = {key: [errors] for key, errors in known.items()} | {"mapped": mapped}
        compared = {key: compare(mapped, errors, words).to_dict() for key, errors in known.items()}
        for key in compared:
            if self.unusable.keys() & {key, "mapped"}:
                compared[key]["relative"] = None
        return {
            "confidence": CONFIDENCE,
            "over": f"utterances, of {'these chips' if len(self.trials) > 1 else 'this chip'}",
            "wer": {key: wer_interval(errors, words).to_dict() for key, errors in systems.items()},
            **{f"to_{key}": comparison for key, comparison in compared.items()},
        }


def _errors(score: Score) -> list[int]:
    """The word errors of every utterance."""
    return [errors for errors, _ in score.utterance_errors]


def spread(values: list[float]) -> dict[str, float | None]:
    """Mean, sample standard deviation (None of a single value, which has none), minimum and maximum."""
    return {
        "mean": stats.fmean(values),
        "std": stats.stdev(values) if len(values) > 1 else None,
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
        if has_full_precision(checkpoint):
            full_precision = recogniser
        statistics = stored_statistics(checkpoint)
        seed = seed or 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about globs: said, once, where the spec was chosen
            digital = map_model(recogniser.model, spec.digital_twin(), calibration=statistics, seed=seed)
        plan = mapping_of(digital).plan
        statistics, spec = plan.completed(statistics), chosen_bits(spec, plan)
    _require_statistics(checkpoint, spec, mapping_of(digital), statistics)
    if reference is not None:
        full_precision = load_recogniser(reference)
    return Subject(checkpoint, recogniser, spec, seed, statistics, full_precision, digital, programmed)


def has_full_precision(checkpoint: Checkpoint, reference: Checkpoint | None = None) -> bool:
    """Whether there are full-precision weights to compare with: in `checkpoint` itself, or those of a reference."""
    return reference is not None or (checkpoint.kind != "mapped" and is_full_precision(checkpoint))


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
        more = f" and {counted(len(missing) - 1, 'more layer')}" if len(missing) > 1 else ""
        raise InputError(
            f"{checkpoint.path}: holds no input statistics for {missing[0]}{more}, so converter ranges are open; "
            f"{measuring(checkpoint)}"
        )


def measuring(checkpoint: Checkpoint) -> str:
    """How a file comes by input statistics, for the message that `checkpoint` has none."""
    if checkpoint.kind == "mapped":
        return "map the unmapped checkpoint again with `memsim map --calibrate DATA`"
    return "map it with `memsim map --calibrate DATA` and evaluate the file that this writes"


def evaluate(
    subject: Subject,
    corpus: Corpus,
    *,
    trials: int = 1,
    loss: bool = False,
    device: str = "cpu",
    progress: Progress = lambda name, done: None,
) -> Evaluation:
    """WER of `subject` on `corpus`: full precision where there is one, digital, and `trials` chips.

    With `loss` also the mean loss a character. Raises InputError when a transcript then has one without a token.
    """
    recogniser = subject.recogniser
    corpus = with_unwritable(corpus, recogniser.tokens)
    runner = Runner.make(recogniser, corpus, device, progress, loss=loss)
    full_precision = None
    if subject.full_precision is not None:
        full_precision = runner.score(subject.full_precision, "full precision")
    digital = runner.score(replace(recogniser, model=subject.digital), "digital")
    results = []
    for trial in range(trials):
        chip = replace(recogniser, model=subject.chip(trial))
        part = runner.part(chip, runner.groups, runner.counted(f"chip {trial + 1} of {trials}"))
        results.append(Trial.of(part, corpus, runner.seconds))
    checkpoint, kind = CheckpointFacts.of(subject.checkpoint), recogniser.kind
    return Evaluation(
        checkpoint, corpus, runner.seconds, kind.loss_name, GREEDY, full_precision, digital, tuple(results)
    )


def part_score(part: Part, corpus: Corpus) -> Score:
    """The errors of the utterances in `part`, and their mean loss where it was computed."""
    indices = sorted(part.texts)
    counted = score([corpus.utterances[i].text for i in indices], [part.texts[i] for i in indices])
    return replace(counted, loss=math.fsum(part.losses.values()) / len(part.losses)) if part.losses else counted


def targets_of(recogniser: Recogniser, corpus: Corpus) -> list[Tensor]:
    """The token ids of every utterance. Raises InputError for one with a character without a token."""
    return [encode_text(recogniser.tokens, utterance) for utterance in corpus.utterances]


@dataclass
class Runner:
    """Scores networks on one corpus, whose features are read once where they are not too many."""

    corpus: Corpus
    source: FeatureSource
    groups: list[list[int]]
    """The utterances of each batch, by their numbers."""
    seconds: float
    device: str
    progress: Progress = lambda name, done: None
    targets: Sequence[Tensor] | None = None
    """The token ids of every utterance, where losses are wanted."""

    @classmethod
    def make(
        cls, recogniser: Recogniser, corpus: Corpus, device: str, progress: Progress, *, loss: bool = False
    ) -> Runner:
        """`recogniser` says which features; `device` is where networks run; `loss` gives the scores theirs.

        Raises InputError when a transcript has a character without a token, where losses are asked for.
        """
        durations = [duration_seconds(utterance) for utterance in corpus.utterances]
        source = FeatureSource(recogniser.features, cache_bytes=CACHED_BYTES)
        targets = targets_of(recogniser, corpus) if loss else None
        return cls(corpus, source, bucket(durations, BATCH_SECONDS), sum(durations), device, progress, targets)

    def score(self, recogniser: Recogniser, name: str) -> Score:
        """`name` is what progress calls the run."""
        return part_score(self.part(recogniser, self.groups, self.counted(name)), self.corpus)

    def part(self, recogniser: Recogniser, groups: Iterable[Sequence[int]], heed: Heed) -> Part:
        """What `recogniser` makes of the batches `groups`, or of those before `heed` says to stop."""
        mapping = _mapping(recogniser)
        if mapping is not None:
            mapping.count_clips()
        texts: dict[int, str] = {}
        losses: dict[int, float] = {}
        started = time.perf_counter()
        for batch, encoded, frames in outputs(recogniser, self._batches(recogniser, groups)):
            found = dict(zip(batch.indices, recogniser.transcribe(encoded, frames), strict=True))
            texts |= found
            if self.targets is not None:
                asked = time.perf_counter()
                chosen = [self.targets[i] for i in batch.indices]
                losses |= zip(batch.indices, recogniser.losses(encoded, frames, chosen).tolist(), strict=True)
                started += time.perf_counter() - asked
            if heed(found):
                break
        elapsed = time.perf_counter() - started
        if mapping is None:
            return Part(texts, elapsed, losses=losses)
        part = Part(texts, elapsed, mapping.clips(), ChipFacts.of(mapping), losses)
        mapping.release()
        return part

    def counted(self, name: str) -> Heed:
        """Tells `progress` how much of the corpus the run called `name` has done."""
        done = 0
        self.progress(name, 0.0)

        def count(texts: Mapping[int, str]) -> bool:
            nonlocal done
            done += len(texts)
            self.progress(name, done / len(self.corpus.utterances))
            return False

        return count

    def _batches(self, recogniser: Recogniser, groups: Iterable[Sequence[int]]) -> Iterator[Batch]:
        recogniser.model.to(self.device)
        for group in groups:
            yield evaluation_batch(self.corpus.utterances, group, self.source)


def outputs(recogniser: Recogniser, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    """Each batch with what the network gives of its frames [batch, frames', ...], and how many those are [batch].

    Raises FloatingPointError, naming the layer, where that holds NaN.
    """
    mapping = _mapping(recogniser)
    device = _device(recogniser.model)

    def run(batch: Batch) -> tuple[Tensor, Tensor]:
        if mapping is not None:
            mapping.begin_batch(batch.key)
        with torch.inference_mode():
            encoded, frames = recogniser.model(batch.features.to(device), batch.lengths.to(device))
        return encoded, frames

    for batch in batches:
        encoded, frames = run(batch)
        if encoded.isnan().any():
            where = first_not_finite(recogniser.model, lambda: run(batch))  # noqa: B023 - called at once
            raise FloatingPointError(f"{where or 'the features'}: the first place whose output holds NaN or Inf")
        yield batch, encoded, frames


def transcribe(recogniser: Recogniser, batches: Iterable[Batch]) -> dict[int, str]:
    """Transcripts by the utterances' numbers, of whichever batches are given."""
    texts: dict[int, str] = {}
    for batch, encoded, frames in outputs(recogniser, batches):
        texts |= zip(batch.indices, recogniser.transcribe(encoded, frames), strict=True)
    return texts


def _mapping(recogniser: Recogniser) -> ChipMapping | None:
    """What of the recogniser is on arrays; None where it is on no chip."""
    mapping = getattr(recogniser.model, "mapping", None)
    return mapping if isinstance(mapping, ChipMapping) else None


def _device(model: nn.Module) -> torch.device:
    tensor: torch.Tensor = next(iter(model.state_dict().values()))
    return tensor.device


def calibration_data(
    recogniser: Recogniser,
    utterances: Sequence[Utterance],
    source: FeatureSource,
    progress: Progress = lambda name, done: None,
) -> CalibrationData:
    """About 200 utterances, evenly taken, heard one at a time, so that there is no padding.

    They are transcribed, so that layers that only decoding calls are reached.
    """
    device = _device(recogniser.model)
    chosen = _evenly(utterances, STATISTICS_UTTERANCES)
    passes = itertools.count(1)

    def run(model: nn.Module) -> None:
        name = f"calibration, pass {next(passes)}"
        for done, utterance in enumerate(chosen, start=1):
            features, lengths = pad([source(utterance)])
            encoded, frames = model(features.to(device), lengths.to(device))
            recogniser.kind.transcribe(model, encoded, frames, recogniser.tokens)
            progress(name, done / len(chosen))

    return CalibrationData(recogniser.model, run)


def input_statistics(
    recogniser: Recogniser, utterances: Sequence[Utterance], source: FeatureSource
) -> dict[str, InputStatistics]:
    """The statistics of the inputs of all matrices that can be mapped, of `calibration_data`."""
    return calibration_data(recogniser, utterances, source).statistics()


def output_prior(recogniser: Recogniser, utterances: Sequence[Utterance], source: FeatureSource) -> Tensor:
    """The prior [tokens] of a CTC's outputs, of about 2000 utterances, evenly taken."""
    batches = evaluation_batches(_evenly(utterances, PRIOR_UTTERANCES), source)
    return measure_log_prior((log_probs, lengths) for _, log_probs, lengths in outputs(recogniser, batches))


def _evenly(utterances: Sequence[Utterance], count: int) -> Sequence[Utterance]:
    """About so many of them, evenly taken; all where they are fewer."""
    return utterances[:: max(1, len(utterances) // count)]
