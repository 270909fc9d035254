from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsim.asr.lexicon import Lexicon
from memsim.asr.tokens import CharacterTokens, PhonemeTokens, PieceTokens, tokens_from_json
from memsim.errors import InputError


def test_characters_are_sorted_after_the_blank() -> None:
    tokens = CharacterTokens.from_texts(["no", "on it"])
    assert tokens.characters == (" ", "i", "n", "o", "t")
    assert len(tokens) == 6
    assert tokens.encode("no it") == [3, 4, 1, 2, 5]


def test_the_space_is_always_a_token() -> None:
    assert CharacterTokens.from_texts(["yes"]).characters == (" ", "e", "s", "y")
    assert CharacterTokens.from_texts([]).characters == (" ",)


@given(st.text())
def test_decode_inverts_encode(text: str) -> None:
    tokens = CharacterTokens.from_texts([text])
    ids = tokens.encode(text)
    assert tokens.decode(ids) == text
    assert all(0 < i < len(tokens) for i in ids)


@given(st.lists(st.text()))
def test_json_round_trip(texts: list[str]) -> None:
    tokens = CharacterTokens.from_texts(texts)
    document = tokens.to_json()
    assert json.loads(document)["kind"] == "characters"
    assert tokens_from_json(document) == tokens


def test_blanks_decode_to_nothing() -> None:
    tokens = CharacterTokens.from_texts(["no"])
    assert tokens.decode([0, 2, 0, 2, 3, 0]) == "nno"
    assert tokens.decode([]) == ""


@pytest.mark.parametrize("wrong", [-1, 4])
def test_decode_rejects_foreign_ids(wrong: int) -> None:
    with pytest.raises(ValueError, match=rf"token id {wrong} is outside \[0, 4\)"):
        CharacterTokens.from_texts(["no"]).decode([1, wrong])


def test_encode_names_the_unknown_character() -> None:
    with pytest.raises(InputError, match="no token for the character 'ö'; there are tokens for ' no'"):
        CharacterTokens.from_texts(["no"]).encode("nö")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "not JSON"),
        ("[]", "kind is None"),
        ('{"kind": "bytes"}', "kind is 'bytes'; known are characters, phonemes, pieces"),
        ('{"kind": "phonemes"}', "`phonemes` must be a list of strings"),
        ('{"kind": "characters"}', "must be a list of strings"),
        ('{"kind": "characters", "characters": [1]}', "must be a list of strings"),
        ('{"kind": "characters", "characters": ["ab"]}', "must be single characters"),
        ('{"kind": "characters", "characters": ["a", "a"]}', "must differ"),
        ('{"kind": "phonemes", "phonemes": ["B"], "lexicon": 1}', "`lexicon` must be base64 text"),
        ('{"kind": "phonemes", "phonemes": ["B"], "lexicon": "?"}', "`lexicon` must be base64 text"),
        ('{"kind": "phonemes", "phonemes": ["B"], "lexicon": "AAAA"}', "`lexicon` must be compressed text"),
        ('{"kind": "pieces", "model": "AAAA"}', "`model` is not a sentencepiece model"),
    ],
)
def test_bad_json(document: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tokens_from_json(document)


LEXICON = Lexicon({"read": (("R", "EH", "D"), ("R", "IY", "D")), "red": (("R", "EH", "D"),), "a": (("AH",), ("EY",))})
PHONEMES = PhonemeTokens.from_lexicon(LEXICON, ["a red red", "read"])


def test_phonemes_come_with_end_of_word_variants() -> None:
    assert PHONEMES.phonemes == ("AH", "D", "EH", "EY", "IY", "R")
    assert len(PHONEMES) == 13
    assert PHONEMES.separator_id is None
    assert [PHONEMES.symbols[i] for i in PHONEMES.encode("a read")] == ["AH#", "R", "EH", "D#"]
    assert [[PHONEMES.symbols[i] for i in way] for way in PHONEMES.spellings("read")] == [
        ["R", "EH", "D#"],
        ["R", "IY", "D#"],
    ]
    assert PHONEMES.spellings("green") == []


def test_phonemes_are_read_as_the_more_frequent_word() -> None:
    assert PHONEMES.decode(PHONEMES.encode("read a")) == "red a"
    assert PHONEMES.decode(PHONEMES.spellings("read")[1]) == "read"


def test_phonemes_that_are_no_word_stay() -> None:
    r, d, d_end = (PHONEMES.symbols.index(s) for s in ("R", "D", "D#"))
    assert PHONEMES.decode([r, 0, d_end, *PHONEMES.encode("a"), r, d]) == "R_D a R_D"
    with pytest.raises(ValueError, match=r"token id 13 is outside \[0, 13\)"):
        PHONEMES.decode([13])


def test_a_word_without_pronunciation_is_named() -> None:
    with pytest.raises(InputError, match="no pronunciation of 'green' in the lexicon of 3 words"):
        PHONEMES.encode("a green")


@pytest.mark.parametrize(
    ("phonemes", "lexicon", "message"),
    [
        (("B#",), {"b": (("B#",),)}, "do not end in #"),
        (("B", "B"), {"b": (("B",),)}, "must differ"),
        (("B",), {"a": (("EY",),)}, "the phoneme EY, which is not among"),
        (("B",), {"b": (("B",),), "c": ()}, "no pronunciation of c"),
    ],
)
def test_bad_phonemes(phonemes, lexicon, message) -> None:
    with pytest.raises(InputError, match=message):
        PhonemeTokens(phonemes, Lexicon(lexicon))


def test_phonemes_round_trip() -> None:
    assert tokens_from_json(PHONEMES.to_json()) == PHONEMES


def test_pieces_of_words() -> None:
    pytest.importorskip("sentencepiece", reason="the extra lm is not installed")
    texts = ["low lower lowest", "new newer newest"] * 3
    tokens = PieceTokens.from_texts(texts, 20)
    assert len(tokens) == 20
    for text in (*texts, "wet lot"):
        ids = tokens.encode(text)
        assert tokens.decode([0, *ids, 0]) == text
        assert all(0 < i < 20 for i in ids)
    assert len(tokens.encode("lowest")) < len("lowest")
    assert tokens.spellings("lowest") == [tuple(tokens.encode("lowest"))]
    assert tokens.spellings("xyz") == []
    assert tokens_from_json(tokens.to_json()) == tokens == PieceTokens.from_texts(texts, 20)
    with pytest.raises(InputError, match="no token for the character 'x'; it is in none of the word pieces"):
        tokens.encode("low x")
    with pytest.raises(ValueError, match=r"token id 20 is outside"):
        tokens.decode([20])
    with pytest.raises(InputError, match="no 5000 pieces can be found"):
        PieceTokens.from_texts(texts, 5000)


def test_a_character_is_written_as_the_tokens_have_it() -> None:
    decomposed = CharacterTokens(("e", "\u0301", "\u2019", "s"))
    assert decomposed.encode("\u00e9's") == [1, 2, 3, 4]
    assert decomposed.spellings("\u00e9's") == [(1, 2, 3, 4)]
    assert decomposed.missing("\u00eas.") == ["\u00ea", "."]
    assert CharacterTokens(("\u00e9", "e", "\u0301")).encode("\u00e9") == [1]


def test_what_pieces_cannot_write() -> None:
    pieces = PieceTokens.from_texts(["no on", "on no no"], 6)
    assert pieces.missing("no") == []
    assert pieces.missing("n.o") == ["."]
