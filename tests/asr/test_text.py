from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsim.asr.text import TEXT_STYLES, normalise
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


@given(text=st.text(alphabet="aB' \t\n"), style=st.sampled_from(sorted(TEXT_STYLES)))
def test_normalising_twice_changes_nothing(text: str, style: str) -> None:
    once = normalise(text, style)
    assert normalise(once, style) == once
    assert once == once.strip()
    assert "  " not in once


def test_unknown_style_names_the_known() -> None:
    with pytest.raises(InputError, match="'sclite' is unknown; there are: kaldi, rwth"):
        normalise("yes", "sclite")
