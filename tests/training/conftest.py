"""A fixture with the corpus of tones."""

from __future__ import annotations

import pytest

from memsim.asr.corpora import Corpus
from tests.training.tones import record


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return record(tmp_path_factory.mktemp("tones"))
