"""Kinds of recognisers, CTC and Transducers: the loss of a network's outputs, and their greedy decoding.

A network maps features [batch, frames, mel_bins] and lengths [batch] to `encoded` [batch, frames', ...] and `frames`
[batch], the number of frames of each utterance. The last dimension of `encoded` depends on the kind: the
log-probabilities of the tokens for CTC, projections for the joiner for Transducers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memsim.asr import transducer_decoding
from memsim.asr.models.frontend import frame_mask
from memsim.asr.models.transducer import Transducer
from memsim.asr.tokens import BLANK, Tokens


class Outputs(NamedTuple):
    """A network's distributions over the tokens, from which losses are computed.

    A CTC network has one per frame, a Transducer one at each place of its lattice of frames and tokens.
    """

    log_probs: Tensor
    """[batch, ..., tokens], float32."""
    valid: Tensor
    """[batch, ...], true where a place belongs to its utterance."""
    frames: Tensor
    """[batch], the number of frames of each utterance."""


class Kind(Protocol):
    """The loss and the greedy decoding of a kind of recogniser; `targets` are the token ids of each utterance."""

    loss_name: str

    def encode(self, model: nn.Module, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return `encoded` and `frames` of a batch of features [batch, frames, ...] and their lengths [batch]."""
        encoded, frames = model(features, lengths)
        return encoded, frames

    def encode_for_training(self, model: nn.Module, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `encode` does, where padding to a fixed length may be left out to save time."""
        return self.encode(model, features, lengths)

    def outputs(self, model: nn.Module, encoded: Tensor, frames: Tensor, targets: Sequence[Tensor]) -> Outputs:
        """Return the distributions that the losses of `targets` need, from the network's result for a batch."""

    def losses(self, outputs: Outputs, targets: Sequence[Tensor]) -> Tensor:
        """Return the loss per target token of each utterance [batch]; 0 where its frames are too few."""

    def too_short(self, frames: Tensor, targets: Sequence[Tensor]) -> int:
        """Return the number of utterances whose frames are too few for their text, so that they teach nothing."""

    def hypotheses(self, model: nn.Module, encoded: Tensor, frames: Tensor, tokens: Tokens) -> list[list[int]]:
        """Return the token ids that greedy decoding finds for a batch, which `outputs` takes as targets."""

    def transcribe(self, model: nn.Module, encoded: Tensor, frames: Tensor, tokens: Tokens) -> list[str]:
        """Decode the network's result for a batch greedily; this calls every layer that decoding needs."""
        found = self.hypotheses(model, encoded, frames, tokens)
        return [" ".join(tokens.decode(ids).split()) for ids in found]


class CTC(Kind):
    """Connectionist temporal classification: a distribution for each frame, with the blank among the tokens."""

    loss_name = "CTC"

    def outputs(self, model: nn.Module, encoded: Tensor, frames: Tensor, targets: Sequence[Tensor]) -> Outputs:
        """Return the log-probabilities of the frames."""
        return Outputs(encoded.float(), frame_mask(frames, encoded.shape[1]), frames)

    def losses(self, outputs: Outputs, targets: Sequence[Tensor]) -> Tensor:
        """Return the CTC losses."""
        log_probs = outputs.log_probs
        lengths = torch.tensor([len(target) for target in targets], device=log_probs.device)
        losses = F.ctc_loss(
            log_probs.transpose(0, 1),
            torch.cat(list(targets)).to(log_probs.device),
            outputs.frames,
            lengths,
            reduction="none",
            zero_infinity=True,
        )
        return losses / lengths.clamp_min(1)

    def too_short(self, frames: Tensor, targets: Sequence[Tensor]) -> int:
        """Count utterances with fewer frames than tokens and blanks between equal tokens."""
        needed = (len(target) + int((target[1:] == target[:-1]).sum()) for target in targets)
        return sum(least > count for least, count in zip(needed, frames.tolist(), strict=True))

    def hypotheses(self, model: nn.Module, encoded: Tensor, frames: Tensor, tokens: Tokens) -> list[list[int]]:
        """Return the tokens of the best paths: repeats merged, blanks removed."""
        best = encoded.argmax(dim=-1).cpu()
        merged = (torch.unique_consecutive(path[:n]) for path, n in zip(best, frames.tolist(), strict=True))
        return [path[path != BLANK].tolist() for path in merged]


class RNNT(Kind):
    """Transducers: a distribution at each place of a lattice of frames and tokens; the blank leads to the next frame.

    The network returns projections of the frames, which are joined with a prediction network of the tokens so far.
    """

    loss_name = "RNN-T"

    def outputs(self, model: nn.Module, encoded: Tensor, frames: Tensor, targets: Sequence[Tensor]) -> Outputs:
        """Return the log-probabilities of the lattice."""
        return Outputs(*transducer_decoding.lattice(cast(Transducer, model), encoded, frames, targets), frames)

    def losses(self, outputs: Outputs, targets: Sequence[Tensor]) -> Tensor:
        """Return `memsim.asr.transducer_decoding.transducer_losses`."""
        return transducer_decoding.transducer_losses(outputs.log_probs, outputs.frames, targets)

    def too_short(self, frames: Tensor, targets: Sequence[Tensor]) -> int:
        """Return the number of utterances without a frame."""
        return int((frames == 0).sum())

    def hypotheses(self, model: nn.Module, encoded: Tensor, frames: Tensor, tokens: Tokens) -> list[list[int]]:
        """Return the tokens of the most probable steps."""
        return transducer_decoding.greedy(cast(Transducer, model), encoded, frames)


@dataclass(frozen=True)
class TransducerBeam:
    """The decoder of a Transducer by beam search."""

    tokens: Tokens
    width: int = transducer_decoding.BEAM_WIDTH

    def __call__(self, model: nn.Module, encoded: Tensor, frames: Tensor) -> list[str]:
        """Return the best text of each utterance, from the network's result for a batch."""
        found = transducer_decoding.beam_search(cast(Transducer, model), encoded, frames, self.width)
        best = [hypotheses[0].tokens if hypotheses else () for hypotheses in found]
        return [" ".join(self.tokens.decode(ids).split()) for ids in best]


class TrainingPass(nn.Module):
    """A network whose outputs are those that losses need: a Transducer's lattice is computed from the targets, too."""

    def __init__(self, model: nn.Module, kind: Kind) -> None:
        super().__init__()
        self.model = model
        self.kind = kind

    def forward(self, features: Tensor, lengths: Tensor, targets: Sequence[Tensor]) -> Outputs:
        """Return the distributions of a batch, from its features [batch, frames, mel_bins] and lengths [batch]."""
        encoded, frames = self.kind.encode_for_training(self.model, features, lengths)
        return self.kind.outputs(self.model, encoded, frames, targets)
