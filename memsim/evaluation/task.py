"""The interface of evaluation tasks: items in batches, a network's outcome for each item, and a score.

`memsim.evaluation.speech` is the task of recognisers. Studies, results files, intervals, tables and reports know this
interface alone, so another kind of data needs a `Task` and a `Networks` of its own and nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

from torch import nn

from memsim.asr import bootstrap
from memsim.asr.bootstrap import Interval
from memsim.evaluation.measure import Measure


class Score(ABC):
    """The score of a network. The first of its `rates` is compared; intervals resample the items' contributions."""

    loss: float | None
    """The mean loss of the items; None where it was not computed."""

    @property
    @abstractmethod
    def rates(self) -> Mapping[str, float]:
        """The value of each measure of the task, by key."""

    @property
    @abstractmethod
    def contributions(self) -> Sequence[tuple[float, float]]:
        """(amount, weight) of every item; the sum of amounts over that of weights is `value`. None is negative."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""

    @abstractmethod
    def to_detailed_dict(self) -> dict[str, Any]:
        """Return `to_dict`, and what each item contributes."""

    @property
    def value(self) -> float:
        """The value of the first measure."""
        return next(iter(self.rates.values()))

    @cached_property
    def interval(self) -> Interval:
        """The bootstrap interval of `value`, over items."""
        return bootstrap.wer_interval(self.amounts, self.weights)

    @property
    def amounts(self) -> list[float]:
        """The amount that each item contributes."""
        return [amount for amount, _ in self.contributions]

    @property
    def weights(self) -> list[float]:
        """The weight of each item."""
        return [weight for _, weight in self.contributions]


class Network(Protocol):
    """A module to run, with whatever the task needs besides."""

    @property
    def model(self) -> nn.Module:
        """The module."""


class Task(ABC):
    """Data that networks are evaluated on, and the measures of how well they do.

    A task is sent to other processes, and made anew from a results file to merge parts, so it is compared and
    described by plain values; it reads its data where it runs.
    """

    kind: ClassVar[str]
    """Its name in results files."""
    measures: Sequence[Measure]
    """The measures of a score; intervals, sweeps and figures use the first one."""
    item: ClassVar[str]
    """The word for an item, such as `utterance`."""
    outcome: ClassVar[str]
    """The word for the outcome of an item, such as `transcript`."""
    speed_key: ClassVar[str]
    """The name in JSON of the seconds of computing for one unit of `extent`."""
    remedies: ClassVar[Mapping[str, str]]
    """Advice for users where `full precision`, `digital, quantised` or `mapped` fails first."""
    groups: Sequence[Sequence[int]]
    """The numbers of the items in each batch: a function of the data alone, so that shards agree."""

    # ---- the data ----

    @abstractmethod
    def __len__(self) -> int:
        """The number of items."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The name of the data, for messages."""

    @property
    @abstractmethod
    def extent(self) -> float:
        """The amount of data, in the unit of `speed_key`: seconds of audio, or items."""

    @property
    def losses(self) -> str:
        """The name of the loss that scores have; empty where none is computed."""
        return ""

    def warnings(self) -> list[str]:
        """Warnings about data that distort every score."""
        return []

    # ---- running and scoring ----

    @abstractmethod
    def run_batch(self, network: Any, group: Sequence[int], device: str) -> tuple[dict[int, Any], float]:
        """Run `network`, which is on `device`, on the items `group`.

        Returns the outcome of each, its errors counted, by number, and the seconds that the network took. Tells the
        network's mapping (`begin_batch`) which batch it is, so that read noise is keyed by it.
        """

    @abstractmethod
    def score(self, outcomes: Mapping[int, Any]) -> Score:
        """Add up `outcomes`, of all items or of some; whatever is expensive was counted by `run_batch`."""

    def with_item_losses(self) -> Self:
        """Return the task with a loss for each item, which tells layers apart. Here, that is the measure itself."""
        return self

    def item_losses(self, outcomes: Mapping[int, Any]) -> list[float]:
        """Return a loss for each item, in the order of their numbers."""
        score, lower = self.score(outcomes), self.measures[0].lower_is_better
        return [amount if lower else weight - amount for amount, weight in score.contributions]

    @classmethod
    @abstractmethod
    def why_unusable(cls, scores: Sequence[Any]) -> str | None:
        """Return why a network with these scores (one per chip) is unusable, so that ratios mean nothing; else None."""

    @classmethod
    def problems(cls, found: Any, baseline: Any | None, baseline_name: str) -> Mapping[str, str]:
        """Further problems of a network by kind, given the score of the network that it was made from."""
        return {}

    # ---- files and results ----

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Entries for the first line of a results file, from which `from_dict` makes the task."""

    @classmethod
    @abstractmethod
    def from_dict(cls, line: Mapping[str, Any]) -> Self:
        """Make the task of a results file. Raises KeyError, TypeError or ValueError for a damaged line."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return the facts that must be equal for parts of two files to belong together, in words."""

    @abstractmethod
    def outcomes_to_dict(self, outcomes: Mapping[int, Any]) -> dict[str, Any]:
        """Plain values for JSON, from which `outcomes_from_dict` makes the outcomes."""

    @abstractmethod
    def outcomes_from_dict(self, values: Mapping[str, Any]) -> dict[int, Any]:
        """Make outcomes, their errors counted. Raises KeyError, TypeError or ValueError for damaged values."""

    @abstractmethod
    def data_dict(self, score: Any) -> dict[str, Any]:
        """Return the entry of a result on the data; `score` is one of all items.

        Apart from speech, whose entries are of old: `name`, `items` (how many) and `item` (the word for one).
        """

    # ---- words ----

    @abstractmethod
    def describe(self) -> str:
        """Return the amount and the name of the data, for the heading of a result."""

    @abstractmethod
    def speed_line(self, seconds: float) -> str:
        """Return the line that gives the seconds of computing for one unit of `extent`."""

    def notes(self) -> list[str]:
        """Return remarks that belong beside the scores."""
        return []

    def remarks(self) -> list[str]:
        """Return remarks on how the outcomes are made."""
        return []

    def aligned(self, score: Any, count: int) -> list[str]:
        """Return the outcomes of the `count` items with the largest amounts, each beside what was wanted."""
        return []

    def facts_dict(self) -> dict[str, Any]:
        """Further entries of a result."""
        return {"measures": [measure.to_dict() for measure in self.measures]}


@dataclass(frozen=True)
class System:
    """A network of a study: full precision, or the digital one or a chip of the hardware that a hash names."""

    role: Literal["full_precision", "digital", "chip"]
    hardware: str = ""
    trial: int = 0


@dataclass(frozen=True)
class CheckpointFacts:
    """The identity of the checkpoint that was evaluated."""

    path: Path
    kind: str
    sha256: str
