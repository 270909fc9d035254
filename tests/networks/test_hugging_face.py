"""Files of transformers: the command line maps what Python maps, with or without the config beside the file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import nn

import memsim
from memsim.errors import InputError
from memsim.networks.programming import plan_checkpoint, program_checkpoint
from memsim.nn.chip import mapping_of
from memsim.nn.plan import Plan, Selection

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]

SPEC = memsim.load_hardware(
    {"base": "physical", "digital": [], "tile": {"rows": 16, "cols": 16}, "weights": {"bits": 3}}
)
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TEXT = {**SIZES, "vocab_size": 60}
LLAMA = {**TEXT, "num_key_value_heads": 1, **TOKENS}
MOE = {
    **LLAMA,
    **{"num_local_experts": 3, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8},
}
SIDES = {
    f"{side}_{key}": value
    for side in ("encoder", "decoder")
    for key, value in {"layers": 1, "attention_heads": 2, "ffn_dim": 24}.items()
}
WAVES = {
    **TEXT,
    "conv_dim": (16, 16),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}
WHISPER = {**SIDES, "d_model": 16, "vocab_size": 60, "num_mel_bins": 20, **TOKENS}
WHISPER |= {"max_source_positions": 20, "max_target_positions": 20}
MOONSHINE = {
    **{"hidden_size": 16, "intermediate_size": 24, "vocab_size": 60, **TOKENS},
    **{
        f"{side}_num_{what}": n
        for side in ("encoder", "decoder")
        for what, n in (("hidden_layers", 1), ("attention_heads", 2))
    },
}
SPEECH2TEXT = {**SIDES, "d_model": 16, "vocab_size": 60, "input_feat_per_channel": 20, "conv_channels": 16, **TOKENS}
PARAKEET = {"vocab_size": 20, "encoder_config": {**SIZES, "num_mel_bins": 16, "subsampling_conv_channels": 8}}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "vocab_size": 60}

NETWORKS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "WhisperForConditionalGeneration": ("WhisperConfig", WHISPER),
    "MoonshineForConditionalGeneration": ("MoonshineConfig", MOONSHINE),
    "Speech2TextForConditionalGeneration": ("Speech2TextConfig", SPEECH2TEXT),
    "Wav2Vec2ForCTC": ("Wav2Vec2Config", WAVES),
    "HubertForCTC": ("HubertConfig", {**WAVES, "do_stable_layer_norm": True, "feat_extract_norm": "layer"}),
    "Wav2Vec2BertForCTC": ("Wav2Vec2BertConfig", {**TEXT, "feature_projection_input_dim": 20}),
    "ParakeetForCTC": ("ParakeetCTCConfig", PARAKEET),
    "BertForMaskedLM": ("BertConfig", TEXT),
    "BertModel": ("BertConfig", TEXT),
    "GPT2LMHeadModel": ("GPT2Config", {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 60, "n_positions": 20}),
    "LlamaForCausalLM": ("LlamaConfig", LLAMA),
    "Qwen3ForCausalLM": ("Qwen3Config", {**LLAMA, "head_dim": 8, "tie_word_embeddings": True}),
    "MixtralForCausalLM": ("MixtralConfig", MOE),
    "Qwen3MoeForCausalLM": ("Qwen3MoeConfig", MOE),
    "GptOssForCausalLM": ("GptOssConfig", MOE),
    "GraniteMoeForCausalLM": ("GraniteMoeConfig", MOE),
    "T5ForConditionalGeneration": ("T5Config", T5),
    "BartForConditionalGeneration": ("BartConfig", {**SIDES, "d_model": 16, "vocab_size": 60}),
    "ViTForImageClassification": ("ViTConfig", {**SIZES, "image_size": 16, "patch_size": 8}),
}


@pytest.fixture(scope="module", autouse=True)
def offline() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        pytest.importorskip("transformers", reason="pip install 'memsim[hf]'")
        yield


def made(name: str) -> Any:
    import transformers

    config, values = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = getattr(transformers, name)(getattr(transformers, config)(**values)).eval()
        for parameter in network.parameters():
            if parameter.ndim > 2:
                nn.init.normal_(parameter)
    return network


def shown(plan: Plan) -> dict[str, tuple[object, ...]]:
    return {layer.name: (layer.source.shape, layer.source.groups, layer.tiling) for layer in plan.mapped}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_is_mapped_as_its_network(tmp_path: Path, name: str) -> None:
    network = made(name)
    network.save_pretrained(tmp_path, max_shard_size="30KB")
    path = next(tmp_path.glob("*.index.json"), tmp_path / "model.safetensors")
    source = memsim.load_checkpoint(path)
    plan = plan_checkpoint(source, SPEC, Selection())
    assert plan.remarks == (f"network: {name}, by the config.json beside the file",)
    chip = memsim.map_model(network, SPEC)
    assert shown(plan) == shown(mapping_of(chip).plan)
    assert plan.fraction_on_arrays == mapping_of(chip).fraction_on_arrays
    mapped = program_checkpoint(source, SPEC, plan)
    for layer, matrix in mapping_of(chip).layers.items():
        for key, tensor in matrix.state_dict().items():
            assert torch.equal(mapped.tensors[f"{layer}.matrix.{key}"], tensor)
    whole = {id(p): p.numel() for p in network.parameters() if p.ndim > 1}
    biases = {id(p) for n, p in network.named_parameters() if "bias" in n.rpartition(".")[2] and p.ndim > 1}
    counted = sum(size for key, size in whole.items() if key not in biases)
    parts = sum(p.numel() for n, p in network.named_parameters() if n.endswith(("original0", "original1")))
    computed = sum(module.weight.numel() for module in network.modules() if hasattr(module, "parametrizations"))
    assert plan.weights == counted - parts + computed


ALONE = {  # what the file alone does not tell
    "WhisperForConditionalGeneration": {"proj_out"},
    "MoonshineForConditionalGeneration": {"proj_out"},
    "Speech2TextForConditionalGeneration": {"lm_head"},
    "Wav2Vec2ForCTC": {"wav2vec2.encoder.pos_conv_embed.conv"},  # its groups
    "HubertForCTC": {"hubert.encoder.pos_conv_embed.conv"},
    "ParakeetForCTC": {"encoder.subsampling.layers.0"},  # whether it has one input channel
    "BertForMaskedLM": {"cls.predictions.decoder"},
    "GPT2LMHeadModel": {"lm_head"},
    "Qwen3ForCausalLM": {"lm_head"},
    "T5ForConditionalGeneration": {"lm_head"},
    "BartForConditionalGeneration": {"lm_head"},
}
TIED = {"proj_out", "lm_head", "cls.predictions.decoder"}
RENAMED = ("Mixtral", "Qwen3Moe", "GraniteMoe", "ViT")  # whose files have other names than their networks


@pytest.mark.parametrize("name", [name for name in NETWORKS if not name.startswith(RENAMED)])
def test_a_file_alone_says_what_it_does_not_tell(tmp_path: Path, name: str) -> None:
    network = made(name)
    network.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    plan = plan_checkpoint(memsim.load_checkpoint(tmp_path / "model.safetensors"), SPEC, Selection())
    wanted = shown(mapping_of(memsim.map_model(network, SPEC)).plan)
    missing = ALONE.get(name, set())
    assert shown(plan) == {layer: what for layer, what in wanted.items() if layer not in missing}
    if is_tied := bool(missing & TIED):
        assert "do not tell whether an output layer shares" in plan.remarks[0]
    else:
        assert plan.remarks == () or name == "BertModel"  # which has no output layer
    named = {
        layer.name.removesuffix(".weight").removesuffix(".parametrizations.weight.original1") for layer in plan.digital
    }
    assert {layer for layer in missing if not is_tied} <= named


@pytest.mark.parametrize(
    "name", [name for name in NETWORKS if not name.startswith(("Wav2Vec2ForCTC", "Hubert", "Parakeet"))]
)
def test_the_state_dict_alone_tells_all(tmp_path: Path, name: str) -> None:
    """As safetensors' save_model writes it: with the network's names, and those of tied weights in the metadata."""
    network = made(name)
    save_model(network, str(tmp_path / "model.safetensors"))
    plan = plan_checkpoint(memsim.load_checkpoint(tmp_path / "model.safetensors"), SPEC, Selection())
    assert shown(plan) == shown(mapping_of(memsim.map_model(network, SPEC)).plan)


def test_prefixes_and_configs(tmp_path: Path) -> None:
    network = made("MoonshineForConditionalGeneration")
    network.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({f"module.{name}": tensor for name, tensor in load_file(path).items()}, path)
    plan = plan_checkpoint(memsim.load_checkpoint(path), SPEC, Selection(["*embed_tokens"]))
    assert [layer.name for layer in plan.mapped] == ["proj_out"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": 32}, "which has model.encoder.conv1 of [32, 1, 127], but the file of [16, 1, 127]"),
        ({"architectures": ["NoSuchNetwork"]}, "NoSuchNetwork, which cannot be built (ValueError: transformers has no"),
        ({"architectures": ["AutoModel"]}, "AutoModel, which cannot be built (ValueError: transformers has no"),
        ({"model_type": "nosuch"}, "which cannot be built (ValueError: transformers"),
        ({"encoder_num_hidden_layers": 10**9}, "it has more layers than the file has tensors"),
        ({"encoder_num_hidden_layers": 2}, "and the file lacks it"),
        ({"use_pretrained_backbone": True}, "it would download its backbone"),
    ],
)
def test_a_config_that_does_not_fit_is_left_alone_and_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    made("MoonshineForConditionalGeneration").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    plan = plan_checkpoint(memsim.load_checkpoint(tmp_path / "model.safetensors"), SPEC, Selection())
    assert "model.encoder.conv2" in shown(plan)
    assert said in plan.remarks[0]
    assert plan.remarks[0].endswith("layers are found by names and shapes")


def test_a_chip_is_not_saved_without_its_weights(tmp_path: Path) -> None:
    network = made("BertModel")
    chip = memsim.map_model(nn.Sequential(network), SPEC)
    for method in ("save_pretrained", "push_to_hub"):
        with pytest.raises(InputError, match=rf"^{method}: .*memsim\.save_checkpoint\(path, chip\.state_dict\(\)"):
            getattr(chip[0], method)(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    network.save_pretrained(tmp_path / "out")
