"""Utterances of a corpus."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from memsim.asr.utterances import Utterance, utterances_sha256


def test_data_are_known_by_what_is_said() -> None:
    utterances = [Utterance("1", Path("1.wav"), "a"), Utterance("2", Path("2.wav"), "b")]
    known = utterances_sha256(utterances)
    assert utterances_sha256([replace(utterance, audio=Path("x.wav")) for utterance in utterances]) == known
    assert utterances_sha256(utterances[::-1]) != known
    assert utterances_sha256([replace(utterances[0], text="c"), utterances[1]]) != known
