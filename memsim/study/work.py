"""The work of one process of a study."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from memsim.asr.corpora import Corpus
from memsim.asr.data import FeatureSource
from memsim.asr.recogniser import Recogniser
from memsim.evaluate import CACHED_BYTES, Runner, Subject, part_score, targets_of
from memsim.parts import Part
from memsim.study.plan import Network, Study, StudyFacts, Unit
from memsim.units import counted

Done = Generator[tuple[Network, Part], None, None]
"""Parts, as they are done; closed, it leaves the rest."""


@dataclass(frozen=True)
class Tally:
    """Of some transcripts: how many, their word errors, and the words of their references."""

    utterances: int
    errors: int
    words: int


def tally(texts: Mapping[int, str], corpus: Corpus) -> Tally:
    """The errors of transcripts, by their utterances' numbers."""
    score = part_score(Part(texts, 0.0), corpus)
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
        """There are `utterances` transcripts to make, over all networks; an earlier run has made `done` of them."""

    def step(self, network: Network, more: Tally) -> None:
        """A batch more is done."""


class Unwatched:
    """A watcher that looks away."""

    def begin(self, facts: StudyFacts, utterances: int, done: int) -> None: ...

    def step(self, network: Network, more: Tally) -> None: ...


class Evaluator:
    """Runs units of a study. It keeps the subject of the last one, and some features."""

    def __init__(self, study: Study, device: str = "cpu", first: Subject | None = None) -> None:
        self._study, self._device = study, device
        self._runner: Runner | None = None
        self._subject = None if first is None else (0, first)

    def run(self, unit: Unit, on_batch: Callable[[Network, Tally], None], stop: Callable[[], bool]) -> Part:
        """What the network of `unit` makes of its batches, or of those before `stop`."""
        subject = self._subject_of(unit.network)
        corpus = self._study.corpus
        if self._runner is None:
            source = FeatureSource(subject.recogniser.features, cache_bytes=CACHED_BYTES)
            targets = targets_of(subject.recogniser, corpus) if self._study.with_losses else None
            seconds = self._study.facts.seconds
            self._runner = Runner(corpus, source, self._study.groups, seconds, self._device, targets=targets)

        def heed(texts: Mapping[int, str]) -> bool:
            on_batch(unit.network, tally(texts, corpus))
            return stop()

        batches = [self._study.groups[batch] for batch in unit.batches]
        return self._runner.part(_recogniser(subject, unit.network), batches, heed)

    def _subject_of(self, network: Network) -> Subject:
        points = self._study.facts.points
        if self._subject is None or not points[self._subject[0]].has(network):
            self._subject = None  # free before the next is made
            number = next(number for number, point in enumerate(points) if point.has(network))
            self._subject = (number, self._study.subject(number))
        return self._subject[1]


def _recogniser(subject: Subject, network: Network) -> Recogniser:
    """`network` of `subject`, ready to run."""
    if network.role == "chip":
        return replace(subject.recogniser, model=subject.chip(network.trial))
    if network.role == "digital":
        return replace(subject.recogniser, model=subject.digital)
    if subject.full_precision is None:
        raise ValueError("the study has no full-precision weights")
    return subject.full_precision
