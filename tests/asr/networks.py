"""Tiny recognisers of every shipped architecture."""

from __future__ import annotations

import torch

from memsim.asr.models.transducer import PredictionConfig
from memsim.asr.recogniser import Recogniser, build, load_model_config
from memsim.asr.tokens import CharacterTokens

SMALL = ("conformer-small", "lstm-small", "conformer-transducer-small", "lstm-transducer-small")
TRANSDUCERS = SMALL[2:]
NARROW = {"width": 8, "blocks": 2, "heads": 2, "feed_forward_width": 12, "kernel_frames": 5, "layers": 2, "hidden": 4}


def tiny(name: str, characters: str = " abc", seed: int = 0, **other: object) -> Recogniser:
    """The shipped model of that name with its own strides, and next to no width, in evaluation mode."""
    architecture, shipped = load_model_config(name)
    changes = {
        "features": shipped.features.model_copy(update={"mel_bins": 8}),
        "frontend": tuple(conv.model_copy(update={"channels": 3}) for conv in shipped.frontend),
        "prediction": PredictionConfig(embedding=5, hidden=6),
        "joiner_width": 7,
        **NARROW,
        **other,
    }
    known = {key: value for key, value in changes.items() if key in type(shipped).model_fields}
    config = type(shipped).model_validate(shipped.model_copy(update=known).model_dump())
    torch.manual_seed(seed)
    built = build(architecture, config, CharacterTokens(tuple(characters)), "kaldi")
    built.model.eval()
    return built
