"""A new architecture needs one registration."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from memsim.asr.architectures import ARCHITECTURES, Architecture, find_architecture
from memsim.asr.corpora import load_corpus
from memsim.asr.data import FeatureSource, evaluation_batches
from memsim.asr.kinds import CTC
from memsim.asr.models.frontend import Count, RecogniserConfig
from memsim.asr.recogniser import build, load_recogniser
from memsim.asr.running import input_statistics, transcribe
from memsim.asr.tokens import CharacterTokens
from memsim.asr.utterances import Utterance
from memsim.errors import InputError
from memsim.storage.checkpoint import load_checkpoint, save_checkpoint


class Config(RecogniserConfig):
    stride: Count


class Strided(nn.Module):
    """Every so many frames as they are, to log-probabilities."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.stride = config.stride
        self.linear = nn.Linear(config.features.mel_bins, config.tokens)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(features[:, :: self.stride]).log_softmax(dim=-1), -(-lengths // self.stride)


@pytest.fixture
def utterance() -> Utterance:
    return load_corpus("demo", limit=1).utterances[0]


def test_a_network_of_one_s_own_is_saved_loaded_and_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, utterance: Utterance
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "strided", Architecture(Config, Strided, CTC()))
    torch.manual_seed(0)
    fresh = build("strided", Config(stride=4), CharacterTokens(tuple(" ab")), "kaldi")
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, fresh.model.state_dict(), {"kind": "model", **fresh.metadata()})
    loaded = load_recogniser(load_checkpoint(path))
    assert loaded.config == fresh.config == Config(stride=4, tokens=4)
    assert isinstance(loaded.kind, CTC)
    source = FeatureSource(loaded.features)
    texts = [transcribe(recogniser, evaluation_batches([utterance], source)) for recogniser in (fresh, loaded)]
    assert texts[0] == texts[1] != [""]
    assert input_statistics(loaded, [utterance], source).keys() == {"linear"}


@pytest.mark.parametrize(
    ("name", "found"),
    [("conformer", "unknown architecture 'conformer'"), ([], "unknown architecture a list"), (None, "missing")],
)
def test_names_that_are_none(name: object, found: str) -> None:
    with pytest.raises(InputError, match=rf"{found} \(known: conformer_ctc"):
        find_architecture(name)


def test_the_places_of_a_ctc_are_its_frames() -> None:
    log_probs = torch.randn(2, 3, 4, dtype=torch.bfloat16).log_softmax(dim=-1)
    outputs = CTC().outputs(nn.Identity(), log_probs, torch.tensor([3, 1]), [])
    assert outputs.log_probs.dtype == torch.float32
    assert outputs.valid.tolist() == [[True, True, True], [True, False, False]]
