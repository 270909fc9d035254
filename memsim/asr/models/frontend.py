"""What recognisers begin with: features, subsampled by convolutions over time and frequency, as hidden vectors."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, model_validator
from pydantic.types import Strict
from torch import Tensor, nn
from torch.nn import functional as F

from memsim.asr.features import FeatureConfig, Features
from memsim.config.schema import Section, Within, problem

Count = Annotated[int, Within(1, 65536)]
Depth = Annotated[int, Within(1, 256)]
"""How often something is repeated; what has far more layers than any network takes minutes only to be built."""


class RecogniserConfig(Section):
    """What every recogniser's config says; `tokens` (with the blank) is filled in from the token table."""

    features: Features = FeatureConfig()
    tokens: Annotated[int, Within(0)] = 0


class ConvConfig(Section):
    """One 3 x 3 convolution of the front end, ReLU, then max-pooling by (`pool_time`, `pool_frequency`)."""

    channels: Count
    stride_time: Count = 1
    stride_frequency: Count = 1
    pool_time: Count = 1
    pool_frequency: Count = 1


class EncoderConfig(RecogniserConfig):
    """An encoder that begins with `Frontend`, whose vectors have `width` components."""

    features: FeatureConfig = FeatureConfig()
    frontend: Annotated[tuple[ConvConfig, ...], Strict(False), Field(min_length=1, max_length=16)]
    width: Count
    dropout: Annotated[float, Within(low=0, below=1)] = 0.2

    @model_validator(mode="after")
    def _bins_are_left(self) -> EncoderConfig:
        if self.bins_left() < 1:
            raise problem(f"nothing is left of {self.features.mel_bins} mel bins after its pooling", key="frontend")
        return self

    def bins_left(self) -> int:
        """Mel bins after the front end's strides and pooling."""
        bins = self.features.mel_bins
        for conv in self.frontend:
            bins = -(-bins // conv.stride_frequency) // conv.pool_frequency
        return bins


def frame_mask(lengths: Tensor, frames: int) -> Tensor:
    """True where a frame belongs to its utterance: [batch] -> [batch, frames]."""
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


class Frontend(nn.Module):
    """VGG-like subsampling: [batch, frames, mel_bins] -> [batch, frames', width].

    An utterance shorter than the subsampling has no frames left: a length of 0.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        channels_in = [1, *(conv.channels for conv in config.frontend)]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(c_in, conv.channels, 3, stride=(conv.stride_time, conv.stride_frequency), padding=1)
            for c_in, conv in zip(channels_in, config.frontend, strict=False)
        )
        self.projection = nn.Linear(channels_in[-1] * config.bins_left(), config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        maps = features.unsqueeze(1)  # [batch, channels, frames, bins]
        for convolution, conv in zip(self.convolutions, self.config.frontend, strict=True):
            # Zeros beyond an utterance's end are what it would see alone.
            maps = maps * frame_mask(lengths, maps.shape[2])[:, None, :, None]
            maps = F.relu(convolution(maps))
            lengths = -(-lengths // conv.stride_time)
            if conv.pool_time * conv.pool_frequency > 1:
                # Where all are shorter than the pool, one frame that belongs to none of them.
                maps = F.pad(maps, (0, 0, 0, max(0, conv.pool_time - maps.shape[2])))
                maps = F.max_pool2d(maps, (conv.pool_time, conv.pool_frequency))
                lengths = lengths // conv.pool_time
        hidden = self.projection(maps.transpose(1, 2).flatten(2))
        return self.dropout(hidden), lengths
