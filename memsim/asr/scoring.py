"""Word and character error rates, counted by jiwer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import jiwer

from memsim.asr.text import canonical
from memsim.errors import InputError
from memsim.units import counted

BABBLE = 2.0
"""The length, in lengths of the reference, above which a hypothesis counts as babbling."""
BABBLE_WORDS = 10
"""The number of words beyond that length from which the hypothesis of a single utterance counts as babbling."""
CUT_SHORT = 0.5
"""The length, in lengths of the reference, below which a hypothesis counts as cut short."""
CUT_SHORT_WORDS = 10
"""The number of words of the reference beyond those of a hypothesis from which this counts as cut short."""


@dataclass(frozen=True)
class TextErrors:
    """The errors of one hypothesis against its reference, both in the form of `canonical`."""

    reference: str
    hypothesis: str
    hits: int
    substitutions: int
    insertions: int
    deletions: int
    character_errors: int
    characters: int
    """The number of characters of the reference, including spaces."""

    @property
    def word_errors(self) -> int:
        """Substitutions, insertions and deletions of words."""
        return self.substitutions + self.insertions + self.deletions

    @property
    def words(self) -> int:
        """The number of words in the reference."""
        return self.hits + self.substitutions + self.deletions


@dataclass(frozen=True)
class Score:
    """The errors of hypotheses against references.

    Rates are fractions of the references (0.25 is 25 %) and may exceed 1. `hits`, `substitutions`, `insertions` and
    `deletions` count words; `words` and `characters` (spaces included) count the references.
    """

    wer: float
    cer: float
    hits: int
    substitutions: int
    insertions: int
    deletions: int
    words: int
    characters: int
    utterance_errors: tuple[tuple[int, int], ...]
    """(word errors, words of the reference) of each utterance."""
    references: tuple[str, ...]
    hypotheses: tuple[str, ...]
    loss: float | None = None
    """The recogniser's loss per token, as a mean over utterances; None where it was not computed."""

    @classmethod
    def of(cls, utterances: Sequence[TextErrors], loss: float | None = None) -> Self:
        """Return the errors of all `utterances` together. Raises InputError where their references hold no words."""
        words = sum(each.words for each in utterances)
        if not words:
            count = counted(len(utterances), "reference holds", "references hold")
            raise InputError(f"{count} no words, so there is no word error rate")
        characters = sum(each.characters for each in utterances)
        return cls(
            wer=sum(each.word_errors for each in utterances) / words,
            cer=sum(each.character_errors for each in utterances) / characters,
            hits=sum(each.hits for each in utterances),
            substitutions=sum(each.substitutions for each in utterances),
            insertions=sum(each.insertions for each in utterances),
            deletions=sum(each.deletions for each in utterances),
            words=words,
            characters=characters,
            utterance_errors=tuple((each.word_errors, each.words) for each in utterances),
            references=tuple(each.reference for each in utterances),
            hypotheses=tuple(each.hypothesis for each in utterances),
            loss=loss,
        )

    @cached_property
    def babbling(self) -> tuple[int, ...]:
        """The numbers of utterances whose hypothesis has over BABBLE_WORDS more than BABBLE times the reference's."""
        return tuple(
            i
            for i, (text, (_, words)) in enumerate(zip(self.hypotheses, self.utterance_errors, strict=True))
            if len(text.split()) > BABBLE * words + BABBLE_WORDS
        )

    @property
    def wer_without_babbling(self) -> float | None:
        """The WER of the utterances that are not `babbling`; None where their references hold no words."""
        kept = [each for i, each in enumerate(self.utterance_errors) if i not in self.babbling]
        words = sum(words for _, words in kept)
        return sum(errors for errors, _ in kept) / words if words else None

    @cached_property
    def cut_short(self) -> tuple[int, ...]:
        """The numbers of utterances whose hypothesis ends early.

        It has less than CUT_SHORT times the words of the reference, and over CUT_SHORT_WORDS words fewer.
        """
        return tuple(
            i
            for i, (text, (_, words)) in enumerate(zip(self.hypotheses, self.utterance_errors, strict=True))
            if len(text.split()) < min(CUT_SHORT * words, words - CUT_SHORT_WORDS)
        )

    def errors_of(self, utterances: Sequence[int]) -> int:
        """Return the word errors of these `utterances` together."""
        return sum(self.utterance_errors[i][0] for i in utterances)

    def to_dict(self) -> dict[str, Any]:
        """Return the entries of a result file."""
        names = ["wer", "cer", "hits", "substitutions", "insertions", "deletions"]
        if self.loss is not None:
            names.append("loss")
        found: dict[str, Any] = {name: getattr(self, name) for name in names}
        if self.babbling:
            found |= {"babbling": len(self.babbling), "wer_without_babbling": self.wer_without_babbling}
        if self.cut_short:
            found |= {"cut_short": len(self.cut_short), "cut_short_errors": self.errors_of(self.cut_short)}
        return found

    def worst(self, count: int) -> list[int]:
        """Return the numbers of at most `count` utterances with word errors, the most errors first."""
        wrong = [i for i, (errors, _) in enumerate(self.utterance_errors) if errors]
        return sorted(wrong, key=lambda i: (-self.utterance_errors[i][0], self.utterance_errors[i][1]))[:count]

    def to_detailed_dict(self) -> dict[str, Any]:
        """Return `to_dict` with the word errors of every utterance."""
        return {**self.to_dict(), "utterance_errors": [errors for errors, _ in self.utterance_errors]}


def score(references: Sequence[str], hypotheses: Sequence[str]) -> Score:
    """Count the errors of `hypotheses`, which may be empty, against the `references` at the same places.

    Both are compared in the form of `canonical`; the caller brings them into one text style first.

    Raises InputError when their numbers differ, or when the references hold no words, so that there is no rate.
    """
    if len(references) != len(hypotheses):
        raise InputError(
            f"{counted(len(references), 'reference')} but {len(hypotheses)} hypotheses; there must be one for each"
        )
    return Score.of(count_errors(references, hypotheses) if references else [])


def count_errors(references: Sequence[str], hypotheses: Sequence[str]) -> list[TextErrors]:
    """Return the errors of each of `hypotheses` against the reference at the same place."""
    references, hypotheses = list(map(canonical, references)), list(map(canonical, hypotheses))
    words = jiwer.process_words(references, hypotheses).alignments
    characters = jiwer.process_characters(references, hypotheses).alignments
    found = []
    for reference, hypothesis, own, letters in zip(references, hypotheses, words, characters, strict=True):
        right, *wrong = _counts(letters)
        length = right + wrong[0] + wrong[2]
        found.append(TextErrors(reference, hypothesis, *_counts(own), sum(wrong), length))
    return found


def align(reference: str, hypothesis: str) -> str:
    """Return three lines as sclite prints them: the texts word under word, `*` for missing words, and S, D or I."""
    counted = jiwer.process_words([reference], [hypothesis])
    shown: str = jiwer.visualize_alignment(counted, show_measures=False, skip_correct=False)
    return shown.partition("\n\n")[2].rstrip()


def _counts(alignment: Sequence[jiwer.AlignmentChunk]) -> tuple[int, int, int, int]:
    """The hits, substitutions, insertions and deletions of one aligned text."""
    found = dict.fromkeys(("equal", "substitute", "insert", "delete"), 0)
    for chunk in alignment:
        found[chunk.type] += max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
    return found["equal"], found["substitute"], found["insert"], found["delete"]
