from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsim.asr.text import TEXT_STYLES, canonical, normalise
from memsim.errors import InputError


@pytest.mark.parametrize(
    ("text", "kaldi", "rwth"),
    [
        ("it 's", "it's", "it 's"),
        ("They 'd  've  SAID so", "they'd've said so", "they 'd 've said so"),
        ("'cause it isn 't", "'cause it isn't", "'cause it isn 't"),
        (" yes\t", "yes", "yes"),
        ("", "", ""),
    ],
)
def test_styles(text: str, kaldi: str, rwth: str) -> None:
    assert normalise(text) == kaldi
    assert normalise(text, "kaldi") == kaldi
    assert normalise(text, "rwth") == rwth


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cafe\u0301", "caf\u00e9"),
        ("It\u2019s", "it's"),
        ("it \u2019s", "it's"),
        ("it\u02bcs it\uff07s", "it's it's"),
        ("\u2018so\u2019", "\u2018so'"),
        ("A\u030aNGSTRO\u0308M", "\u00e5ngstr\u00f6m"),
        ("\u212b", "\u00e5"),
        ("no\u00a0break", "no break"),
    ],
)
def test_one_form_of_unicode(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_other_languages_keep_their_words_and_numbers() -> None:
    """English has fillers such as `um`, which is a word of German, and spells numbers out."""
    assert normalise("Um  zwei \u2013 \u201eSch\u00f6n!\u201c (lacht)", "whisper-basic") == "um zwei sch\u00f6n"
    assert normalise("one hundred", "whisper-basic") == "one hundred"


@given(st.text())
def test_composed_and_decomposed_are_the_same(text: str) -> None:
    composed, decomposed = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    assert normalise(composed) == normalise(decomposed)
    assert canonical(composed) == canonical(decomposed) == canonical(canonical(text))


@given(text=st.text(alphabet="aB'\u2019\u0301\u0130 \t\n"), style=st.sampled_from(sorted(TEXT_STYLES)))
def test_normalising_twice_changes_nothing(text: str, style: str) -> None:
    once = normalise(text, style)
    assert normalise(once, style) == once
    assert once == once.strip()
    assert "  " not in once


def test_unknown_style_names_the_known() -> None:
    with pytest.raises(InputError, match="'sclite' is unknown; available: kaldi, rwth"):
        normalise("yes", "sclite")
