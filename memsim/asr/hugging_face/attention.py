"""Attention of transformers that calls its layers, in place of one function of torch's that takes their weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.models.wavlm.modeling_wavlm import WavLMAttention


class CallingWavLMAttention(WavLMAttention):  # type: ignore[misc]
    """WavLM's attention with calls of its four linear layers, so that these can be on arrays."""

    def torch_multi_head_self_attention(
        self, hidden_states: Tensor, attention_mask: Tensor | None, gated_position_bias: Tensor
    ) -> tuple[Tensor, None]:
        """Return the attention's result [batch, frames, width].

        `hidden_states` are [batch, frames, width], the mask [batch, frames] is 1 at frames that are heard, and the bias
        of positions is [batch * heads, frames, frames].
        """
        batch, frames, width = hidden_states.shape
        query, key, value = (
            layer(hidden_states).view(batch, frames, self.num_heads, self.head_dim).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = self.scaling * query @ key.transpose(2, 3) + gated_position_bias.view(batch, -1, frames, frames)
        if attention_mask is not None:
            scores = scores.masked_fill(attention_mask.ne(1)[:, None, None], float("-inf"))
        weights = nn.functional.dropout(torch.softmax(scores, dim=-1), self.dropout, self.training)
        return self.out_proj((weights @ value).transpose(1, 2).reshape(batch, frames, width)), None


def call_layers(network: nn.Module) -> None:
    """Make the attention of `network` call its layers."""
    for module in network.modules():
        if type(module) is WavLMAttention:
            module.__class__ = CallingWavLMAttention
