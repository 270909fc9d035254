"""The result of an evaluation: full precision, quantised digital, and simulated chips."""

from __future__ import annotations

import statistics as stats
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from memsim.asr import bootstrap
from memsim.crossbar.read import ClipCounts
from memsim.evaluation.measure import Measure
from memsim.evaluation.partial_results import ChipFacts, PartialResult
from memsim.evaluation.task import CheckpointFacts, Score, Task
from memsim.evaluation.verdicts import warnings_of
from memsim.hardware import HardwareSpec
from memsim.hardware.facts import hardware_dict
from memsim.nn.chip import ClipRate, clip_rate
from memsim.units import counted, plural_of
from memsim.version import __version__

MOST_CLIPPED = 0.05
"""The fraction of clipped conversions above which a layer is named in a warning."""


@dataclass(frozen=True)
class Trial:
    """One chip's result."""

    chip: ChipFacts
    score: Any
    """The task's `Score`."""
    seconds_per_unit: float
    """Seconds of computing per unit of the task's extent; for speech, the real-time factor of the simulation."""
    clips: Mapping[str, ClipCounts]

    @classmethod
    def of(cls, part: PartialResult, score: Score, task: Task) -> Trial:
        """Make the result of a chip whose `part` is all of the data."""
        if part.chip is None:
            raise ValueError("a trial must have a chip")
        return cls(part.chip, score, part.compute_seconds / task.extent, part.clips)

    @property
    def seed(self) -> int:
        """The seed that the chip was programmed with."""
        return self.chip.seed

    @property
    def clip_rate(self) -> ClipRate:
        """The rate over all layers."""
        return clip_rate(self.clips.values())

    @property
    def clip_rates(self) -> dict[str, ClipRate]:
        """The rate of each layer."""
        return {layer: clip_rate([clips]) for layer, clips in self.clips.items()}


