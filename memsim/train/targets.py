"""What a training's outputs stand for, as its recipe says."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from memsim.asr.corpora import corpus_lexicon
from memsim.asr.lexicon import load_lexicon
from memsim.asr.tokens import CharacterTokens, PhonemeTokens, PieceTokens, Tokens
from memsim.train.config import CORPUS, TargetsConfig


def make_tokens(config: TargetsConfig, texts: Iterable[str], data: str, root: Path | None) -> Tokens:
    """Tokens for the transcripts `texts`; `data` and `root` say which corpus's lexicon is `corpus`.

    Raises InputError where there is no lexicon, it lacks a word of the texts, or an extra package is not installed.
    """
    texts = list(texts)
    if config.kind == "characters":
        return CharacterTokens.from_texts(texts)
    if config.kind == "pieces":
        return PieceTokens.from_texts(texts, config.pieces)
    source = corpus_lexicon(data, root) if config.lexicon == CORPUS else config.lexicon
    lexicon = load_lexicon(source)
    lexicon.restricted((word for text in texts for word in text.split()), str(source))
    return PhonemeTokens.from_lexicon(lexicon, texts)
