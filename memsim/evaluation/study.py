"""The parts of a study, and their division among several workers."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from memsim.device.file import embedded
from memsim.errors import InputError
from memsim.evaluation.partial_results import PartialResult
from memsim.evaluation.result import Evaluation, Trial
from memsim.evaluation.target import Target
from memsim.evaluation.task import CheckpointFacts, Score, System, Task
from memsim.hardware import HardwareSpec
from memsim.post_training.recipe import NEAREST, MappingRecipe
from memsim.units import counted

SWEPT = "one for each point"
"""`StudyFacts.mapping` of a sweep over recipes, which the hashes of its points hold."""

IMBALANCE = 1.1
"""A worker may have this many times the mean number of parts of chips."""


@dataclass(frozen=True)
class WorkItem:
    """A system, and the batches (by number) that are to be run on it in one go."""

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
        """Yield its chips."""
        return (System("chip", self.hardware, trial) for trial in range(trials))

    def has(self, system: System) -> bool:
        """Whether `system` belongs to this hardware."""
        own = {"full_precision": "", "digital": self.digital, "chip": self.hardware}
        return system.hardware == own[system.role]


@dataclass(frozen=True)
class Point:
    """One hardware spec of a study, and the settings that tell it from the others."""

    settings: Mapping[str, Any]
    spec: HardwareSpec
    recipe: MappingRecipe | None = None
    """The way in which weights become levels, where the points differ in it; None for that of the networks."""

    @cached_property
    def facts(self) -> PointFacts:
        """The settings and hashes that tell the point from others."""
        # specs that differ only after their weights and DAC share one digital system
        return PointFacts(self.settings, self._hash(self.spec), self._hash(self.spec.digital_twin()))

    def _hash(self, spec: HardwareSpec) -> str:
        """Return a hash of `spec`, of the files of devices that it names, and of the recipe."""
        words = [spec.sha256(), *_changing_devices(spec)]
        words += [] if self.recipe is None else [self.recipe.identity]
        return words[0] if len(words) == 1 else hashlib.sha256(" ".join(words).encode()).hexdigest()


def _changing_devices(spec: HardwareSpec) -> list[str]:
    """Return a name with a hash of its content for each device of `spec` that is a file, which may change."""
    laws = [spec.programming.relaxation, *((own.programming or {}).get("relaxation") for own in spec.overrides)]
    devices = [device for device in (spec.cell, *laws) if isinstance(device, str) and device not in ("ideal", "none")]
    found = {device: embedded(device)[0] for device in devices}
    return [name for device, name in found.items() if name != device]


@dataclass(frozen=True)
class StudyFacts:
    """The facts of a study by which its parts are merged."""

    checkpoint: CheckpointFacts
    reference_sha256: str | None
    task: Task
    points: tuple[PointFacts, ...]
    trials: int
    seed: int
    """The seed of the first chip of every point."""
    as_it_is: bool
    """Whether the first chip is the one in the mapped file."""
    full_precision: bool
    mapping: str = NEAREST.identity
    """The recipe by which weights become levels, by its name and a hash of its keys; `SWEPT` where points differ."""
    calibration: str | None = None
    """The data that the networks were calibrated on, in words that tell them from others: see `Networks`."""

    def systems(self) -> Iterator[System]:
        """Yield all systems to run, in the order of the points; lazily, as a file may claim any number of trials."""
        if self.full_precision:
            yield System("full_precision")
        digitals: set[str] = set()
        for point in self.points:
            if point.digital not in digitals:
                digitals.add(point.digital)
                yield System("digital", point.digital)
            yield from point.chips(self.trials)

    def systems_of(self, point: PointFacts) -> list[System]:
        """Return the systems that the result of `point` is made of."""
        return [system for system in self.systems() if point.has(system)]

    def evaluation(
        self, point: PointFacts, whole: Mapping[System, PartialResult], scores: Mapping[System, Score]
    ) -> Evaluation:
        """Make the result of `point` from the complete results of its systems."""
        chips = point.chips(self.trials)
        return Evaluation(
            self.checkpoint,
            self.task,
            scores[System("full_precision")] if self.full_precision else None,
            scores[System("digital", point.digital)],
            tuple(Trial.of(whole[chip], scores[chip], self.task) for chip in chips),
        )


class Networks(Protocol):
    """The source of networks: it makes those of every hardware spec. It is sent to other processes."""

    @property
    def facts(self) -> CheckpointFacts:
        """The origin of the weights."""

    @property
    def reference_sha256(self) -> str | None:
        """The hash of another checkpoint that full precision is taken from, if one is."""

    @property
    def has_full_precision(self) -> bool:
        """Whether full-precision weights are at hand."""

    @property
    def recipe(self) -> MappingRecipe:
        """The way in which weights become levels."""

    @property
    def stored_spec(self) -> HardwareSpec:
        """The spec that holds where none is given. Raises InputError where there is none."""

    @property
    def stored_seed(self) -> int:
        """The seed of the first chip where none is given."""

    @property
    def calibrated_on(self) -> str | None:
        """The data that inputs of layers were measured on, in words that tell them from others.

        None for the statistics in a checkpoint, and for a module, whose calibration need not be data.
        """

    def with_recipe(self, recipe: MappingRecipe) -> Networks:
        """Return the same networks with another recipe."""

    def target(self, spec: HardwareSpec | None, seed: int | None) -> Target:
        """Make the networks on `spec`, whose first chip has `seed`; None for what is stored."""


@dataclass(frozen=True)
class Study:
    """Networks on `trials` chips of every point, with the seeds `seed`, `seed` + 1, ... (None: the stored one).

    Without `points`, a mapped checkpoint is evaluated on the hardware it was mapped for; without a seed too, its first
    chip is the one in the file. Raises InputError for two points of the same hardware.
    """

    task: Task
    networks: Networks
    points: tuple[Point, ...] = ()
    trials: int = 1
    seed: int | None = None

    def __post_init__(self) -> None:
        seen: dict[str, PointFacts] = {}
        for point in (point.facts for point in self.points):
            if (other := seen.setdefault(point.hardware, point)) is not point:
                raise InputError(f"{other.label or 'a point'} and {point.label or 'another'} are the same hardware")
        if self.trials < 1:
            raise InputError(f"{counted(self.trials, 'trial')}; there must be at least 1")

    @cached_property
    def facts(self) -> StudyFacts:
        """The facts by which another process merges parts."""
        points = self.points or (Point({}, self.networks.stored_spec),)
        return StudyFacts(
            checkpoint=self.networks.facts,
            reference_sha256=self.networks.reference_sha256,
            task=self.task,
            points=tuple(point.facts for point in points),
            trials=self.trials,
            seed=self.networks.stored_seed if self.seed is None else self.seed,
            as_it_is=not self.points and self.seed is None,
            full_precision=self.networks.has_full_precision,
            mapping=SWEPT if any(point.recipe for point in points) else self.networks.recipe.identity,
            calibration=self.networks.calibrated_on,
        )

    def target(self, point: int = 0) -> Target:
        """Make the networks on the hardware of a point, by its number. Raises InputError where they cannot be run."""
        if not self.points:
            return self.networks.target(None, self.seed)
        own = self.points[point]
        networks = self.networks if own.recipe is None else self.networks.with_recipe(own.recipe)
        return networks.target(own.spec, self.seed)


def parts_each(chips: int, workers: int) -> int:
    """Return the number of parts of each chip's batches: the smallest for which no worker has far too many."""
    return next(
        parts
        for parts in range(1, workers + 1)
        if math.ceil(chips * parts / workers) <= IMBALANCE * chips * parts / workers
    )


def divided(systems: Sequence[System], batches: int, workers: int) -> list[WorkItem]:
    """Divide all work among `workers`, system by system. Every part has batches of all lengths."""
    chips = sum(system.role == "chip" for system in systems)
    parts = min(batches, parts_each(chips, workers))
    return [WorkItem(system, tuple(range(first, batches, parts))) for system in systems for first in range(parts)]


def share(items: Sequence[WorkItem], worker: int, workers: int) -> list[WorkItem]:
    """Return the items of one of `workers`, 0 to `workers` - 1. Chips, which take longest, are dealt out first."""
    dealt = sorted(range(len(items)), key=lambda i: items[i].system.role != "chip")
    mine = set(dealt[worker::workers])
    return [item for i, item in enumerate(items) if i in mine]
