"""Kinds of recognisers: how what a network gives of each frame is scored against a text, and how it becomes one.

A network maps ([batch, frames, mel_bins], [batch]) to (what it gives of its frames [batch, frames', ...], how many of
them belong to each utterance [batch]). What that is, only its kind knows: of a CTC, log-probabilities of the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

from torch import Tensor, nn

from memsim.asr import greedy, transducer_decoding
from memsim.asr.ctc import ctc_losses, too_short
from memsim.asr.models.frontend import frame_mask
from memsim.asr.models.transducer import Transducer
from memsim.asr.tokens import Tokens


class Outputs(NamedTuple):
    """A network's distributions over the tokens, from which losses are computed.

    `log_probs` [batch, ..., tokens], float32, at all places of each utterance; `valid` [batch, ...], those that count;
    `frames` [batch]. The places of a CTC are its frames, those of a Transducer its lattice of frames and tokens.
    """

    log_probs: Tensor
    valid: Tensor
    frames: Tensor


class Kind(Protocol):
    """What training and evaluation ask of a kind of recogniser. `targets` are each utterance's token ids."""

    loss_name: str

    def outputs(self, model: nn.Module, encoded: Tensor, frames: Tensor, targets: Sequence[Tensor]) -> Outputs:
        """The distributions that the losses of `targets` need, from what `model` gave for the batch."""

    def losses(self, outputs: Outputs, targets: Sequence[Tensor]) -> Tensor:
        """The loss a token of each utterance [batch]; 0 where its frames are too few."""

    def too_short(self, frames: Tensor, targets: Sequence[Tensor]) -> int:
        """How many utterances have fewer frames than their text needs, and so teach nothing."""

    def transcribe(self, model: nn.Module, encoded: Tensor, frames: Tensor, tokens: Tokens) -> list[str]:
        """Greedy decoding: a text each, from what `model` gave for the batch; calls every layer that decoding needs."""


class CTC:
    """Connectionist temporal classification: a distribution a frame, the blank among the tokens."""

    loss_name = "CTC"

    def outputs(self, model: nn.Module, encoded: Tensor, frames: Tensor, targets: Sequence[Tensor]) -> Outputs:
        return Outputs(encoded.float(), frame_mask(frames, encoded.shape[1]), frames)

    def losses(self, outputs: Outputs, targets: Sequence[Tensor]) -> Tensor:
        return ctc_losses(outputs.log_probs, outputs.frames, targets)

    def too_short(self, frames: Tensor, targets: Sequence[Tensor]) -> int:
        return too_short(frames, targets)

    def transcribe(self, model: nn.Module, encoded: Tensor, frames: Tensor, tokens: Tokens) -> list[str]:
        return greedy.greedy(encoded, frames, tokens)


class RNNT:
    """Transducers: a distribution at each place of a lattice of frames and tokens, the blank leading to the next frame.

    The network gives projections of the frames, which a prediction network of the tokens so far is joined with.
    """

    loss_name = "RNN-T"

    def outputs(self, model: nn.Module, encoded: Tensor, frames: Tensor, targets: Sequence[Tensor]) -> Outputs:
        return Outputs(*transducer_decoding.lattice(cast(Transducer, model), encoded, frames, targets), frames)

    def losses(self, outputs: Outputs, targets: Sequence[Tensor]) -> Tensor:
        return transducer_decoding.transducer_losses(outputs.log_probs, outputs.frames, targets)

    def too_short(self, frames: Tensor, targets: Sequence[Tensor]) -> int:
        return int((frames == 0).sum())

    def transcribe(self, model: nn.Module, encoded: Tensor, frames: Tensor, tokens: Tokens) -> list[str]:
        found = transducer_decoding.greedy(cast(Transducer, model), encoded, frames)
        return [" ".join(tokens.decode(ids).split()) for ids in found]


@dataclass(frozen=True)
class TransducerBeam:
    """Decodes a Transducer by beam search, as the `decoder` of its recogniser."""

    tokens: Tokens
    width: int = transducer_decoding.BEAM_WIDTH

    def __call__(self, model: nn.Module, encoded: Tensor, frames: Tensor) -> list[str]:
        found = transducer_decoding.beam_search(cast(Transducer, model), encoded, frames, self.width)
        best = [hypotheses[0].tokens if hypotheses else () for hypotheses in found]
        return [" ".join(self.tokens.decode(ids).split()) for ids in best]
