"""The front end of recognisers: convolutions over time and frequency that subsample the features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field, model_validator
from pydantic.types import Strict
from torch import Tensor, nn
from torch.nn import functional as F

from memsim.asr.features import FeatureConfig, Features
from memsim.asr.tokens import CharacterTokens
from memsim.config.schema import Section, Within, problem

Count = Annotated[int, Within(1, 65536)]
Depth = Annotated[int, Within(1, 256)]
"""A number of layers, limited as a network of far more than usual takes minutes to be built."""


class RecogniserConfig(Section):
    """Keys of the config of every recogniser; `tokens` (with the blank) is filled in from the table of tokens."""

    features: Features = FeatureConfig()
    tokens: Annotated[int, Within(0)] = 0

    @property
    def own_tokens(self) -> CharacterTokens | None:
        """The tokens of the outputs, where the config gives them."""
        return None


class ConvConfig(Section):
    """A 3 x 3 convolution of the front end, with ReLU and max-pooling by (`pool_time`, `pool_frequency`)."""

    channels: Count
    stride_time: Count = 1
    stride_frequency: Count = 1
    pool_time: Count = 1
    pool_frequency: Count = 1


class EncoderConfig(RecogniserConfig):
    """The config of an encoder that begins with `Frontend`, whose vectors have `width` components."""

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
        """Return the number of mel bins after the front end's strides and pooling."""
        bins = self.features.mel_bins
        for conv in self.frontend:
            bins = -(-bins // conv.stride_frequency) // conv.pool_frequency
        return bins


def frame_mask(lengths: Tensor, frames: int) -> Tensor:
    """Return a mask that is true where a frame belongs to its utterance: [batch] -> [batch, frames]."""
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


class PaddedNetwork:
    """Base of networks that take padded batches ([batch, frames, ...], lengths [batch]).

    Calibration asks for the utterances of a batch one by one (`memsim.nn.batches`), so that it sees no padding.
    """

    def unpadded(self, features: Tensor, lengths: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the utterances of a batch one at a time, without padding."""
        for index, length in enumerate(lengths.tolist()):
            yield features[index : index + 1, :length], lengths[index : index + 1]


class CTCOutput(nn.Module):
    """Mixin of encoders: ([batch, frames, mel_bins], [batch]) -> ([batch, frames', tokens], [batch]), for CTC.

    An utterance shorter than the subsampling has no frames left: a length of 0.
    """

    encoded_width: int

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self.output = nn.Linear(self.encoded_width, config.tokens)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities of the tokens, and the number of frames of each utterance."""
        hidden, lengths = super().forward(features, lengths)
        return self.output(hidden).log_softmax(dim=-1), lengths


class Frontend(nn.Module):
    """A VGG-like front end: [batch, frames, mel_bins] -> [batch, frames', width].

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
        """Return the subsampled frames as hidden vectors, and the number of frames of each utterance."""
        maps = features.unsqueeze(1)  # [batch, channels, frames, bins]
        for convolution, conv in zip(self.convolutions, self.config.frontend, strict=True):
            # Zeros beyond an utterance's end, as the convolution's own padding would have without a batch.
            maps = maps * frame_mask(lengths, maps.shape[2])[:, None, :, None]
            maps = F.relu(convolution(maps))
            lengths = -(-lengths // conv.stride_time)
            if conv.pool_time * conv.pool_frequency > 1:
                # One frame of padding where all utterances are shorter than the pool.
                maps = F.pad(maps, (0, 0, 0, max(0, conv.pool_time - maps.shape[2])))
                maps = F.max_pool2d(maps, (conv.pool_time, conv.pool_frequency))
                lengths = lengths // conv.pool_time
        hidden = self.projection(maps.transpose(1, 2).flatten(2))
        return self.dropout(hidden), lengths
