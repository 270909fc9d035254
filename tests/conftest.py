"""Fixtures for several test files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from memsim.asr.corpora import load_corpus
from memsim.asr.data import FeatureSource
from memsim.asr.recogniser import build, load_model_config
from memsim.asr.running import input_statistics
from memsim.asr.tokens import CharacterTokens
from memsim.config.resources import ASSETS
from memsim.device import DeviceModel, load_device
from memsim.storage.checkpoint import save_checkpoint

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: its kernels then run in Python, on the CPU

os.environ.pop("COLUMNS", None)  # of the terminal, which pytest-xdist sets; tables in tests have the width of pipes
os.environ["MEMSIM_AUDIO_ROOTS"] = str(ASSETS)  # manifests of tests name the bundled speech where it lies

# How long an example takes says nothing on cores that others use too. The same code gets the same examples, and so the
# same verdict; `make test-slow` tries new ones (--hypothesis-profile explore).
settings.register_profile("memsim", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=300)
settings.load_profile("memsim")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests that need a GPU where torch sees none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device (make gpu runs this where there is one)"))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """One thread, so that the tests are quick on cores that others use too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def device() -> DeviceModel:
    return load_device("synaptogen")


@pytest.fixture(scope="session")
def tiny_recogniser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of an untrained Conformer of one narrow block, with statistics: quick on any hardware."""
    corpus = load_corpus("demo", limit=3)
    architecture, shipped = load_model_config("conformer-small")
    changes = {"width": 8, "blocks": 1, "heads": 2, "feed_forward_width": 12}
    tokens = CharacterTokens.from_texts(u.text for u in load_corpus("demo").utterances)
    torch.manual_seed(0)
    recogniser = build(architecture, shipped.model_copy(update=changes), tokens, "kaldi")
    tensors = dict(recogniser.model.state_dict())
    for layer, measured in input_statistics(recogniser, corpus.utterances, FeatureSource(recogniser.features)).items():
        tensors |= measured.to_tensors(layer)
    path = tmp_path_factory.mktemp("checkpoints") / "tiny.safetensors"
    save_checkpoint(path, tensors, {"kind": "model", **recogniser.metadata()})
    return path


@pytest.fixture(scope="session")
def an4_root() -> Path:
    """The folder of AN4 in TED-LIUM's layout (../shared/data/an4, else $MEMSIM_DATA/tedlium2); skips without it."""
    candidates = [Path(__file__).resolve().parents[2] / "shared" / "data" / "an4"]
    if home := os.environ.get("MEMSIM_DATA"):
        candidates.append(Path(home) / "tedlium2")
    for root in candidates:
        # an AN4 speaker: TED-LIUM itself has none of that name
        if (root / "TEDLIUM_release2" / "dev" / "stm" / "fwxs.stm").is_file():
            return root
    pytest.skip(f"AN4 is not in {' or '.join(map(str, candidates))}")
