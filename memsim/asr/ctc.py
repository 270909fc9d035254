"""The CTC loss of each utterance, and the token ids that it is the loss of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from memsim.asr.tokens import Tokens
from memsim.asr.utterances import Utterance
from memsim.errors import InputError


def encode_text(tokens: Tokens, utterance: Utterance) -> Tensor:
    """The token ids of what is said. Raises InputError, naming the utterance, for a character without a token."""
    try:
        return torch.tensor(tokens.encode(utterance.text), dtype=torch.long)
    except InputError as error:
        raise InputError(f"{utterance.audio}: {utterance.id}: {error}") from None


def ctc_losses(log_probs: Tensor, frames: Tensor, targets: Sequence[Tensor]) -> Tensor:
    """The CTC loss a character of each utterance [batch]; 0 where there are fewer frames than the text needs.

    Args:
        log_probs: [batch, frames, tokens], float32.
        frames: [batch], the frames that belong to each utterance.
        targets: each utterance's tokens.
    """
    lengths = torch.tensor([len(target) for target in targets], device=log_probs.device)
    tokens = torch.cat(list(targets)).to(log_probs.device)
    losses = F.ctc_loss(log_probs.transpose(0, 1), tokens, frames, lengths, reduction="none", zero_infinity=True)
    return losses / lengths.clamp_min(1)


def too_short(frames: Tensor, targets: Sequence[Tensor]) -> int:
    """How many utterances have fewer frames than their text needs, and so teach nothing."""
    return sum(frames_needed(target) > n for target, n in zip(targets, frames.tolist(), strict=True))


def frames_needed(target: Tensor) -> int:
    """CTC spends a frame on every token, and one on the blank between two that are alike."""
    return len(target) + int((target[1:] == target[:-1]).sum())
