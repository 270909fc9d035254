"""Features that recognisers read, log-mel features or the waveform itself, and the augmentations of training.

Transforms are torchaudio's where it has them; defaults are the settings of arXiv 2505.24721, section 4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field, Tag, model_validator
from pydantic.types import Strict
from torch import Tensor

from memsim.asr.audio_library import torchaudio
from memsim.asr.hugging_face.features import HuggingFaceExtractor, HuggingFaceFeatures
from memsim.config.schema import Section, Within, kind_of, problem

MOST_MASKED_AT_ONCE = 0.2
"""The largest fraction of an utterance that one time mask covers."""


class FeatureConfig(Section):
    """The settings of log-mel features, which a checkpoint keeps: a model needs the features that it was trained on."""

    kind: Literal["log_mel"] = "log_mel"
    sample_rate_hz: Annotated[int, Within(1000, 192000)] = 16000
    window_seconds: Annotated[float, Within(0.002, 1)] = 0.025
    hop_seconds: Annotated[float, Within(0.001, 1)] = 0.010
    mel_bins: Annotated[int, Within(2, 1024)] = 80
    min_hz: Annotated[float, Within(low=0)] = 60.0
    max_hz: Annotated[float, Within(above=0)] = 7600.0
    preemphasis: Annotated[float, Within(0, 1)] = 0.97
    normalise: Literal["utterance"] | None = "utterance"

    @model_validator(mode="after")
    def _band_fits(self) -> FeatureConfig:
        if self.max_hz <= self.min_hz:
            raise problem(f"{self.max_hz} is not above min_hz ({self.min_hz})", key="max_hz")
        if self.max_hz > self.sample_rate_hz / 2:
            raise problem(f"{self.max_hz} is above half of sample_rate_hz ({self.sample_rate_hz})", key="max_hz")
        return self


class WaveformConfig(Section):
    """The waveform as recorded, [samples] within [-1, 1], for networks that compute their own features."""

    kind: Literal["waveform"]
    sample_rate_hz: Annotated[int, Within(1000, 192000)] = 16000


Features = Annotated[
    Annotated[FeatureConfig, Tag("FeatureConfig")]
    | Annotated[WaveformConfig, Tag("WaveformConfig")]
    | Annotated[HuggingFaceFeatures, Tag("HuggingFaceFeatures")],
    kind_of("kind", FeatureConfig, WaveformConfig, HuggingFaceFeatures),
]


class LogMel:
    """Log-mel features of one utterance: [samples] -> [frames, mel_bins], with frames = 1 + samples // hop_samples.

    `normalise: utterance` subtracts each mel bin's mean over the utterance (the channel) and divides by the standard
    deviation over the whole utterance (the loudness), so that an utterance's features depend on itself alone.
    """

    def __init__(self, config: FeatureConfig) -> None:
        self.config = config
        window_samples = round(config.window_seconds * config.sample_rate_hz)
        self.hop_samples = round(config.hop_seconds * config.sample_rate_hz)
        self._fft_samples = 1 << (window_samples - 1).bit_length()
        self._mel = torchaudio.transforms.MelSpectrogram(
            config.sample_rate_hz,
            n_fft=self._fft_samples,
            win_length=window_samples,
            hop_length=self.hop_samples,
            f_min=config.min_hz,
            f_max=config.max_hz,
            n_mels=config.mel_bins,
        )

    def __call__(self, waveform: Tensor) -> Tensor:
        """Return the features [frames, mel_bins] of a waveform [samples]."""
        frames = 1 + len(waveform) // self.hop_samples
        half = self._fft_samples // 2
        if len(waveform) <= half:
            # The transform mirrors that much at both ends, so a shorter utterance is padded with silence.
            waveform = torch.nn.functional.pad(waveform, (0, half + 1))
        emphasised = torchaudio.functional.preemphasis(waveform, self.config.preemphasis)
        log_mel: Tensor = self._mel(emphasised).clamp_min(1e-8).log().T[:frames]
        if self.config.normalise == "utterance":
            log_mel = log_mel - log_mel.mean(dim=0)
            log_mel = log_mel / log_mel.std().clamp_min(1e-3)
        return log_mel


def extractor(config: FeatureConfig | WaveformConfig | HuggingFaceFeatures) -> Callable[[Tensor], Tensor]:
    """Return the function that maps a waveform [samples] to features [frames, mel_bins], or to itself."""
    if isinstance(config, HuggingFaceFeatures):
        return HuggingFaceExtractor(config)
    return LogMel(config) if isinstance(config, FeatureConfig) else lambda waveform: waveform


def longest_seconds(config: FeatureConfig | WaveformConfig | HuggingFaceFeatures) -> float | None:
    """Return the length of speech beyond which nothing is heard, in seconds; None where there is no such limit."""
    return config.longest_seconds if isinstance(config, HuggingFaceFeatures) else None


class AugmentConfig(Section):
    """The settings of SpecAugment, speed perturbation and warping of the mel axis; a maximum of 0 switches one off."""

    speeds: Annotated[tuple[Annotated[float, Within(0.5, 2)], ...], Strict(False), Field(min_length=1)] = (
        0.9,
        1.0,
        1.1,
    )
    time_masks_min: Annotated[int, Within(0)] = 2
    frames_per_time_mask: Annotated[int, Within(1)] = 25  # up to frames / this many masks
    time_mask_frames: Annotated[int, Within(0)] = 20
    frequency_masks_min: Annotated[int, Within(0)] = 2
    frequency_masks_max: Annotated[int, Within(0)] = 5
    frequency_mask_bins: Annotated[int, Within(0)] = 8
    frequency_warp: Annotated[float, Within(low=0, below=0.5)] = 0.0  # the mel axis is stretched by up to this fraction

    @model_validator(mode="after")
    def _masks_have_a_range(self) -> AugmentConfig:
        if 0 < self.frequency_masks_max < self.frequency_masks_min:
            least = f"frequency_masks_min ({self.frequency_masks_min})"
            raise problem(f"{self.frequency_masks_max} is below {least}", key="frequency_masks_max")
        return self


def spec_augment(features: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Warp and mask the features [frames, mel_bins] of one utterance, by draws from `generator`.

    SpecAugment (Park et al., 2019) with the masks of torchaudio's TimeMasking (p=0.2) and FrequencyMasking, which take
    no generator.
    """
    frames, bins = features.shape
    if config.frequency_warp:
        factor = 1 + config.frequency_warp * (2 * torch.rand((), generator=generator) - 1)
        features = _warp_frequency(features, factor)
    most_time_masks = max(config.time_masks_min, frames // config.frames_per_time_mask)
    widest_frames = min(config.time_mask_frames, int(frames * MOST_MASKED_AT_ONCE))
    kept_frames = _kept(frames, widest_frames, config.time_masks_min, most_time_masks, generator)
    widest_bins = min(config.frequency_mask_bins, bins)
    kept_bins = _kept(bins, widest_bins, config.frequency_masks_min, config.frequency_masks_max, generator)
    return features * (kept_frames[:, None] * kept_bins)


def _kept(size: int, widest: int, fewest: int, most: int, generator: torch.Generator) -> Tensor:
    """Draw `fewest` to `most` masks of up to `widest` places: [size], 0 where a mask lies, else 1."""
    count = int(torch.randint(min(fewest, most), most + 1, (), generator=generator))
    widths = torch.rand(count, 1, generator=generator) * widest
    starts = (torch.rand(count, 1, generator=generator) * (size - widths)).long()
    places = torch.arange(size)
    masked = (places >= starts) & (places < starts + widths.long())  # [count, size]
    return (~masked.any(dim=0)).float()


def _warp_frequency(features: Tensor, factor: Tensor) -> Tensor:
    """Stretch the mel axis of [frames, mel_bins] by `factor` from its low end, as another vocal tract would."""
    bins = features.shape[1]
    source = (torch.arange(bins) * factor).clamp_max(bins - 1)
    distance = (torch.arange(bins)[:, None] - source).abs()  # [bins (from), bins (to)]
    return features @ (1 - distance).clamp_min(0)


def perturb_speed(waveform: Tensor, sample_rate_hz: int, factor: float) -> Tensor:
    """Speed a waveform [samples] up by `factor`; both tempo and pitch change."""
    if factor == 1.0:
        return waveform
    faster: Tensor = torchaudio.functional.speed(waveform, sample_rate_hz, factor)[0]
    return faster
