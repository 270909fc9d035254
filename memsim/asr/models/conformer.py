"""The Conformer of arXiv 2505.24721, section 4: the encoder, and the paper's recogniser with a CTC output.

A VGG front end over time and frequency (`memsim.asr.models.frontend`), Conformer blocks without positional encoding
and with a LayerNorm in the convolution module, and an output layer to the tokens. Pointwise convolutions are
`nn.Linear`, so that a crossbar can compute them as it does the other linear layers.

Padding never changes a result: each layer that mixes frames masks the frames beyond an utterance's length.
"""

from __future__ import annotations

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from memsim.asr.models.frontend import Count, CTCOutput, Depth, EncoderConfig, Frontend, PaddedNetwork, frame_mask
from memsim.config.schema import problem


class ConformerConfig(EncoderConfig):
    """The shape of a Conformer."""

    blocks: Depth
    heads: Count
    feed_forward_width: Count
    kernel_frames: Count = 31

    @model_validator(mode="after")
    def _shapes_fit(self) -> ConformerConfig:
        if self.width % self.heads:
            raise problem(f"heads ({self.heads}) must divide width ({self.width})", key="heads")
        if self.kernel_frames % 2 == 0:
            raise problem(f"{self.kernel_frames} is even; a centred kernel is odd", key="kernel_frames")
        return self


class ConformerEncoder(PaddedNetwork, nn.Module):
    """An encoder of features: ([batch, frames, mel_bins], [batch]) -> ([batch, frames', width], [batch])."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoded_width = config.width
        self.frontend = Frontend(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the hidden vectors of each frame, and the number of frames of each utterance."""
        hidden, lengths = self.frontend(features, lengths)
        valid = frame_mask(lengths, hidden.shape[1])
        for block in self.blocks:
            hidden = block(hidden, valid)
        return hidden, lengths


class ConformerCTC(CTCOutput, ConformerEncoder):
    """A Conformer with a CTC output."""


class Block(nn.Module):
    """A Conformer block: half a feed-forward, attention, convolution, half a feed-forward, LayerNorm.

    The order of Gulati et al., Conformer, Interspeech 2020, equation 1.
    """

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.feed_forward_1 = FeedForward(config)
        self.attention = Attention(config)
        self.convolution = Convolution(config)
        self.feed_forward_2 = FeedForward(config)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Map [batch, frames, width] to the same shape; `valid` is [batch, frames]."""
        x = x + 0.5 * self.feed_forward_1(x)
        x = x + self.attention(x, valid)
        x = x + self.convolution(x, valid)
        x = x + 0.5 * self.feed_forward_2(x)
        normed: Tensor = self.norm(x)
        return normed


class FeedForward(nn.Module):
    """A feed-forward module: LayerNorm, then two linear layers with Swish between them."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.expand = nn.Linear(config.width, config.feed_forward_width)
        self.contract = nn.Linear(config.feed_forward_width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, frames, width] to the same shape."""
        hidden = self.dropout(F.silu(self.expand(self.norm(x))))
        projected: Tensor = self.dropout(self.contract(hidden))
        return projected


class Attention(nn.Module):
    """Multi-head self-attention over the valid frames, without positional encoding.

    The submodules named `..._quantiser` are identities that training with quantised attention replaces.
    """

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = nn.LayerNorm(config.width)
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.output = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.query_quantiser: nn.Module = nn.Identity()
        self.key_quantiser: nn.Module = nn.Identity()
        self.probability_quantiser: nn.Module = nn.Identity()
        self.value_quantiser: nn.Module = nn.Identity()

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Map [batch, frames, width] to the same shape; `valid` is [batch, frames]."""
        normed = self.norm(x)
        query, key, value = (
            quantiser(linear(normed)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear, quantiser in (
                (self.query, self.query_quantiser),
                (self.key, self.key_quantiser),
                (self.value, self.value_quantiser),
            )
        )  # [batch, heads, frames, width / heads]
        mixed = self._mix(query, key, value, valid[:, None, None, :])
        attended: Tensor = self.dropout(self.output(mixed.transpose(1, 2).flatten(2)))
        return attended

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """Return the mean of the values, weighted by the softmax probabilities."""
        if isinstance(self.probability_quantiser, nn.Identity):
            dropout = self.dropout.p if self.training else 0.0
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        # Finite, as with -inf an utterance without a valid frame would become NaN.
        scores = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).masked_fill(
            ~mask, torch.finfo(torch.bfloat16).min
        )
        probabilities = scores.softmax(dim=-1).masked_fill(~mask, 0.0)
        mixed: Tensor = self.dropout(self.probability_quantiser(probabilities)) @ value
        return mixed


class Convolution(nn.Module):
    """A convolution module: gated pointwise, depthwise over time, LayerNorm, SiLU, pointwise."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.pointwise_in = nn.Linear(config.width, 2 * config.width)
        self.depthwise = nn.Conv1d(
            config.width, config.width, config.kernel_frames, padding="same", groups=config.width
        )
        self.depthwise_norm = nn.LayerNorm(config.width)
        self.pointwise_out = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Map [batch, frames, width] to the same shape; `valid` is [batch, frames]."""
        gated = F.glu(self.pointwise_in(self.norm(x)), dim=-1) * valid[:, :, None]
        mixed = self.depthwise(gated.transpose(1, 2)).transpose(1, 2)
        projected: Tensor = self.dropout(self.pointwise_out(F.silu(self.depthwise_norm(mixed))))
        return projected
