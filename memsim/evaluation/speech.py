"""The task of recognisers: a corpus, whose transcripts are scored by word and character error rates."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from pydantic import TypeAdapter
from torch import Tensor

from memsim.asr import scoring
from memsim.asr.audio import duration_seconds
from memsim.asr.corpora import Corpus
from memsim.asr.data import BATCH_SECONDS, FeatureSource, bucket, encode_text, evaluation_batch
from memsim.asr.recogniser import Recogniser
from memsim.asr.running import outputs
from memsim.asr.scoring import TextErrors
from memsim.asr.text import AS_PEOPLE_WRITE, as_scored
from memsim.asr.utterances import Utterance
from memsim.evaluation.measure import CER, WER
from memsim.evaluation.options import describe_decoding
from memsim.evaluation.task import Score, Task
from memsim.evaluation.verdicts import lost_text, why_unusable
from memsim.units import counted

CACHED_BYTES = 1e8
"""Features of this size, of nearly two hours, are kept between passes; each pass reads the others again."""

GREEDY = {"decoder": "greedy"}
"""The entry of a result whose texts are decoded without a search."""

SYNTHETIC = "the speech is synthetic: this shows that the chain works, and says little of real speech"

STRIPPED = "transcripts as they are scored, without the case and punctuation that the recogniser writes"


@dataclass(frozen=True)
class Transcript:
    """The text that a network recognised in one utterance, and its errors."""

    text: str
    errors: TextErrors
    loss: float | None = None
    """The recogniser's loss per token; None where it was not computed."""


class SpeechScore(scoring.Score, Score):
    """The word and character errors of a network, with the interval of its word error rate."""

    @property
    def rates(self) -> dict[str, float]:
        """See `Score`."""
        return {WER.key: self.wer, CER.key: self.cer}

    @property
    def contributions(self) -> Sequence[tuple[float, float]]:
        """The word errors of every utterance, and the words of its reference."""
        return self.utterance_errors

    @cached_property
    def lost(self) -> dict[int, Mapping[str, str]]:
        """Findings of `lost_text`, by the `id` of the score that it was compared with: points share scores."""
        return {}


