"""Networks of wav2vec 2.0 and HuBERT with a CTC output, from torchaudio: waveforms to log-probabilities.

Tensors have the names that they have in `torchaudio.pipelines.<BUNDLE>.get_model()`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from pydantic.types import Strict
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from memsim.asr.audio_library import torchaudio
from memsim.asr.features import WaveformConfig
from memsim.asr.models.external_ctc import ExternalConfig
from memsim.asr.models.frontend import Count, Depth, PaddedNetwork
from memsim.config.schema import Section, Within, problem

Dropout = Annotated[float, Within(low=0, below=1)]


class Wav2Vec2Parameters(Section):
    """The arguments of `torchaudio.models.wav2vec2_model`, except for the number of outputs."""

    extractor_mode: Literal["group_norm", "layer_norm"]
    extractor_conv_layer_config: Annotated[
        tuple[Annotated[tuple[Count, Count, Count], Strict(False)], ...], Strict(False), Field(min_length=1)
    ]  # channels, kernel and stride of each convolution
    extractor_conv_bias: bool
    encoder_embed_dim: Count
    encoder_projection_dropout: Dropout
    encoder_pos_conv_kernel: Count
    encoder_pos_conv_groups: Count
    encoder_num_layers: Depth
    encoder_num_heads: Count
    encoder_attention_dropout: Dropout
    encoder_ff_interm_features: Count
    encoder_ff_interm_dropout: Dropout
    encoder_dropout: Dropout
    encoder_layer_norm_first: bool
    encoder_layer_drop: Dropout

    @model_validator(mode="after")
    def _width_divides(self) -> Wav2Vec2Parameters:
        for key in ("encoder_num_heads", "encoder_pos_conv_groups"):
            if self.encoder_embed_dim % (count := getattr(self, key)):
                raise problem(f"{count} must divide encoder_embed_dim ({self.encoder_embed_dim})", key=key)
        return self


class Wav2Vec2Config(ExternalConfig):
    """The shape of the network, and whether each waveform is normalised to mean 0 and variance 1 first."""

    features: WaveformConfig = WaveformConfig(kind="waveform")
    normalise_waveform: bool = False
    parameters: Wav2Vec2Parameters


def wav2vec2_ctc(config: Wav2Vec2Config) -> nn.Module:
    """Make the network: ([batch, samples], lengths [batch]) -> (log-probabilities [batch, frames, tokens], [batch])."""
    network = Wav2Vec2CTC(config)
    return NormalisedWav2Vec2CTC(network) if config.normalise_waveform else network


class Wav2Vec2CTC(PaddedNetwork, torchaudio.models.Wav2Vec2Model):  # type: ignore[misc]
    """The network of torchaudio, with results that do not depend on the padding.

    In the base models the first layer is normalised over time, so each utterance is subsampled by itself there.
    """

    def __init__(self, config: Wav2Vec2Config) -> None:
        parameters = config.parameters.model_dump()
        made = torchaudio.models.wav2vec2_model(**parameters, aux_num_out=config.tokens)
        super().__init__(made.feature_extractor, made.encoder, made.aux)
        self._is_normalised_over_time = config.parameters.extractor_mode == "group_norm"
        self._least_samples = 1
        for _, kernel, stride in reversed(config.parameters.extractor_conv_layer_config):
            self._least_samples = (self._least_samples - 1) * stride + kernel

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities and lengths in frames; an utterance too short for one frame has a length of 0."""
        missing = max(0, self._least_samples - waveforms.shape[1])
        waveforms = nn.functional.pad(waveforms, (0, missing))
        if self._is_normalised_over_time:
            ends = lengths.clamp_min(self._least_samples).tolist()
            parts = [
                self.feature_extractor(row[None, :end], None)[0][0] for row, end in zip(waveforms, ends, strict=True)
            ]
            hidden, frames = pad_sequence(parts, batch_first=True), self._frames(lengths)
        else:
            hidden, frames = self.feature_extractor(waveforms, lengths)
        logits: Tensor = self.aux(self.encoder(hidden, frames))
        return logits.log_softmax(dim=-1), frames

    def _frames(self, samples: Tensor) -> Tensor:
        for layer in self.feature_extractor.conv_layers:
            samples = (torch.div(samples - layer.kernel_size, layer.stride, rounding_mode="floor") + 1).clamp_min(0)
        return samples


class NormalisedWav2Vec2CTC(PaddedNetwork, nn.Module):
    """A `Wav2Vec2CTC` that was trained on waveforms of mean 0 and variance 1, to which it normalises its input."""

    def __init__(self, model: Wav2Vec2CTC) -> None:
        super().__init__()
        self.model = model

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's result for the waveforms, each normalised over its own samples."""
        rows = [
            nn.functional.layer_norm(row[:length], (length,)) if length else row[:0]
            for row, length in zip(waveforms, lengths.tolist(), strict=True)
        ]
        padded = nn.functional.pad(pad_sequence(rows, batch_first=True), (0, waveforms.shape[1] - max(map(len, rows))))
        result: tuple[Tensor, Tensor] = self.model(padded, lengths)
        return result
