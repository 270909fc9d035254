"""Whole networks of Hugging Face transformers with random weights: every layer that can be on arrays is.

They are run where transformers is installed: `pip install 'memsim[hf]'`.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import memsim
from memsim.errors import InputError
from memsim.nn.chip import mapping_of
from tests.nn.layers import EXACT, normal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]

IDS, TARGETS = torch.arange(14).view(2, 7) * 3 + 4, torch.arange(10).view(2, 5) * 4 + 5
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 60}
MOE = {**BERT, "num_key_value_heads": 1, "num_experts_per_tok": 2, "head_dim": 8}
WHISPER = {
    f"{side}_{key}": value
    for side in ("encoder", "decoder")
    for key, value in {"layers": 2, "attention_heads": 2, "ffn_dim": 24}.items()
}
WAV2VEC2 = {
    **BERT,
    "conv_dim": (16, 16),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}
WAVES, SPECTRA, IMAGES = {"input_values": normal(2, 1200)}, normal(2, 20, 40), {"pixel_values": normal(2, 3, 16, 16)}


class Case(NamedTuple):
    """A network with random weights: its class and config's, the config, what it reads, how many matrices it has."""

    kind: str
    model: str
    config: Mapping[str, Any]
    inputs: Mapping[str, Tensor]
    matrices: int
    digital: tuple[str, ...] = ("Embedding", "LayerNorm")  # what of it has weights and stays digital
    exclude: tuple[str, ...] = ()


CASES = {
    "GPT-2": Case(
        "GPT2Config",
        "GPT2LMHeadModel",  # all Conv1D but for the output, which is tied to the embedding
        {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 60, "n_positions": 32, **TOKENS},
        {"input_ids": IDS},
        9,
    ),
    "BERT": Case(
        "BertConfig",
        "BertForMaskedLM",
        BERT,
        {"input_ids": IDS},
        14,
        ("BertLMPredictionHead", "Embedding", "LayerNorm"),
    ),
    "ALBERT": Case("AlbertConfig", "AlbertModel", {**BERT, "embedding_size": 8}, {"input_ids": IDS}, 8),
    "T5": Case(
        "T5Config",
        "T5ForConditionalGeneration",
        {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": 60},
        {"input_ids": IDS, "decoder_input_ids": TARGETS},
        33,
        ("Embedding", "T5LayerNorm"),
    ),
    "Llama": Case(
        "LlamaConfig",
        "LlamaForCausalLM",
        {**BERT, "num_key_value_heads": 1, **TOKENS},
        {"input_ids": IDS},
        15,
        ("Embedding", "LlamaRMSNorm"),
    ),
    "Mixtral": Case(  # experts in one tensor each of two
        "MixtralConfig",
        "MixtralForCausalLM",
        {**BERT, "num_key_value_heads": 1, "num_local_experts": 2, **TOKENS},
        {"input_ids": IDS},
        17,
        ("Embedding", "MixtralRMSNorm", "MixtralTopKRouter"),
    ),
    "Qwen3-MoE": Case(
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {**MOE, "moe_intermediate_size": 24, "num_experts": 3, **TOKENS},
        {"input_ids": IDS},
        21,
        ("Embedding", "Qwen3MoeRMSNorm", "Qwen3MoeTopKRouter"),
    ),
    "GPT-OSS": Case(  # with biases, stored [experts, in, out], with a gate of its own
        "GptOssConfig",
        "GptOssForCausalLM",
        {**MOE, "num_local_experts": 2, **TOKENS},
        {"input_ids": IDS},
        17,
        ("Embedding", "GptOssAttention", "GptOssRMSNorm", "GptOssTopKRouter"),
    ),
    "GraniteMoE": Case(
        "GraniteMoeConfig",
        "GraniteMoeForCausalLM",
        {**MOE, "num_local_experts": 2, **TOKENS},
        {"input_ids": IDS},
        17,
        ("Embedding", "GraniteMoeRMSNorm", "GraniteMoeTopKRouter"),
    ),
    "Llama 4": Case(  # all experts read at once, [experts, in, out]; a router that is a layer with its own forward
        "Llama4TextConfig",
        "Llama4ForCausalLM",
        {**MOE, "intermediate_size_mlp": 24, "num_local_experts": 2, "interleave_moe_layer_step": 1, **TOKENS},
        {"input_ids": IDS},
        25,
        ("Embedding", "Llama4TextRMSNorm"),
    ),
    "Parakeet": Case(  # a head that turns its input and its result round
        "ParakeetCTCConfig",
        "ParakeetForCTC",
        {
            "vocab_size": 20,
            "encoder_config": {
                **{key: value for key, value in BERT.items() if key != "vocab_size"},
                **{"num_mel_bins": 16, "subsampling_conv_channels": 8},
            },
        },
        {"input_features": normal(2, 64, 16), "attention_mask": torch.ones(2, 64, dtype=torch.long)},
        31,
        ("BatchNorm1d", "LayerNorm", "ParakeetEncoderAttention"),
    ),
    "ViT": Case(
        "ViTConfig", "ViTModel", {**BERT, "image_size": 16, "patch_size": 4}, IMAGES, 14, ("LayerNorm", "ViTEmbeddings")
    ),
    "Whisper": Case(
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        {
            **WHISPER,
            **{"d_model": 16, "num_mel_bins": 20, "vocab_size": 60, "decoder_start_token_id": 1},
            **{"max_source_positions": 20, "max_target_positions": 20, **TOKENS},
        },
        {"input_features": SPECTRA, "decoder_input_ids": TARGETS},
        35,
        ("Embedding", "LayerNorm", "WhisperPositionalEmbedding"),
    ),
    "wav2vec 2.0": Case(
        "Wav2Vec2Config", "Wav2Vec2ForCTC", WAV2VEC2, WAVES, 17, ("GroupNorm", "LayerNorm", "Wav2Vec2Model")
    ),
    "HuBERT": Case("HubertConfig", "HubertForCTC", WAV2VEC2, WAVES, 17, ("GroupNorm", "HubertModel", "LayerNorm")),
    "Conformer": Case(
        "Wav2Vec2ConformerConfig",
        "Wav2Vec2ConformerForCTC",
        WAV2VEC2,
        WAVES,
        29,
        ("BatchNorm1d", "GroupNorm", "LayerNorm", "Wav2Vec2ConformerModel", "Wav2Vec2ConformerSelfAttention"),
    ),
    "EnCodec": Case(  # convolutions with weight norms, transposed ones, LSTMs
        "EncodecConfig",
        "EncodecModel",
        {"hidden_size": 16, "num_filters": 4, "codebook_size": 16, "codebook_dim": 16},
        {"input_values": normal(2, 1, 3840)},
        44,
        (),
    ),
    "WavLM": Case(  # projects past its layers
        "WavLMConfig",
        "WavLMForCTC",
        WAV2VEC2,
        WAVES,
        11,
        ("Embedding", "GroupNorm", "LayerNorm", "WavLMAttention", "WavLMModel"),
        ("*.attention.?_proj", "*.attention.out_proj"),
    ),
    "Mamba": Case(  # convolves and scans past its layers
        "MambaConfig",
        "MambaForCausalLM",
        {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 60, "state_size": 4, **TOKENS},
        {"input_ids": IDS},
        7,
        ("Embedding", "MambaMixer", "MambaRMSNorm"),
        ("*.conv1d", "*.dt_proj"),
    ),
}


@pytest.fixture(scope="module", autouse=True)
def offline() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        pytest.importorskip("transformers", reason="pip install 'memsim[hf]'")
        yield


def made(case: Case) -> nn.Module:
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, case.kind)(**case.config)
        return getattr(transformers, case.model)(config).eval()


