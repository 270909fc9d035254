"""The CTC loss of a network's output."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from memsim.asr.corpora import Utterance
from memsim.asr.tokens import CharacterTokens
from memsim.errors import InputError


def encode_text(tokens: CharacterTokens, utterance: Utterance) -> Tensor:
    """The token ids of what is said. Raises InputError, naming the utterance, for a character without a token."""
    try:
        return torch.tensor(tokens.encode(utterance.text))
    except InputError as error:
        raise InputError(f"{utterance.audio}: {utterance.id}: {error}") from None


def ctc_loss(log_probs: Tensor, frames: Tensor, targets: Sequence[Tensor]) -> Tensor:
    """The mean over utterances of the CTC loss a character; 0 for one with fewer frames than its text needs.

    `log_probs` [batch, frames', tokens], `frames` [batch], `targets` token ids of each utterance.
    """
    lengths = torch.tensor([len(t) for t in targets])
    return F.ctc_loss(log_probs.transpose(0, 1), torch.cat(list(targets)), frames, lengths, zero_infinity=True)
