"""N-gram language models of words: their estimation with Witten-Bell smoothing, and ARPA files."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import math
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from memsim.errors import InputError
from memsim.storage.packed import Unpacked

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"

Ngram = tuple[str, ...]

_NEVER = -99.0
"""The log10 probability that ARPA files give the beginning of a sentence, which follows no word."""


@dataclass(frozen=True)
class NgramModel:
    """A back-off model: the log10 probabilities of its n-grams, and the log10 weights of backing off from them."""

    order: int
    log10_probabilities: Mapping[Ngram, float]
    log10_backoffs: Mapping[Ngram, float]

    def log10_probability(self, word: str, history: Sequence[str]) -> float:
        """Return the log10 probability of `word` after the last `order` - 1 words of `history`.

        A word that is not in the model is taken as <unk>.
        """
        context = tuple(history)[max(0, len(history) - self.order + 1) :]
        word = word if (word,) in self.log10_probabilities else UNKNOWN
        weight = 0.0
        while (ngram := (*context, word)) not in self.log10_probabilities:
            weight += self.log10_backoffs.get(context, 0.0)
            context = context[1:]
        return weight + self.log10_probabilities[ngram]

    def perplexity(self, sentences: Iterable[Sequence[str]]) -> float:
        """Return the perplexity of the words and the ends of `sentences`; unknown words are taken as <unk>."""
        total, count = 0.0, 0
        for sentence in sentences:
            words = [w if (w,) in self.log10_probabilities else UNKNOWN for w in sentence]
            padded = [BEGIN, *words, END]
            total += sum(self.log10_probability(padded[i], padded[:i]) for i in range(1, len(padded)))
            count += len(padded) - 1
        return float(10 ** (-total / count))

    def to_arpa(self) -> str:
        """Return the text of an ARPA file."""
        sizes = Counter(len(ngram) for ngram in self.log10_probabilities)
        lines = ["\\data\\", *(f"ngram {n}={sizes[n]}" for n in range(1, self.order + 1))]
        for n in range(1, self.order + 1):
            lines += ["", f"\\{n}-grams:"]
            for ngram in sorted(ngram for ngram in self.log10_probabilities if len(ngram) == n):
                backoff = f"\t{self.log10_backoffs[ngram]:.7f}" if ngram in self.log10_backoffs else ""
                lines.append(f"{self.log10_probabilities[ngram]:.7f}\t{' '.join(ngram)}{backoff}")
        return "\n".join([*lines, "", "\\end\\", ""])


def witten_bell(sentences: Iterable[Sequence[str]], order: int) -> NgramModel:
    """Estimate the interpolated Witten-Bell model of `sentences`, each a sequence of words.

    P(w | h) = (c(hw) + T(h) P(w | h')) / (c(h) + T(h)), where c(h) is the number of words seen after h, T(h) the number
    of different ones, and h' is h without its first word; below unigrams, every word, </s> and <unk> are equally likely
    (Witten and Bell, The zero-frequency problem, IEEE Trans. Inf. Theory 1991; in this form Chen and Goodman, An
    empirical study of smoothing techniques for language modeling, 1999, section 2.5). The method needs no counts of
    counts, which small corpora lack.

    Raises InputError when `order` is below 1, there are no words or a word is one of the model's own marks.
    """
    if order < 1:
        raise InputError(f"order is {order}; the order of an n-gram model is at least 1")
    counts = _counts(sentences, order)
    words = sorted(word for (word,) in counts[1] if word != END)
    if not words:
        raise InputError("there are no words to estimate a language model from")
    probabilities: dict[Ngram, float] = {(word,): 1 / (len(words) + 2) for word in (*words, END, UNKNOWN)}
    backoffs: dict[Ngram, float] = {}
    for n in range(1, order + 1):
        followers: defaultdict[Ngram, list[Ngram]] = defaultdict(list)
        for ngram in counts[n]:
            followers[ngram[:-1]].append(ngram)
        shorter = dict(probabilities)
        for history, seen in followers.items():
            different, total = len(seen), sum(counts[n][ngram] for ngram in seen)
            backoffs[history] = different / (total + different)
            for ngram in seen:
                lower = shorter[ngram[1:]] if n > 1 else shorter[ngram]
                probabilities[ngram] = (counts[n][ngram] + different * lower) / (total + different)
            if n == 1:
                probabilities[UNKNOWN,] = shorter[UNKNOWN,] * backoffs.pop(())
    logs = {ngram: math.log10(probability) for ngram, probability in probabilities.items()}
    return NgramModel(order, logs | {(BEGIN,): _NEVER}, {h: math.log10(weight) for h, weight in backoffs.items()})


def _counts(sentences: Iterable[Sequence[str]], order: int) -> dict[int, Counter[Ngram]]:
    """Count the n-grams that end in a word or </s>, by their length; a sentence begins with one <s>."""
    counts: dict[int, Counter[Ngram]] = {n: Counter() for n in range(1, order + 1)}
    for sentence in sentences:
        if marks := {BEGIN, END, UNKNOWN}.intersection(sentence):
            raise InputError(f"{marks.pop()} is a mark of language models; it cannot be a word")
        padded = (BEGIN, *sentence, END)
        for end in range(2, len(padded) + 1):
            for n in range(1, min(order, end) + 1):
                counts[n][padded[end - n : end]] += 1
    return counts


def read_arpa_words(path: Path) -> list[str]:
    """Read the words of an ARPA file (plain, .gz, .bz2 or .xz) without its marks, in its order.

    Raises InputError for any other file; KenLM's binary files do not give their words.
    """
    words = []
    for number, line in _unigram_lines(path):
        fields = line.split()
        if not 2 <= len(fields) <= 3:
            raise InputError(f"{path}:{number}: expected `log10-probability word [log10-backoff]`, found {line!r}")
        if not (fields[1].startswith("<") and fields[1].endswith(">")):
            words.append(fields[1])
    return words


def require_possible_counts(path: Path) -> None:
    """Raise InputError for a file whose ARPA header gives impossible numbers of n-grams, on which KenLM crashes.

    Other files pass, whatever they are.
    """
    with suppress(OSError, *_NOT_PACKED), _opened(path, errors="replace") as file:
        for number, line in enumerate(file, start=1):
            line = line.strip()
            if line and not line.startswith(("\\data\\", "ngram")):
                return
            if re.match(r"ngram[^=]*=\s*(-|\+?[0-9]{14})", line):
                raise InputError(f"{path}:{number}: expected a number of n-grams from 0 to 10^13, found {line[:80]!r}")


_NOT_PACKED = (EOFError, zlib.error, lzma.LZMAError)
_OPENERS: Mapping[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def _opened(path: Path, errors: str = "strict") -> IO[str]:
    """Open a file as text, unpacked by its suffix; `errors` is what is done with bytes that are no text."""
    if path.suffix not in _OPENERS:
        return path.open(encoding="utf-8", errors=errors)
    unpacked = Unpacked(_OPENERS[path.suffix](path), path)
    return io.TextIOWrapper(io.BufferedReader(unpacked), encoding="utf-8", errors=errors)


def _unigram_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number, line) of the section of unigrams."""
    inside = False
    try:
        with _opened(path) as file:
            for number, line in enumerate(file, start=1):
                line = line.strip()
                if line.startswith("\\"):
                    if inside:
                        return
                    inside = line == "\\1-grams:"
                elif inside and line:
                    yield number, line
    except (UnicodeDecodeError, gzip.BadGzipFile, *_NOT_PACKED):
        raise InputError(
            f"{path}: not an ARPA file; a binary language model does not give its words: name them by --lexicon FILE"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not inside:
        raise InputError(f"{path}: not an ARPA file: it has no section \\1-grams:")
