"""wav2vec 2.0 and HuBERT against torchaudio's networks, and independence of the utterances in a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio.pipelines._wav2vec2 import utils

from memsim.asr.external import bundle_config, bundles
from memsim.asr.models.wav2vec2 import Wav2Vec2Config, wav2vec2_ctc
from memsim.config.schema import Schema
from memsim.config.yaml_file import Config
from memsim.errors import InputError

SMALL = {
    "extractor_conv_layer_config": [[8, 10, 5], [8, 3, 2]],
    "encoder_embed_dim": 8,
    "encoder_pos_conv_kernel": 6,
    "encoder_pos_conv_groups": 2,
    "encoder_num_layers": 2,
    "encoder_num_heads": 2,
    "encoder_ff_interm_features": 12,
}
BASE, LARGE = "WAV2VEC2_ASR_BASE_960H", "HUBERT_ASR_LARGE"


def config_of(name: str, **parameters: Any) -> Wav2Vec2Config:
    schema = Schema(Wav2Vec2Config)
    changes = Config.from_mapping({"parameters": {**SMALL, **parameters}}, "changes")
    config = schema.validate(schema.merge(bundle_config(name, bundles()[name]), changes))
    tokens = config.own_tokens
    assert tokens is not None
    return config.model_copy(update={"tokens": len(tokens)})


def network_of(name: str) -> tuple[nn.Module, nn.Module]:
    """memsim's network and torchaudio's, with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own = wav2vec2_ctc(config_of(name)).eval()
    bundle = bundles()[name]
    model = utils._get_model(bundle._model_type, {**bundle._params, **SMALL})
    if bundle._normalize_waveform:
        model = utils._extend_model(model, normalize_waveform=True)
    model.load_state_dict(own.state_dict())  # under the names that the bundle's own file has
    return own, model.eval()


def waves(*samples: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [0.1 + 0.2 * torch.randn(n, generator=generator) for n in samples]


@pytest.mark.parametrize("name", [BASE, LARGE])
@torch.no_grad()
def test_an_utterance_gives_what_torchaudio_gives_whatever_it_is_padded_with(name: str) -> None:
    own, theirs = network_of(name)
    utterances = waves(400, 1003, 701)
    batch = nn.utils.rnn.pad_sequence(utterances, batch_first=True)
    batch[0, 400:] = 7.0  # padding of any value
    log_probs, frames = own(batch, torch.tensor([len(u) for u in utterances]))
    assert log_probs.shape[::2] == (3, 29)
    for got, length, utterance in zip(log_probs, frames, utterances, strict=True):
        wanted = theirs(utterance[None])[0][0].log_softmax(dim=-1)
        assert len(wanted) == length
        torch.testing.assert_close(got[:length], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [BASE, LARGE])
@torch.no_grad()
def test_short_and_empty_utterances_have_no_frames(name: str) -> None:
    own, _ = network_of(name)
    batch = nn.utils.rnn.pad_sequence(waves(600, 19, 0), batch_first=True)
    log_probs, frames = own(batch, torch.tensor([600, 19, 0]))
    assert frames.tolist() == [59, 0, 0]
    assert log_probs.isfinite().all()
    alone, frames = own(F.pad(batch[1:2, :19], (0, 0)), torch.tensor([19]))
    assert frames.tolist() == [0]
    assert alone.isfinite().all()


@pytest.mark.parametrize("name", sorted(bundles()))
def test_every_bundles_config_describes_its_network(name: str) -> None:
    bundle = bundles()[name]
    config = Schema(Wav2Vec2Config).validate(bundle_config(name, bundle))
    labels = bundle.get_labels()
    assert config.own_tokens is not None
    assert len(config.own_tokens) == len(labels) == bundle._params["aux_num_out"]
    assert config.own_tokens.decode(range(1, len(labels))) == "".join(labels[1:]).lower().replace("|", " ")
    assert config.features.sample_rate_hz == bundle.sample_rate
    with torch.device("meta"):
        own = wav2vec2_ctc(config.model_copy(update={"tokens": len(labels)}))
        theirs = torchaudio.models.wav2vec2_model(**bundle._params)
    prefix = "model." if bundle._normalize_waveform else ""
    shapes = {f"{prefix}{key}": value.shape for key, value in theirs.state_dict().items()}
    assert {key: value.shape for key, value in own.state_dict().items()} == shapes


def test_only_recognisers_are_bundles() -> None:
    assert BASE in bundles()
    assert not {"WAV2VEC2_BASE", "WAVLM_BASE", "MMS_FA"} & bundles().keys()


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"encoder_num_heads": 3}, "encoder_num_heads: 3 must divide encoder_embed_dim (8)"),
        ({"encoder_pos_conv_groups": 3}, "encoder_pos_conv_groups: 3 must divide encoder_embed_dim (8)"),
        ({"extractor_mode": "batch_norm"}, "extractor_mode: expected group_norm or layer_norm"),
        ({"layers": 3}, "layers: unknown key"),
    ],
)
def test_shapes_that_cannot_be(changes: dict[str, Any], found: str) -> None:
    with pytest.raises(InputError) as error:
        config_of(BASE, **changes)
    assert found in str(error.value)
