"""Prior of a recogniser's outputs: their mean over speech, which beam search can correct for."""

from __future__ import annotations

import json
from collections.abc import Iterable

import torch
from torch import Tensor

from memsim.config.json_input import is_finite_number, parse_json
from memsim.errors import InputError
from memsim.storage.checkpoint import Checkpoint

KEY = "log_prior"
"""The metadata key under which training stores the prior in a checkpoint."""


def measure_log_prior(outputs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the logarithm of the mean probability of each token over all frames, float64 [tokens].

    Args:
        outputs: the log-probabilities [batch, frames, tokens] and lengths [batch] of a CTC model, for each batch.

    Raises ValueError when there is no frame.
    """
    total, frames = torch.zeros(()), 0
    for log_probs, lengths in outputs:
        valid = torch.arange(log_probs.shape[1], device=log_probs.device) < lengths[:, None]
        total = total + log_probs.double().exp()[valid].sum(dim=0).cpu()
        frames += int(lengths.sum())
    if not frames:
        raise ValueError("there are no frames to measure a prior on")
    return (total / frames).clamp_min(torch.finfo(torch.float32).tiny).log()


def to_metadata(log_prior: Tensor) -> dict[str, str]:
    """Return the prior as an entry of a checkpoint's metadata."""
    return {KEY: json.dumps([round(value, 6) for value in log_prior.tolist()])}


def stored_log_prior(checkpoint: Checkpoint, tokens: int) -> Tensor | None:
    """Return the prior [tokens] in a checkpoint's metadata, None without one. Raises InputError for an unusable one."""
    if KEY not in checkpoint.metadata:
        return None
    where = f"{checkpoint.path}: the metadata's {KEY}"
    values = parse_json(checkpoint.metadata[KEY], where)
    is_list = isinstance(values, list) and len(values) == tokens
    if not is_list or not all(is_finite_number(value) for value in values):
        raise InputError(f"{where} must be {tokens} numbers, one a token")
    return torch.tensor(values, dtype=torch.float64)
