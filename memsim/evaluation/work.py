"""The work of one process of a study."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from memsim.asr.corpora import Corpus
from memsim.asr.data import FeatureSource
from memsim.asr.recogniser import Recogniser
from memsim.evaluation.partial_results import PartialResult
from memsim.evaluation.runner import CACHED_BYTES, Runner, part_score, targets_of
from memsim.evaluation.study import Study, StudyFacts, System, WorkItem
from memsim.evaluation.target import EvaluationTarget
from memsim.units import counted

Done = Generator[tuple[System, PartialResult], None, None]
"""Parts, as they are done; closed, it leaves the rest."""


@dataclass(frozen=True)
class Tally:
    """Of some transcripts: how many, their word errors, and the words of their references."""

    utterances: int
    errors: int
    words: int


def tally(texts: Mapping[int, str], corpus: Corpus) -> Tally:
    """The errors of transcripts, by their utterances' numbers."""
    score = part_score(PartialResult(texts, 0.0), corpus)
    return Tally(len(texts), score.substitutions + score.insertions + score.deletions, score.words)


@dataclass(frozen=True)
class Resumed:
    """What an earlier run has left of the work of this one: work items, chips and transcripts, each of how many."""

    items: tuple[int, int]
    chips: tuple[int, int]
    transcripts: tuple[int, int]

    def __str__(self) -> str:
        (items, all_items), (chips, all_chips), (texts, all_texts) = self.items, self.chips, self.transcripts
        left = all_items - items
        rest = f"goes on with the other {left}" if left else "nothing is left to run"
        return (
            f"found {items} of {counted(all_items, 'work item')} ({chips} of {counted(all_chips, 'chip')}, "
            f"{texts:,} of {counted(all_texts, 'transcript')}); {rest}"
        )


class Watcher(Protocol):
    """Told how a study goes."""

    def begin(self, facts: StudyFacts, utterances: int, done: int) -> None:
        """There are `utterances` transcripts to make, over all systems; an earlier run has made `done` of them."""

    def step(self, system: System, more: Tally) -> None:
        """A batch more is done."""


class Unwatched:
    """A watcher that looks away."""

    def begin(self, facts: StudyFacts, utterances: int, done: int) -> None: ...

    def step(self, system: System, more: Tally) -> None: ...


class Evaluator:
    """Runs items of a study. It keeps the target of the last one, and some features."""

    def __init__(self, study: Study, device: str = "cpu", first: EvaluationTarget | None = None) -> None:
        self._study, self._device = study, device
        self._runner: Runner | None = None
        self._target = None if first is None else (0, first)

    def run(self, item: WorkItem, on_batch: Callable[[System, Tally], None], stop: Callable[[], bool]) -> PartialResult:
        """What the system of `item` makes of its batches, or of those before `stop`."""
        target = self._target_of(item.system)
        corpus = self._study.corpus
        if self._runner is None:
            source = FeatureSource(target.recogniser.features, cache_bytes=CACHED_BYTES)
            targets = targets_of(target.recogniser, corpus) if self._study.with_losses else None
            seconds = self._study.facts.seconds
            self._runner = Runner(corpus, source, self._study.groups, seconds, self._device, targets=targets)

        def tell(texts: Mapping[int, str]) -> bool:
            on_batch(item.system, tally(texts, corpus))
            return stop()

        batches = [self._study.groups[batch] for batch in item.batches]
        return self._runner.part(_recogniser(target, item.system), batches, tell)

    def _target_of(self, system: System) -> EvaluationTarget:
        points = self._study.facts.points
        if self._target is None or not points[self._target[0]].has(system):
            self._target = None  # free before the next is made
            number = next(number for number, point in enumerate(points) if point.has(system))
            self._target = (number, self._study.target(number))
        return self._target[1]


def _recogniser(target: EvaluationTarget, system: System) -> Recogniser:
    """`system` of `target`, ready to run."""
    if system.role == "chip":
        return replace(target.recogniser, model=target.chip(system.trial))
    if system.role == "digital":
        return replace(target.recogniser, model=target.digital)
    if target.full_precision is None:
        raise ValueError("the study has no full-precision weights")
    return target.full_precision
