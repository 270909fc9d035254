"""The result of an evaluation: full precision, quantised digital, and simulated chips."""

from __future__ import annotations

import statistics as stats
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from memsim.asr.bootstrap import CONFIDENCE, compare, wer_interval
from memsim.asr.corpora import Corpus
from memsim.asr.scoring import Score
from memsim.crossbar.read import ClipCounts
from memsim.evaluation.partial_results import ChipFacts, PartialResult
from memsim.evaluation.runner import part_score
from memsim.evaluation.verdicts import hardware_dict, warnings_of, why_unusable
from memsim.nn.mapping import ClipRate, clip_rate
from memsim.spec import HardwareSpec
from memsim.storage.checkpoint import Checkpoint
from memsim.version import __version__

GREEDY = {"decoder": "greedy"}
"""What a result file says of decoding without a search."""


@dataclass(frozen=True)
class Trial:
    """One chip's result."""

    chip: ChipFacts
    score: Score
    real_time_factor: float  # seconds of computing per second of audio
    clips: Mapping[str, ClipCounts]

    @classmethod
    def of(cls, part: PartialResult, corpus: Corpus, seconds: float) -> Trial:
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
