"""The inputs of a Hugging Face recogniser, as its own feature extractor computes them from a waveform."""

from __future__ import annotations

import json
from typing import Any, Literal

import torch
from torch import Tensor

from memsim.asr.hugging_face.files import CONFIG, PREPROCESSOR, as_folder, require_transformers
from memsim.config.json_input import parse_json_object
from memsim.config.schema import Section
from memsim.errors import InputError

WHISPER = "WhisperFeatureExtractor"
"""The class of the extractor that gives [bins, frames], of as many seconds of any utterance."""


LEAST_SECONDS = 0.1
"""The length to which shorter utterances are filled up with silence, since networks need some frames."""


class HuggingFaceFeatures(Section):
    """The settings of a feature extractor of transformers, as the text of its file."""

    kind: Literal["hugging_face"]
    sample_rate_hz: int
    preprocessor: str
    """The text of `preprocessor_config.json`."""

    @property
    def longest_seconds(self) -> float | None:
        """The length of an utterance beyond which nothing is heard, 30 s for Whisper; None without a limit."""
        settings = parse_json_object(self.preprocessor, PREPROCESSOR[0])
        if settings.get("feature_extractor_type") != WHISPER:
            return None
        return float(settings.get("chunk_length", 30))


class HuggingFaceExtractor:
    """The features of one utterance: [samples] -> [frames, bins], or [samples] normalised as the network wants them.

    Frames that the extractor masks as padding are left out. Whisper's, which the network hears, are all equal and kept
    once: the last frame stands for all that follow.
    """

    def __init__(self, config: HuggingFaceFeatures) -> None:
        self._config = config
        self._extract = load_extractor({PREPROCESSOR[0]: config.preprocessor})

    def __call__(self, waveform: Tensor) -> Tensor:
        """Return the features of a waveform [samples]."""
        missing = round(LEAST_SECONDS * self._config.sample_rate_hz) - len(waveform)
        waveform = torch.nn.functional.pad(waveform, (0, max(0, missing)))
        values = self._extract(waveform.numpy(), sampling_rate=self._config.sample_rate_hz, return_tensors="pt")
        features: Tensor = values[self._extract.model_input_names[0]][0].float()
        if is_bins_first(self._extract):
            return _without_padding(features.T)
        mask = values.get("attention_mask")
        return features if mask is None else features[: int(mask[0].sum())]


def features_of(preprocessor: str, config: str) -> HuggingFaceFeatures:
    """Return the settings of the features that the text of a `preprocessor_config.json` describes.

    Where it names no class, as in older folders, the text of `config.json` tells which it is. Raises InputError where
    transformers has no such feature extractor.
    """
    try:
        extract = load_extractor({PREPROCESSOR[0]: preprocessor, CONFIG: config})
        settings = parse_json_object(preprocessor, PREPROCESSOR[0])
        settings.setdefault("feature_extractor_type", type(extract).__name__)
        rate = int(extract.sampling_rate)
    except InputError:
        raise
    except Exception as error:  # transformers may raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{PREPROCESSOR[0]}: no feature extractor can be made of it ({reason:.100})") from None
    return HuggingFaceFeatures(kind="hugging_face", sample_rate_hz=rate, preprocessor=json.dumps(settings))


def is_bins_first(extract: Any) -> bool:
    """Return whether an extractor of transformers gives [bins, frames], as Whisper's does."""
    return type(extract).__name__ == WHISPER


def load_extractor(files: dict[str, str]) -> Any:
    """Return transformers' feature extractor for the files of a folder. It raises what transformers raises."""
    transformers = require_transformers("feature extractor of a Hugging Face folder")
    with as_folder(files) as folder:
        return transformers.AutoFeatureExtractor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _without_padding(features: Tensor) -> Tensor:
    """Cut the frames at the end of [frames, bins] that equal the last one, but for the first of them."""
    differ = (features != features[-1]).any(dim=1).nonzero()
    kept = int(differ[-1]) + 2 if len(differ) else 1
    return features[:kept].contiguous()


def padded_to(features: Tensor, lengths: Tensor, frames: int) -> Tensor:
    """Pad [batch, n, bins] to [batch, frames, bins] with each utterance's last frame."""
    last = features[torch.arange(len(features), device=features.device), lengths.to(features.device) - 1]
    place = torch.arange(frames, device=features.device)[None, :, None]
    room = torch.nn.functional.pad(features, (0, 0, 0, max(0, frames - features.shape[1])))[:, :frames]
    return torch.where(place < lengths.to(features.device)[:, None, None], room, last[:, None])
