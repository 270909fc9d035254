"""Folders of small random recognisers, as transformers saves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXTS = ["the cat sat on the mat", "every promise of the soul has innumerable fulfilments"]
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "hidden_size": 32}
DECODER_SIZES = {
    **{"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48},
    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "pad_token_id": 0, "bos_token_id": 1},
    **{"eos_token_id": 2, "decoder_start_token_id": 1},
}
CONVOLUTIONS = {
    **{"conv_dim": (16, 16, 16), "conv_stride": (5, 8, 8), "conv_kernel": (10, 8, 8), "num_feat_extract_layers": 3},
    **{"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "pad_token_id": 0},
}
GENERATING = ("whisper", "moonshine", "speech_to_text")
CTC = ("wav2vec2", "wav2vec2-masked", "hubert", "wavlm", "wav2vec2-bert", "parakeet")
FAMILIES = (*CTC, *GENERATING)


def save_folder(folder: Path, family: str) -> Path:
    """Save a random recogniser of `family` with its tokenizer and feature extractor; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    if family == "parakeet":
        tokens = _pieces(folder, transformers.ParakeetTokenizer)
    else:
        tokens = _characters(folder) if family in CTC else _pieces(folder)
    model, extractor = _made(family, tokens)
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


def _made(family: str, tokens: int) -> tuple[Any, Any]:
    t = transformers
    if family == "whisper":
        positions = {"max_source_positions": 500, "max_target_positions": 64}  # it hears 10 s
        config = t.WhisperConfig(vocab_size=tokens, **positions, **DECODER_SIZES)
        return t.WhisperForConditionalGeneration(config), t.WhisperFeatureExtractor(chunk_length=10)
    if family == "speech_to_text":
        config = t.Speech2TextConfig(vocab_size=tokens, conv_channels=16, **DECODER_SIZES)
        return t.Speech2TextForConditionalGeneration(config), t.Speech2TextFeatureExtractor()
    if family == "moonshine":
        layers = {
            f"{part}_{key}": 2
            for part in ("encoder", "decoder")
            for key in ("num_hidden_layers", "num_attention_heads")
        }
        special = {"bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "pad_token_id": 0}
        config = t.MoonshineConfig(vocab_size=tokens, hidden_size=32, intermediate_size=48, **layers, **special)
        extractor = t.Wav2Vec2FeatureExtractor(return_attention_mask=True, do_normalize=False)
        return t.MoonshineForConditionalGeneration(config), extractor
    if family == "wav2vec2-bert":
        config = t.Wav2Vec2BertConfig(vocab_size=tokens, feature_projection_input_dim=160, pad_token_id=0, **SIZES)
        return t.Wav2Vec2BertForCTC(config), t.SeamlessM4TFeatureExtractor()
    if family == "parakeet":
        encoder = {**SIZES, "num_mel_bins": 80, "subsampling_conv_channels": 8}
        config = t.ParakeetCTCConfig(vocab_size=tokens, pad_token_id=tokens - 1, encoder_config=encoder)
        return t.ParakeetForCTC(config), t.ParakeetFeatureExtractor(feature_size=80)
    masked = family == "wav2vec2-masked"
    name = {"hubert": "Hubert", "wavlm": "WavLM"}.get(family, "Wav2Vec2")
    more = {"feat_extract_norm": "layer", "do_stable_layer_norm": True} if masked else {}
    config = getattr(t, f"{name}Config")(vocab_size=tokens, **SIZES, **CONVOLUTIONS, **more)
    return getattr(t, f"{name}ForCTC")(config), t.Wav2Vec2FeatureExtractor(return_attention_mask=masked)


def _characters(folder: Path) -> int:
    """Save the tokenizer of a CTC network that writes upper case; returns the number of tokens."""
    characters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"]
    (folder / "vocab.json").write_text(json.dumps({c: i for i, c in enumerate(characters)}))
    transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    return len(characters)


def _pieces(folder: Path, kind: Any = transformers.PreTrainedTokenizerFast) -> int:
    """Save a tokenizer of byte pairs, whose blank is the last token for Parakeet; returns the number of tokens."""
    special = ["<s>", "</s>"] if kind is transformers.ParakeetTokenizer else ["<pad>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    fast = kind(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    return len(fast)
