"""Tokens of a recogniser, as a training recipe asks for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from memsim.asr.audio import duration_seconds
from memsim.asr.corpora import Corpus, corpus_lexicon
from memsim.asr.features import Features, longest_seconds
from memsim.asr.lexicon import load_lexicon
from memsim.asr.tokens import CharacterTokens, PhonemeTokens, PieceTokens, Tokens
from memsim.errors import InputError
from memsim.listener import Listener
from memsim.training.recipe import CORPUS, TargetsConfig
from memsim.units import counted


def make_tokens(config: TargetsConfig, texts: Iterable[str], data: str, root: Path | None) -> Tokens:
    """Make tokens for the transcripts `texts`; the lexicon `corpus` is that of `data`, whose root is `root`.

    Raises:
        InputError: There is no lexicon, or an optional package is not installed.
    """
    texts = list(texts)
    if config.kind == "characters":
        return CharacterTokens.from_texts(texts)
    if config.kind == "pieces":
        return PieceTokens.from_texts(texts, config.pieces)
    source = corpus_lexicon(data, root) if config.lexicon == CORPUS else config.lexicon
    return PhonemeTokens.from_lexicon(load_lexicon(source), texts)


def pronounceable(corpus: Corpus, tokens: Tokens, listener: Listener) -> Corpus:
    """Return the utterances all of whose words are in the lexicon of `tokens`, and warn of the others.

    Tokens other than phonemes have no lexicon and keep all utterances. A large corpus has words that its own lexicon
    lacks.

    Raises:
        InputError: More than half of the utterances have such words, so that the lexicon is not one of this corpus.
    """
    if not isinstance(tokens, PhonemeTokens):
        return corpus
    known = tokens.lexicon.pronunciations
    kept = tuple(u for u in corpus.utterances if all(word in known for word in u.text.split()))
    missing = Counter(word for u in corpus.utterances for word in u.text.split() if word not in known)
    some = ", ".join(word for word, _ in missing.most_common(5))
    left_out = f"{len(corpus.utterances) - len(kept)} of {counted(len(corpus.utterances), 'utterance')}"
    where = f"{corpus.name} {corpus.split}"
    if 2 * len(kept) < len(corpus.utterances):
        raise InputError(
            f"{where}: the lexicon lacks words of {left_out} (such as {some}); choose another by --lexicon FILE"
        )
    if missing:
        listener.warn(f"{where}: {left_out} have words that the lexicon lacks ({some}) and are left out")
    return replace(corpus, utterances=kept)


def heard_whole(corpus: Corpus, features: Features, slowest: float, listener: Listener) -> Corpus:
    """Return the utterances that a recogniser with `features` hears whole at `slowest` times their speed.

    A text whose end is not heard would teach a network to make up words. Warns of the utterances that are left out.

    Raises:
        InputError: None is left, or audio cannot be read.
    """
    if (longest := longest_seconds(features)) is None:
        return corpus
    kept = tuple(u for u in corpus.utterances if duration_seconds(u) <= longest * slowest)
    where, limit = f"{corpus.name} {corpus.split}", f"{longest * slowest:g} s"
    if not kept:
        raise InputError(f"{where}: all utterances are longer than {limit}, so the recogniser hears none to its end")
    if left_out := len(corpus.utterances) - len(kept):
        listener.warn(
            f"{where}: {left_out} of {counted(len(corpus.utterances), 'utterance')} are longer than {limit}, so that "
            "the recogniser would not hear their ends, and are left out"
        )
    return replace(corpus, utterances=kept)
