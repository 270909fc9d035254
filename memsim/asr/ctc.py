"""CTC: the loss of each utterance, the token ids of its text, and greedy decoding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from memsim.asr.tokens import Tokens
from memsim.asr.utterances import Utterance
from memsim.errors import InputError


def encode_text(tokens: Tokens, utterance: Utterance) -> Tensor:
    """Return the token ids of an utterance's text, int64 [tokens].

    Raises InputError that names the utterance, for a character or word without a token.
    """
    try:
        return torch.tensor(tokens.encode(utterance.text), dtype=torch.long)
    except InputError as error:
        raise InputError(f"{utterance.audio}: {utterance.id}: {error}") from None


def ctc_losses(log_probs: Tensor, frames: Tensor, targets: Sequence[Tensor]) -> Tensor:
    """Return the CTC loss per target token of each utterance [batch]; 0 where its frames are too few for its text.

    Args:
        log_probs: [batch, frames, tokens], float32.
        frames: [batch], the number of frames of each utterance.
        targets: the token ids of each utterance's text.
    """
    lengths = torch.tensor([len(target) for target in targets], device=log_probs.device)
    tokens = torch.cat(list(targets)).to(log_probs.device)
    losses = F.ctc_loss(log_probs.transpose(0, 1), tokens, frames, lengths, reduction="none", zero_infinity=True)
    return losses / lengths.clamp_min(1)


def too_short(frames: Tensor, targets: Sequence[Tensor]) -> int:
    """Return the number of utterances whose frames are too few for their text, so that they teach nothing."""
    return sum(frames_needed(target) > n for target, n in zip(targets, frames.tolist(), strict=True))


def frames_needed(target: Tensor) -> int:
    """Return the frames that CTC needs for a text: one for each token, and one for the blank between equal ones."""
    return len(target) + int((target[1:] == target[:-1]).sum())


def greedy(log_probs: Tensor, lengths: Tensor, tokens: Tokens) -> list[str]:
    """Return the text of the best path of each utterance: repeats merged, blanks removed, spaces single.

    Args:
        log_probs: [batch, frames, tokens].
        lengths: [batch], in frames.
        tokens: the recogniser's tokens.
    """
    best = log_probs.argmax(dim=-1).cpu()
    return [
        " ".join(tokens.decode(torch.unique_consecutive(path[:length]).tolist()).split())
        for path, length in zip(best, lengths.tolist(), strict=True)
    ]
