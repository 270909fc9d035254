"""What a study runs, and who of several workers runs which part of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from memsim.asr.audio import duration_seconds
from memsim.asr.corpora import Corpus
from memsim.asr.data import BATCH_SECONDS, bucket
from memsim.asr.recogniser import Decoder, skeleton
from memsim.errors import InputError
from memsim.evaluation.decoders import with_decoder
from memsim.evaluation.partial_results import PartialResult
from memsim.evaluation.result import GREEDY, CheckpointFacts, Evaluation, Trial
from memsim.evaluation.runner import part_score
from memsim.evaluation.target import EvaluationTarget, has_full_precision, prepare
from memsim.networks.mapped_file import stored_seed, stored_spec
from memsim.spec import HardwareSpec
from memsim.storage.checkpoint import Checkpoint
from memsim.units import counted

IMBALANCE = 1.1
"""A worker may have this many times the mean number of parts of chips."""


@dataclass(frozen=True)
class System:
    """What is run on a corpus: full precision, or the digital network or a chip of some hardware, named by its hash."""

    role: Literal["full_precision", "digital", "chip"]
    hardware: str = ""
    trial: int = 0


@dataclass(frozen=True)
class WorkItem:
    """A system and the batches, by number, that are to be run on it in one go."""

    system: System
    batches: tuple[int, ...]


@dataclass(frozen=True)
class PointFacts:
    """One hardware spec of a study, by the settings that tell it from the others and by the hashes of its systems."""

    settings: Mapping[str, Any]
    hardware: str
    digital: str

    @property
    def label(self) -> str:
        """`adc.bits=4, weights.bits=3`; empty where there is nothing to tell apart."""
        return ", ".join(f"{key}={value}" for key, value in self.settings.items())

    def chips(self, trials: int) -> Iterator[System]:
        return (System("chip", self.hardware, trial) for trial in range(trials))

    def has(self, system: System) -> bool:
        """Whether `system` can be made of this hardware."""
        own = {"full_precision": "", "digital": self.digital, "chip": self.hardware}
        return system.hardware == own[system.role]


@dataclass(frozen=True)
class Point:
    """One hardware spec of a study, and the settings that tell it from the others."""

    settings: Mapping[str, Any]
    spec: HardwareSpec

    @cached_property
    def facts(self) -> PointFacts:
        # specs that differ behind their weights and DAC only have one digital system
        return PointFacts(self.settings, self.spec.sha256(), self.spec.digital_twin().sha256())


@dataclass(frozen=True)
class StudyFacts:
    """What must be known of a study to put its parts together."""

    checkpoint: CheckpointFacts
    reference_sha256: str | None
    corpus: Corpus
    seconds: float
    points: tuple[PointFacts, ...]
    trials: int
    seed: int
    """Of the first chip of every point."""
    as_it_is: bool
    """Whether the first chip is the one in the mapped file."""
    full_precision: bool
    loss_name: str
    with_losses: bool
    decoding: Mapping[str, Any]

    def systems(self) -> Iterator[System]:
        """All that is run, in the order of the points: as many as a file may say that they are, one after another."""
        if self.full_precision:
            yield System("full_precision")
        digitals: set[str] = set()
        for point in self.points:
            if point.digital not in digitals:
                digitals.add(point.digital)
                yield System("digital", point.digital)
            yield from point.chips(self.trials)

    def systems_of(self, point: PointFacts) -> list[System]:
        """Those that the result of `point` is made of."""
        return [system for system in self.systems() if point.has(system)]

    def evaluation(self, point: PointFacts, whole: Mapping[System, PartialResult]) -> Evaluation:
        """The result of `point`, from what its systems made of the whole corpus."""
        full_precision = System("full_precision")
        return Evaluation(
            self.checkpoint,
            self.corpus,
            self.seconds,
            self.loss_name,
            self.decoding,
            part_score(whole[full_precision], self.corpus) if self.full_precision else None,
            part_score(whole[System("digital", point.digital)], self.corpus),
            tuple(Trial.of(whole[chip], self.corpus, self.seconds) for chip in point.chips(self.trials)),
        )


@dataclass(frozen=True)
class Study:
    """A checkpoint on `trials` chips of every point, with the seeds `seed`, `seed` + 1, ... (None: see `prepare`).

    Without `points`, a mapped checkpoint is evaluated on the hardware it was mapped for; without a seed too, its first
    chip is the one in the file. Raises InputError for two points of the same hardware.
    """

    checkpoint: Checkpoint
    corpus: Corpus
    points: tuple[Point, ...] = ()
    trials: int = 1
    seed: int | None = None
    reference: Checkpoint | None = None
    with_losses: bool = False
    decoder: Decoder | None = None
    """None: greedy."""
    decoding: Mapping[str, Any] = field(default_factory=lambda: GREEDY)
    """What a result says of the decoder."""

    def __post_init__(self) -> None:
        seen: dict[str, PointFacts] = {}
        for point in (point.facts for point in self.points):
            if (other := seen.setdefault(point.hardware, point)) is not point:
                raise InputError(f"{other.label or 'a point'} and {point.label or 'another'} are the same hardware")
        if self.trials < 1:
            raise InputError(f"{counted(self.trials, 'trial')}; there must be at least 1")

    @cached_property
    def durations_seconds(self) -> tuple[float, ...]:
        """Of every utterance. Raises InputError when audio cannot be read."""
        return tuple(duration_seconds(utterance) for utterance in self.corpus.utterances)

    @cached_property
    def groups(self) -> list[list[int]]:
        """The utterances of each batch, by number."""
        return bucket(self.durations_seconds, BATCH_SECONDS)

    @cached_property
    def facts(self) -> StudyFacts:
        points = self.points or (Point({}, stored_spec(self.checkpoint)[0]),)
        return StudyFacts(
            checkpoint=CheckpointFacts.of(self.checkpoint),
            reference_sha256=None if self.reference is None else self.reference.sha256,
            corpus=self.corpus,
            seconds=sum(self.durations_seconds),
            points=tuple(point.facts for point in points),
            trials=self.trials,
            seed=stored_seed(self.checkpoint) if self.seed is None else self.seed,
            as_it_is=not self.points and self.seed is None,
            full_precision=has_full_precision(self.checkpoint, self.reference),
            loss_name=skeleton(self.checkpoint).kind.loss_name,
            with_losses=self.with_losses,
            decoding=self.decoding,
        )

    def target(self, point: int = 0) -> EvaluationTarget:
        """The checkpoint on the hardware of a point, by its number. Raises InputError as `prepare` does."""
        spec = self.points[point].spec if self.points else None
        target = prepare(self.checkpoint, spec=spec, seed=self.seed, reference=self.reference)
        return target if self.decoder is None else with_decoder(target, self.decoder)


def parts_each(chips: int, workers: int) -> int:
    """Into how many parts the corpus is divided for each chip: the fewest with which no worker has far too many."""
    return next(
        parts
        for parts in range(1, workers + 1)
        if math.ceil(chips * parts / workers) <= IMBALANCE * chips * parts / workers
    )


def divided(systems: Sequence[System], batches: int, workers: int) -> list[WorkItem]:
    """All there is to do for `workers`, system by system. The batches go by length, so each part has all lengths."""
    chips = sum(system.role == "chip" for system in systems)
    parts = min(batches, parts_each(chips, workers))
    return [WorkItem(system, tuple(range(first, batches, parts))) for system in systems for first in range(parts)]


def share(items: Sequence[WorkItem], worker: int, workers: int) -> list[WorkItem]:
    """The items of one of `workers`, 0 to `workers` - 1. Chips, which take longest, are dealt out first."""
    dealt = sorted(range(len(items)), key=lambda i: items[i].system.role != "chip")
    mine = set(dealt[worker::workers])
    return [item for i, item in enumerate(items) if i in mine]
