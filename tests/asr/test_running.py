"""Runs of a recogniser over batches of speech."""

from __future__ import annotations

from pathlib import Path

import pytest

from memsim.asr import running
from memsim.asr.corpora import load_corpus
from memsim.asr.data import FeatureSource
from memsim.asr.recogniser import load_recogniser
from memsim.storage.checkpoint import load_checkpoint


@pytest.mark.parametrize("is_long", [False, True])
def test_progress_of_a_calibration_that_takes_long_says_what_shortens_it(
    tiny_recogniser: Path, monkeypatch: pytest.MonkeyPatch, is_long: bool
) -> None:
    monkeypatch.setattr(running, "SOON_SECONDS", 0.0)
    monkeypatch.setattr(running, "LONG_SECONDS", 0.0 if is_long else 1e9)
    recogniser = load_recogniser(load_checkpoint(tiny_recogniser))
    heard: list[tuple[object, ...]] = []
    utterances = load_corpus("demo", limit=2).utterances
    running.calibration_data(
        recogniser, utterances, FeatureSource(recogniser.features), lambda *state: heard.append(state)
    ).collect({})
    detail = "fewer with --calibration-utterances N" if is_long else ""
    assert ("calibration, pass 1", 0.5, detail, 2, "utterances") in heard