@torch.no_grad()
def output(network: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    result = network(**inputs)
    names = ("logits", "last_hidden_state", "audio_values")
    return next(getattr(result, name) for name in names if getattr(result, name, None) is not None)


def error(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("name", CASES)
def test_a_network_of_transformers(name: str) -> None:
    case = CASES[name]
    network = made(case)
    wanted = output(network, case.inputs)
    chip = memsim.map_model(network, EXACT, bits=16, exclude=case.exclude)
    mapping = mapping_of(chip)
    assert len(mapping.mapped) == case.matrices
    skipped = {layer.reason for layer in mapping.digital if layer.source is not None}
    assert skipped == {f"--exclude {glob}" for glob in case.exclude}
    others = {layer.reason.removesuffix(" stays digital") for layer in mapping.digital if layer.source is None}
    assert others == set(case.digital)
    assert error(output(chip, case.inputs), wanted) < 1e-3
    spec = {"base": "physical", "tile": {"rows": 32, "cols": 32}, "digital": [], "weights": {"bits": 8}}
    physical = memsim.map_model(network, spec, calibration=[case.inputs], exclude=case.exclude)
    assert 1e-3 < error(output(physical, case.inputs), wanted) < 0.6  # 8 % of each product
    copied = pickle.loads(pickle.dumps(physical))
    for one in (physical, copied):
        mapping_of(one).begin_batch("0")
    assert torch.equal(output(copied, case.inputs), output(physical, case.inputs))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.exclude])
def test_what_must_stay_digital_is_named(name: str) -> None:
    case = CASES[name]
    chip = memsim.map_model(made(case), EXACT, bits=16)
    with pytest.raises(InputError, match=r"computes with this weight itself, .*exclude=\["):
        output(chip, case.inputs)


def test_tied_layers_and_generation() -> None:
    case = CASES["GPT-2"]
    network = made(case)
    chip = memsim.map_model(network, EXACT, bits=16)
    assert chip.transformer.wte.weight is not network.transformer.wte.weight
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    wanted = network.generate(IDS, **options)
    assert torch.equal(chip.generate(IDS, **options), wanted)
    coarse = memsim.map_model(network, EXACT, bits=2)
    assert not torch.equal(output(coarse, case.inputs), output(chip, case.inputs))
