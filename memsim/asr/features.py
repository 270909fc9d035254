"""From a waveform to log-mel features, and the augmentations of the training recipe.

Transforms are torchaudio's; defaults are the settings of arXiv 2505.24721, section 4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
import torchaudio
from pydantic import Field, model_validator
from pydantic.types import Strict
from torch import Tensor

from memsim.schema import Section, Within, problem


class FeatureConfig(Section):
    """Log-mel features. Part of a checkpoint: a model only understands the features that it was trained on."""

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


class LogMel:
    """Log-mel features of one utterance: [samples] -> [frames, mel_bins], with frames = 1 + samples // hop_samples.

    `normalise: utterance` removes each mel bin's mean over the utterance (the channel) and divides by the standard
    deviation over the whole utterance (the loudness), so that an utterance's features depend on nothing but itself.
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
        frames = 1 + len(waveform) // self.hop_samples
        half = self._fft_samples // 2
        if len(waveform) <= half:
            # The transform mirrors that much at both ends; a shorter utterance is continued by silence.
            waveform = torch.nn.functional.pad(waveform, (0, half + 1))
        emphasised = torchaudio.functional.preemphasis(waveform, self.config.preemphasis)
        log_mel: Tensor = self._mel(emphasised).clamp_min(1e-8).log().T[:frames]
        if self.config.normalise == "utterance":
            log_mel = log_mel - log_mel.mean(dim=0)
            log_mel = log_mel / log_mel.std().clamp_min(1e-3)
        return log_mel


class AugmentConfig(Section):
    """SpecAugment, speed perturbation and warping of the mel axis. A probability or maximum of 0 switches one off."""

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


def spec_augment(features: Tensor, config: AugmentConfig) -> Tensor:
    """Warp and mask a batch of features [batch, frames, mel_bins], each utterance by its own draws.

    The draws come from torch's default generator, as torchaudio's masking transforms take no other; the caller seeds
    it (see memsim.train). Masks fall anywhere in the padded length, so batches should hold similar lengths.
    """
    if config.frequency_warp:
        features = _warp_frequency(features, 1 + config.frequency_warp * (2 * torch.rand(len(features)) - 1))
    batch, frames, bins = features.shape
    most_time_masks = max(config.time_masks_min, frames // config.frames_per_time_mask)
    kept_frames = _mask_repeatedly(
        torch.ones(batch, 1, 1, frames),
        torchaudio.transforms.TimeMasking(config.time_mask_frames, iid_masks=True, p=0.2),
        config.time_masks_min,
        most_time_masks,
    )
    kept_bins = _mask_repeatedly(
        torch.ones(batch, 1, bins, 1),
        torchaudio.transforms.FrequencyMasking(min(config.frequency_mask_bins, bins), iid_masks=True),
        config.frequency_masks_min,
        config.frequency_masks_max,
    )
    return features * (kept_bins * kept_frames).squeeze(1).transpose(1, 2)


def _mask_repeatedly(kept: Tensor, mask: Callable[[Tensor], Tensor], fewest: int, most: int) -> Tensor:
    """Apply `mask` to each of `kept` [batch, 1, bins or 1, frames or 1] a number of times drawn for it."""
    times = torch.randint(min(fewest, most), most + 1, (len(kept), 1, 1, 1))
    for done in range(most):
        kept = torch.where(done < times, mask(kept), kept)
    return kept


def _warp_frequency(features: Tensor, factors: Tensor) -> Tensor:
    """Stretch the mel axis of [batch, frames, mel_bins] by `factors` [batch] about its low end: other vocal tracts."""
    bins = features.shape[2]
    source = (torch.arange(bins) * factors[:, None]).clamp_max(bins - 1)  # [batch, bins]
    distance = (torch.arange(bins)[:, None] - source[:, None, :]).abs()  # [batch, bins (from), bins (to)]
    return features @ (1 - distance).clamp_min(0)


def perturb_speed(waveform: Tensor, sample_rate_hz: int, factor: float) -> Tensor:
    """Play [samples] `factor` times as fast (tempo and pitch both change)."""
    if factor == 1.0:
        return waveform
    faster: Tensor = torchaudio.functional.speed(waveform, sample_rate_hz, factor)[0]
    return faster
