"""The parts that layers of transformers' recognisers play, by the names that memsim's own recognisers give such layers.

A hardware spec keeps the output layer, the front end and depthwise convolutions digital by the globs `output*`,
`frontend.*` and `*.depthwise`. A layer of another family is found by its own name and by the one that it has here.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from torch import nn

OUTPUTS = ("proj_out", "lm_head", "ctc_head", "*.lm_head", "output_projection")
FRONT_ENDS = {
    "whisper": ("model.encoder.conv[12]",),
    "moonshine": ("model.encoder.conv[123]",),
    "speech_to_text": ("model.encoder.conv.*",),
    "parakeet_ctc": ("*encoder.subsampling.*",),
}
"""Globs of the layers before the first block of the encoder, by model type."""
FRONT_END_OF_OTHERS = ("*feature_extractor.*", "*feature_projection.*")
"""The front ends of wav2vec 2.0 and the families that follow it."""
DEPTHWISE = ("*.depthwise_conv",)


def role_name(model: nn.Module, name: str) -> str | None:
    """Return the name that layer `name` of a network of transformers would have in memsim's own recognisers.

    None for layers of the encoder's and decoder's blocks, and for networks that are not recognisers of transformers.
    """
    config: Any = getattr(model, "config", None)
    family = getattr(config, "model_type", None)
    if not isinstance(family, str) or not hasattr(model, "main_input_name") or model.main_input_name == "input_ids":
        return None
    if _matches(name, OUTPUTS):
        return f"output.{name}"
    if _matches(name, FRONT_ENDS.get(family, FRONT_END_OF_OTHERS)):
        return f"frontend.{name}"
    if _matches(name, DEPTHWISE):
        return f"{name}.depthwise"
    return None


def _matches(name: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)
