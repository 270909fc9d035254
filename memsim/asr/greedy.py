"""From CTC log-probabilities to text."""

from __future__ import annotations

import torch
from torch import Tensor

from memsim.asr.tokens import Tokens


def greedy(log_probs: Tensor, lengths: Tensor, tokens: Tokens) -> list[str]:
    """Best path: [batch, frames, tokens] and [batch] -> a text each (repeats merged, blanks dropped, spaces single)."""
    best = log_probs.argmax(dim=-1).cpu()
    return [
        " ".join(tokens.decode(torch.unique_consecutive(path[:length]).tolist()).split())
        for path, length in zip(best, lengths.tolist(), strict=True)
    ]
