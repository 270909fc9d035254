"""Fixtures with the corpus of tones, and a recogniser that knows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from memsim.asr.corpora import Corpus
from tests.training.tones import PLAIN, job, record, run


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return record(tmp_path_factory.mktemp("tones"))


@pytest.fixture(scope="session")
def start(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recogniser in full precision that knows the tones."""
    out = tmp_path_factory.mktemp("start") / "float.safetensors"
    run(job(corpus, out, PLAIN.model_copy(update={"epochs": 25})))
    return out
