"""Running networks on one corpus: transcripts, losses, clipped conversions and time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from memsim.asr.audio import duration_seconds
from memsim.asr.corpora import Corpus
from memsim.asr.ctc import encode_text
from memsim.asr.data import BATCH_SECONDS, Batch, FeatureSource, bucket, evaluation_batch
from memsim.asr.recogniser import Recogniser
from memsim.asr.running import Progress, mapping_or_none, outputs
from memsim.asr.scoring import Score, score
from memsim.evaluation.partial_results import ChipFacts, PartialResult

CACHED_BYTES = 1e8
"""Features of this size, of nearly two hours, are kept between passes; what is beyond is read again by each."""


OnBatch = Callable[[Mapping[int, str]], bool]
"""Called with the transcripts of a batch, by their utterances' numbers; whether to stop after it."""


def part_score(part: PartialResult, corpus: Corpus) -> Score:
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

    def part(self, recogniser: Recogniser, groups: Iterable[Sequence[int]], on_batch: OnBatch) -> PartialResult:
        """What `recogniser` makes of the batches `groups`, or of those before `on_batch` says to stop."""
        mapping = mapping_or_none(recogniser)
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
            if on_batch(found):
                break
        elapsed = time.perf_counter() - started
        if mapping is None:
            return PartialResult(texts, elapsed, losses=losses)
        part = PartialResult(texts, elapsed, mapping.clips(), ChipFacts.of(mapping), losses)
        mapping.release()
        return part

    def counted(self, name: str) -> OnBatch:
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
