"""Conventions of writing transcripts, which a word error rate depends on.

TED-LIUM writes `it 's`, in two words. Kaldi's recipe joins them before scoring; RWTH's systems, the paper's among
them, keep them split, which gives more and easier words. The same recogniser has another WER under each.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping

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


TEXT_STYLES: Mapping[str, Callable[[str], str]] = {"kaldi": _joined, "rwth": _split}
"""Functions that bring a transcript into a style, by the style's name. Both lower-case it and leave single spaces.

- `kaldi`: a word that begins with an apostrophe is joined to the one before: `it 's` -> `it's`
  (Kaldi, egs/tedlium/s5_r2, local/join_suffix.py).
- `rwth`: words stay as the corpus splits them: `it 's`.
"""


def normalise(text: str, style: str = "kaldi") -> str:
    """Return `text` in the convention `style`, a key of TEXT_STYLES. Applying it twice changes nothing more.

    Raises InputError for an unknown style.
    """
    if style not in TEXT_STYLES:
        raise InputError(f"text style {style!r} is unknown; available: {', '.join(TEXT_STYLES)}")
    return TEXT_STYLES[style](text)
