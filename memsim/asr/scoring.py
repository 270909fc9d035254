"""Word and character error rates, counted by jiwer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jiwer

from memsim.asr.text import canonical
from memsim.errors import InputError
from memsim.units import counted


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

    def to_dict(self) -> dict[str, float | int]:
        """Return the entries of a result file."""
        return {
            "wer": self.wer,
            "cer": self.cer,
            "hits": self.hits,
            "substitutions": self.substitutions,
            "insertions": self.insertions,
            "deletions": self.deletions,
            **({} if self.loss is None else {"loss": self.loss}),
        }

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
    if not any(reference.strip() for reference in references):
        raise InputError(
            f"{counted(len(references), 'reference holds', 'references hold')} no words, so there is no word error rate"
        )
    references, hypotheses = list(map(canonical, references)), list(map(canonical, hypotheses))
    words = jiwer.process_words(references, hypotheses)
    characters = jiwer.process_characters(references, hypotheses)
    return Score(
        wer=words.wer,
        cer=characters.cer,
        hits=words.hits,
        substitutions=words.substitutions,
        insertions=words.insertions,
        deletions=words.deletions,
        words=sum(map(len, words.references)),
        characters=sum(map(len, characters.references)),
        utterance_errors=tuple(
            (_errors(alignment), len(reference))
            for alignment, reference in zip(words.alignments, words.references, strict=True)
        ),
        references=tuple(references),
        hypotheses=tuple(hypotheses),
    )


def align(reference: str, hypothesis: str) -> str:
    """Return three lines as sclite prints them: the texts word under word, `*` for missing words, and S, D or I."""
    counted = jiwer.process_words([reference], [hypothesis])
    shown: str = jiwer.visualize_alignment(counted, show_measures=False, skip_correct=False)
    return shown.partition("\n\n")[2].rstrip()


def _errors(alignment: Sequence[jiwer.AlignmentChunk]) -> int:
    """The substitutions, insertions and deletions of one aligned utterance."""
    return sum(
        max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
        for chunk in alignment
        if chunk.type != "equal"
    )
