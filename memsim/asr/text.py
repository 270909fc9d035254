"""Conventions of writing transcripts, which a word error rate depends on.

TED-LIUM writes `it 's`, in two words. Kaldi's recipe joins them before scoring; RWTH's systems, the paper's among
them, keep them split, which gives more and easier words. The same recogniser has another WER under each.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from memsim.asr.extras import require
from memsim.errors import InputError

_APOSTROPHES = str.maketrans(dict.fromkeys("\u2019\u02bc\uff07", "'"))


def canonical(text: str) -> str:
    """Return `text` in Unicode's composed form (NFC), with typographic apostrophes (U+2019, U+02BC, U+FF07) as `'`.

    Transcripts, hypotheses, lexicons and language models are compared in this form. An opening quotation mark (U+2018)
    is kept.
    """
    return unicodedata.normalize("NFC", text.translate(_APOSTROPHES))


def _split(text: str) -> str:
    return " ".join(canonical(canonical(text).lower()).split())


def _joined(text: str) -> str:
    return re.sub(r" (?=')", "", _split(text))


def _whisper(text: str) -> str:
    return str(_whisper_normaliser()(canonical(text)))


def _whisper_basic(text: str) -> str:
    package = require("transformers.models.whisper.english_normalizer", "text style whisper-basic", "hf")
    return str(package.BasicTextNormalizer()(canonical(text))).strip()


@cache
def _whisper_normaliser() -> Any:
    """Return the English normaliser of transformers with OpenAI's map of British to American spellings.

    Raises InputError where a package is not installed.
    """
    normaliser = require("transformers.models.whisper.english_normalizer", "text style whisper", "hf")
    package = require("whisper_normalizer", "text style whisper", "hf")
    spellings = Path(package.__file__).parent / "normalizers" / "english.json"
    return normaliser.EnglishTextNormalizer(json.loads(spellings.read_text(encoding="utf-8")))


TEXT_STYLES: Mapping[str, Callable[[str], str]] = {
    "kaldi": _joined,
    "rwth": _split,
    "whisper": _whisper,
    "whisper-basic": _whisper_basic,
}
"""Functions that bring a transcript into a style, by the style's name. All lower-case it and leave single spaces.

- `kaldi`: a word that begins with an apostrophe is joined to the one before: `it 's` -> `it's`
  (Kaldi, egs/tedlium/s5_r2, local/join_suffix.py).
- `rwth`: words stay as the corpus splits them: `it 's`.
- `whisper`: case, punctuation, fillers, spelling variants and ways of writing numbers are taken away, for recognisers
  that write text as people do (Radford et al., arXiv 2212.04356, appendix C). Hypotheses are brought into it, too.
- `whisper-basic`: the same for languages other than English, of which case, punctuation and symbols are taken away.
"""
AS_PEOPLE_WRITE = ("whisper", "whisper-basic")
"""The styles of recognisers that write text as people do, into which hypotheses are brought, too."""


def as_scored(hypothesis: str, style: str) -> str:
    """Return a hypothesis as it is compared with transcripts of `style`: in that of AS_PEOPLE_WRITE, or as it is."""
    return normalise(hypothesis, style) if style in AS_PEOPLE_WRITE else hypothesis


def normalise(text: str, style: str = "kaldi") -> str:
    """Return `text` in the convention `style`, a key of TEXT_STYLES. Applying it twice changes nothing more.

    Raises InputError for an unknown style.
    """
    if style not in TEXT_STYLES:
        raise InputError(f"text style {style!r} is unknown; available: {', '.join(TEXT_STYLES)}")
    return TEXT_STYLES[style](text)