@dataclass(frozen=True)
class Evaluation:
    """The result of a network on one hardware spec: scores in full precision, digital, and of every chip.

    Scores are the task's: of speech, `memsim.asr.scoring.Score`.
    """

    checkpoint: CheckpointFacts
    task: Any
    """The `Task`: the data, and the measures."""
    full_precision: Any | None
    """The score in full precision; None without full-precision weights."""
    digital: Any
    trials: tuple[Trial, ...]

    @property
    def measure(self) -> Measure:
        """The measure that networks are compared by."""
        measure: Measure = self.task.measures[0]
        return measure

    @property
    def chip(self) -> ChipFacts:
        """The first chip; the others differ in their seeds."""
        return self.trials[0].chip

    @property
    def spec(self) -> HardwareSpec:
        """The hardware of the chips."""
        return self.chip.spec

    @property
    def seed(self) -> int:
        """The seed of the first chip."""
        return self.chip.seed

    @property
    def references(self) -> dict[str, Any]:
        """The scores that chips are compared with: `digital`, and `full_precision` where it is known."""
        found = {"digital": self.digital, "full_precision": self.full_precision}
        return {name: score for name, score in found.items() if score is not None}

    def spread(self, measure: Measure | None = None) -> dict[str, float | None]:
        """Return mean, std, min and max over chips of a measure; None for the first."""
        key = (measure or self.measure).key
        return spread([trial.score.rates[key] for trial in self.trials])

    def to_dict(self) -> dict[str, Any]:
        """Return the values that --json writes."""
        return {
            "memsim": __version__,
            "checkpoint": {
                "path": str(self.checkpoint.path),
                "kind": self.checkpoint.kind,
                "sha256": self.checkpoint.sha256,
            },
            "data": self.task.data_dict(self.digital),
            "hardware": hardware_dict(self.spec),
            "seed": self.seed,
            **({} if self.full_precision is None else {"full_precision": self.full_precision.to_detailed_dict()}),
            "digital": self.digital.to_detailed_dict(),
            "mapped": {
                **{measure.key: self.spread(measure) for measure in self.task.measures},
                **({"loss_name": self.task.losses, "loss": spread(self.losses)} if self.losses else {}),
                **({} if (cells := self.trials[0].chip.cells_per_weight) is None else {"cells_per_weight": cells}),
                "trials": [{"seed": trial.seed, **trial.score.to_detailed_dict()} for trial in self.trials],
            },
            "relative_degradation": self.relative_degradation,
            "unusable": self.unusable,
            "warnings": [*self.task.warnings(), *self.warnings],
            "intervals": self.intervals,
            **self.task.facts_dict(),
            "clip_rate": {
                "dac": _mean([trial.clip_rate.dac for trial in self.trials]),
                "adc": _mean([trial.clip_rate.adc for trial in self.trials]),
            },
            "clip_rate_by_layer": {  # of the last chip
                name: {"dac": rate.dac, "adc": rate.adc} for name, rate in self.trials[-1].clip_rates.items()
            },
            self.task.speed_key: stats.fmean(trial.seconds_per_unit for trial in self.trials),
        }

    @property
    def clip_rates(self) -> dict[str, ClipRate]:
        """The rate of each layer over all chips."""
        return {name: clip_rate(trial.clips[name] for trial in self.trials) for name in self.trials[0].clips}

    def clipped_beyond(self, rate: float) -> dict[str, dict[str, float]]:
        """Return the layers that clip more than `rate` of their conversions, worst first, for `dac` and `adc`."""
        found: dict[str, dict[str, float]] = {}
        for kind in ("dac", "adc"):
            known = {name: getattr(rates, kind) for name, rates in self.clip_rates.items()}
            beyond = {name: clipped for name, clipped in known.items() if clipped is not None and clipped > rate}
            if beyond:
                found[kind] = dict(sorted(beyond.items(), key=lambda layer: -layer[1]))
        return found

    @property
    def clipping_warnings(self) -> list[str]:
        """Warnings about layers whose converters clip many conversions, which the rate over all layers hides."""
        said = []
        for kind, layers in self.clipped_beyond(MOST_CLIPPED).items():
            (name, rate), *more = layers.items()
            others = f" ({counted(len(more), 'more layer')} above {MOST_CLIPPED:.0%})" if more else ""
            remedy = "dac.method: max and calibration on such data have room for them"
            if kind == "adc":
                adc = self.spec.for_layer(name).adc
                assert adc is not None
                remedy = f"{adc.wider} has room for them, under `overrides` in some layers alone"
            conversions = f"{rate:.1%} of the {kind.upper()}'s conversions are beyond full scale"
            said.append(f"{name}: {conversions}{others}; {remedy}")
        return said

    @property
    def losses(self) -> list[float]:
        """The mean loss on each chip; empty where none were computed."""
        return [trial.score.loss for trial in self.trials if trial.score.loss is not None]

    @cached_property
    def unusable(self) -> dict[str, str]:
        """Reasons why networks are unusable: `full_precision`, `digital`, or `mapped`, all chips together."""
        networks = {
            "full_precision": [] if self.full_precision is None else [self.full_precision],
            "digital": [self.digital],
            "mapped": [trial.score for trial in self.trials],
        }
        found = {name: self.task.why_unusable(scores) for name, scores in networks.items() if scores}
        return {name: reason for name, reason in found.items() if reason is not None}

    @cached_property
    def warnings(self) -> list[str]:
        """Warnings about unusable networks and lost texts."""
        chips = {trial.seed: trial.score for trial in self.trials}
        return warnings_of(self.task, self.full_precision, self.digital, chips)

    @property
    def relative_degradation(self) -> dict[str, float | None]:
        """The relative change of the chips' mean from each reference: `to_digital`, `to_full_precision`.

        A change is None where the chips or the reference are unusable, and left out where the reference makes no
        errors.
        """
        mean = stats.fmean(trial.score.value for trial in self.trials)
        return {
            f"to_{name}": None if self.unusable.keys() & {name, "mapped"} else mean / reference.value - 1
            for name, reference in self.references.items()
            if reference.value > 0
        }

    @cached_property
    def intervals(self) -> dict[str, Any]:
        """95 % bootstrap intervals over items: the measure of each network, and the chips' degradation, paired."""
        weights = self.digital.weights
        mapped = [trial.score.amounts for trial in self.trials]
        better = self.measure.lower_is_better
        compared = {
            key: bootstrap.compare(mapped, score.amounts, weights, lower_is_better=better).to_dict()
            for key, score in self.references.items()
        }
        for key in compared:
            if self.unusable.keys() & {key, "mapped"}:
                compared[key]["relative"] = None
        alone = {key: score.interval.to_dict() for key, score in self.references.items()}
        chips = self.trials[0].score.interval if len(mapped) == 1 else bootstrap.wer_interval(mapped, weights)
        return {
            "confidence": bootstrap.CONFIDENCE,
            "over": f"{plural_of(self.task.item)}, of {'these chips' if len(self.trials) > 1 else 'this chip'}",
            self.measure.key: alone | {"mapped": chips.to_dict()},
            **{f"to_{key}": comparison for key, comparison in compared.items()},
        }


def spread(values: list[float]) -> dict[str, float | None]:
    """Return mean, sample standard deviation (None for a single value, which has none), minimum and maximum."""
    return {
        "mean": stats.fmean(values),
        "std": stats.stdev(values) if len(values) > 1 else None,
        "min": min(values),
        "max": max(values),
    }


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return stats.fmean(known) if known else None