@dataclass(frozen=True)
class SpeechTask(Task):
    """A corpus on which recognisers are evaluated."""

    corpus: Corpus
    seconds: float
    """The length of all its audio."""
    loss_name: str
    """The loss of the recogniser's kind: CTC or RNN-T."""
    with_losses: bool = False
    decoding: Mapping[str, Any] = field(default_factory=lambda: GREEDY)
    """The decoder, as a result describes it."""
    groups: Sequence[Sequence[int]] = field(default=(), compare=False, repr=False)
    recogniser: Recogniser | None = field(default=None, compare=False, repr=False)
    """The recogniser whose features and tokens are used; None where results are only merged."""

    kind = "speech"
    measures = (WER, CER)
    item = "utterance"
    outcome = "transcript"
    speed_key = "real_time_factor"
    remedies = {  # noqa: RUF012 - a class attribute of a dataclass that is no field
        "full precision": "is the checkpoint trained, and for this language and these transcripts?",
        "digital, quantised": "more --bits, or layers kept digital (--set digital=[GLOB, ...]), lose less",
        "mapped": "--sensitivity shows which layers lose it: keep those digital (--set digital=[GLOB, ...]), or give "
        "them more bits or better programming (--hardware best)",
    }

    @classmethod
    def of(cls, recogniser: Recogniser, corpus: Corpus, *, loss: bool = False) -> SpeechTask:
        """Make the task of `corpus` for a kind of recogniser. Raises InputError when audio cannot be read."""
        durations = [duration_seconds(utterance) for utterance in corpus.utterances]
        like = replace(recogniser, model=None, decoder=None)  # type: ignore[arg-type] # its weights are not sent along
        groups = bucket(durations, BATCH_SECONDS)
        return cls(corpus, sum(durations), recogniser.kind.loss_name, loss, groups=groups, recogniser=like)

    def __len__(self) -> int:
        return len(self.corpus.utterances)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("source", "targets")}

    @property
    def name(self) -> str:
        """See `Task`."""
        return f"{self.corpus.name} {self.corpus.split}"

    @property
    def extent(self) -> float:
        """The seconds of audio."""
        return self.seconds

    @property
    def losses(self) -> str:
        """See `Task`."""
        return self.loss_name if self.with_losses else ""

    def warnings(self) -> list[str]:
        """Warnings about words that the recogniser cannot write or hear, which always count as errors."""
        return [f"{self.name}: {message}" for message in self.corpus.distortions()]

    @cached_property
    def source(self) -> FeatureSource:
        """The features of utterances; some are kept between passes."""
        assert self.recogniser is not None
        return FeatureSource(self.recogniser.features, cache_bytes=CACHED_BYTES)

    @cached_property
    def targets(self) -> list[Tensor]:
        """The token ids of every utterance. Raises InputError for one with a character without a token."""
        assert self.recogniser is not None
        return [encode_text(self.recogniser.tokens, utterance) for utterance in self.corpus.utterances]

    def run_batch(self, network: Recogniser, group: Sequence[int], device: str) -> tuple[dict[int, Transcript], float]:
        """See `Task`. Raises InputError when a transcript has a character without a token and losses are wanted."""
        targets = self.targets if self.with_losses else None
        started = time.perf_counter()
        batch = evaluation_batch(self.corpus.utterances, group, self.source)
        ((_, encoded, frames),) = outputs(network, [batch])
        texts = network.transcribe(encoded, frames)
        seconds = time.perf_counter() - started
        losses: dict[int, float] = {}
        if targets is not None:
            chosen = [targets[i] for i in batch.indices]
            losses = dict(zip(batch.indices, network.losses(encoded, frames, chosen).tolist(), strict=True))
        return self._counted(dict(zip(batch.indices, texts, strict=True)), losses), seconds

    def _counted(self, texts: Mapping[int, str], losses: Mapping[int, float]) -> dict[int, Transcript]:
        """Make outcomes of texts and losses by number."""
        if not texts:
            return {}
        heard = [as_scored(text, self.corpus.text_style) for text in texts.values()]
        errors = scoring.count_errors([self.corpus.utterances[i].text for i in texts], heard)
        return {i: Transcript(texts[i], own, losses.get(i)) for i, own in zip(texts, errors, strict=True)}

    def score(self, outcomes: Mapping[int, Transcript]) -> SpeechScore:
        """See `Task`."""
        found = [outcomes[i] for i in sorted(outcomes)]
        losses = [transcript.loss for transcript in outcomes.values() if transcript.loss is not None]
        loss = math.fsum(losses) / len(losses) if losses else None
        return SpeechScore.of([transcript.errors for transcript in found], loss)

    def with_item_losses(self) -> SpeechTask:
        """See `Task`."""
        return replace(self, with_losses=True)

    def item_losses(self, outcomes: Mapping[int, Transcript]) -> list[float]:
        """See `Task`."""
        return [outcomes[i].loss or 0.0 for i in sorted(outcomes)]

    @classmethod
    def why_unusable(cls, scores: Sequence[scoring.Score]) -> str | None:
        """See `Task`."""
        return why_unusable(scores)

    @classmethod
    def problems(cls, found: SpeechScore, baseline: SpeechScore | None, baseline_name: str) -> Mapping[str, str]:
        """Texts that are empty, repeated, babbling, cut short or lost."""
        if id(baseline) not in found.lost:
            found.lost[id(baseline)] = lost_text(found, baseline, baseline_name)
        return found.lost[id(baseline)]

    def to_dict(self) -> dict[str, Any]:
        """See `Task`."""
        corpus = self.corpus
        return {
            "loss_name": self.loss_name,
            "with_losses": self.with_losses,
            "decoding": self.decoding,
            "data": {
                "name": corpus.name,
                "split": corpus.split,
                "text_style": corpus.text_style,
                "synthetic": corpus.synthetic,
                "skipped": corpus.skipped,
                "simplified": corpus.simplified,
                "unwritable": None if corpus.unwritable is None else asdict(corpus.unwritable),
                **({} if corpus.unheard is None else {"unheard": asdict(corpus.unheard)}),
                "seconds": self.seconds,
                "utterances": [
                    [u.id, str(u.audio), u.text, u.start_seconds, u.end_seconds, u.speaker] for u in corpus.utterances
                ],
            },
        }

    @classmethod
    def from_dict(cls, line: Mapping[str, Any]) -> SpeechTask:
        """See `Task`."""
        data = dict(line["data"])
        keys = [field.name for field in fields(Utterance)]
        data["utterances"] = [dict(zip(keys, values, strict=True)) for values in data["utterances"]]
        seconds = data.pop("seconds")
        found = {key: line[key] for key in ("loss_name", "with_losses", "decoding")}
        return cls(**vars(_WRITTEN.validate_python({**found, "corpus": data, "seconds": seconds})))

    def identity(self) -> dict[str, Any]:
        """See `Task`."""
        corpus = self.corpus
        spoken = repr([(u.id, u.text, u.start_seconds, u.end_seconds) for u in corpus.utterances])
        return {
            "data": f"{self.name} ({counted(len(self), 'utterance')})",
            "text style": corpus.text_style,
            "transcripts": hashlib.blake2b(spoken.encode(), digest_size=6).hexdigest(),
            "losses": "asked for" if self.with_losses else "left out",
            **dict(_flat("decoding", self.decoding)),
        }

    def outcomes_to_dict(self, outcomes: Mapping[int, Transcript]) -> dict[str, Any]:
        """See `Task`."""
        losses = [transcript.loss for transcript in outcomes.values() if transcript.loss is not None]
        return {
            "utterances": list(outcomes),
            "texts": [transcript.text for transcript in outcomes.values()],
            **({"losses": losses} if losses else {}),
        }

    def outcomes_from_dict(self, values: Mapping[str, Any]) -> dict[int, Transcript]:
        """See `Task`."""
        part = _OUTCOMES.validate_python(values)
        if not all(0 <= number < len(self) for number in part.utterances):
            raise ValueError("a transcript for an utterance that is not in the corpus")
        losses = {} if part.losses is None else dict(zip(part.utterances, part.losses, strict=True))
        return self._counted(dict(zip(part.utterances, part.texts, strict=True)), losses)

    def data_dict(self, score: SpeechScore) -> dict[str, Any]:
        """See `Task`."""
        corpus = self.corpus
        return {
            "name": corpus.name,
            "split": corpus.split,
            "text_style": corpus.text_style,
            "synthetic": corpus.synthetic,
            "utterances": len(self),
            "words": corpus.words,
            "seconds": round(self.seconds, 3),
            "utterance_words": [words for _, words in score.utterance_errors],
            **({} if corpus.unwritable is None else {"unwritable": asdict(corpus.unwritable)}),
            **({} if corpus.unheard is None else {"unheard": asdict(corpus.unheard)}),
        }

    def describe(self) -> str:
        """See `Task`."""
        kind = "synthetic speech" if self.corpus.synthetic else "speech"
        words = counted(self.corpus.words, "word")
        return f"{self.name}: {counted(len(self), 'utterance')}, {words}, {self.seconds:.0f} s of {kind}"

    def speed_line(self, seconds: float) -> str:
        """See `Task`."""
        return f"real-time factor of the simulation: {seconds:.3f} (not the speed of a chip)"

    def notes(self) -> list[str]:
        """See `Task`."""
        found = [SYNTHETIC] if self.corpus.synthetic else []
        if self.losses and self.corpus.text_style in AS_PEOPLE_WRITE:
            found.append(f"{self.losses} is that of the {STRIPPED}")
        return found

    def remarks(self) -> list[str]:
        """A line on the beam search."""
        return [describe_decoding(self.decoding)] if "options" in self.decoding else []

    def aligned(self, score: SpeechScore, count: int) -> list[str]:
        """See `Task`."""
        shown = []
        for i in score.worst(count):
            errors, words = score.utterance_errors[i]
            title = f"{self.corpus.utterances[i].id}: {counted(errors, 'error')} in {counted(words, 'word')}"
            shown.append(f"{title}\n{scoring.align(score.references[i], score.hypotheses[i])}\n")
        return shown

    def facts_dict(self) -> dict[str, Any]:
        """The entry on the decoder; the measures are those of every recogniser and are left out."""
        return {"decoding": self.decoding}


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The values in mappings within mappings, each with the path to it."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name} {key}", inner)
    else:
        yield name, value


@dataclass(frozen=True)
class _WrittenTask:
    """The entries of a results file's first line that identify the corpus."""

    corpus: Corpus
    seconds: float
    loss_name: str
    with_losses: bool
    decoding: Mapping[str, Any]


@dataclass(frozen=True)
class _WrittenOutcomes:
    """The entries of a part that are transcripts."""

    utterances: list[int]
    texts: list[str]
    losses: list[float] | None = None


_WRITTEN, _OUTCOMES = TypeAdapter(_WrittenTask), TypeAdapter(_WrittenOutcomes)
