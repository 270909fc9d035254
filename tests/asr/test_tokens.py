from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memsim.asr.tokens import CharacterTokens
from memsim.errors import InputError


def test_characters_are_sorted_after_the_blank() -> None:
    tokens = CharacterTokens.from_texts(["no", "on it"])
    assert tokens.characters == (" ", "i", "n", "o", "t")
    assert tokens.blank_id == 0
    assert tokens.vocab_size == len(tokens) == 6
    assert tokens.encode("no it") == [3, 4, 1, 2, 5]


def test_the_space_is_always_a_token() -> None:
    assert CharacterTokens.from_texts(["yes"]).characters == (" ", "e", "s", "y")
    assert CharacterTokens.from_texts([]).characters == (" ",)


@given(st.text())
def test_decode_inverts_encode(text: str) -> None:
    tokens = CharacterTokens.from_texts([text])
    ids = tokens.encode(text)
    assert tokens.decode(ids) == text
    assert all(0 < i < tokens.vocab_size for i in ids)


@given(st.lists(st.text()))
def test_json_round_trip(texts: list[str]) -> None:
    tokens = CharacterTokens.from_texts(texts)
    document = tokens.to_json()
    assert json.loads(document)["kind"] == "characters"
    assert CharacterTokens.from_json(document) == tokens


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
        ('{"kind": "phonemes"}', "kind is 'phonemes', and only 'characters' is known"),
        ('{"kind": "characters"}', "must be a list of strings"),
        ('{"kind": "characters", "characters": [1]}', "must be a list of strings"),
        ('{"kind": "characters", "characters": ["ab"]}', "must be single characters"),
        ('{"kind": "characters", "characters": ["a", "a"]}', "must differ"),
    ],
)
def test_bad_json(document: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        CharacterTokens.from_json(document)
