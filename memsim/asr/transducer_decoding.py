"""The loss of a Transducer, and its decoding: greedy, and by a beam over alignments of equal length.

All functions take the network's result for a batch: `encoded` [batch, frames', joiner_width] and `frames` [batch].
The prediction network and the joiner are called in an order that depends on the batch alone, so that the noise of
simulated arrays, whose key is the batch and the number of the read, is the same each time.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from memsim.asr.models.frontend import frame_mask
from memsim.asr.models.transducer import State, Transducer
from memsim.asr.tokens import BLANK

MAX_TOKENS_PER_FRAME = 10
"""The most tokens of a frame in greedy decoding, as a network may never emit the blank."""
BEAM_WIDTH = 8


def lattice(model: Transducer, encoded: Tensor, frames: Tensor, targets: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of the next token at each frame after each number of target tokens.

    The first result is [batch, frames'', targets + 1, tokens], float32, cut to the longest utterance and the longest
    target; the second is [batch, frames'', targets + 1], true where a place belongs to its utterance.
    """
    longest = max(1, int(frames.max()))
    padded = pad_sequence(list(targets), batch_first=True, padding_value=BLANK).to(encoded.device)
    begun = torch.nn.functional.pad(padded, (1, 0), value=BLANK)  # [batch, targets + 1]
    predicted, _ = model.predict(begun)
    log_probs = model.log_probs(encoded[:, :longest, None], predicted[:, None])
    reached = frame_mask(_lengths(targets, frames) + 1, begun.shape[1])
    return log_probs, frame_mask(frames, longest)[:, :, None] & reached[:, None]


def transducer_losses(log_probs: Tensor, frames: Tensor, targets: Sequence[Tensor]) -> Tensor:
    """Return the Transducer loss per target token of each utterance [batch]; 0 where it has no frame.

    `log_probs` come from `lattice`.
    """
    from torchaudio.functional import rnnt_loss  # imported here, as other recognisers do not need it

    lengths = _lengths(targets, frames)
    losses: Tensor = rnnt_loss(
        log_probs,
        pad_sequence(list(targets), batch_first=True, padding_value=BLANK).to(frames.device, torch.int32),
        frames.clamp_min(1).to(torch.int32),
        lengths.to(torch.int32),
        blank=BLANK,
        reduction="none",
        fused_log_softmax=False,
    )
    return losses.where(frames > 0, 0.0) / lengths.clamp_min(1)


def _lengths(targets: Sequence[Tensor], like: Tensor) -> Tensor:
    return torch.tensor([len(target) for target in targets], device=like.device)


def greedy(model: Transducer, encoded: Tensor, frames: Tensor) -> list[list[int]]:
    """Return the tokens of the most probable steps of each utterance.

    All utterances take their steps together, each at its own frame: a token, or the blank and on to the next frame.
    """
    batch = len(encoded)
    found: list[list[int]] = [[] for _ in range(batch)]
    predicted, state = _begun(model, encoded, batch)
    frame, here = torch.zeros_like(frames), torch.zeros_like(frames)  # here: tokens in this frame
    active = (frames > 0).nonzero()[:, 0]
    while len(active):
        log_probs = model.log_probs(encoded[active, frame[active]], predicted[active])
        best = log_probs.argmax(dim=-1).masked_fill_(here[active] == MAX_TOKENS_PER_FRAME, BLANK)
        moves = best == BLANK
        frame[active[moves]] += 1
        here[active[moves]] = 0
        emitting, tokens = active[~moves], best[~moves]
        if len(emitting):
            here[emitting] += 1
            predicted[emitting], (hidden, cell) = _after(model, tokens, state, emitting)
            state[0][:, emitting], state[1][:, emitting] = hidden, cell
            for utterance, token in zip(emitting.tolist(), tokens.tolist(), strict=True):
                found[utterance].append(token)
        active = active[frame[active] < frames[active]]
    return found


TokenIds = tuple[int, ...]
_Place = tuple[int, TokenIds]  # the number of an utterance, and the tokens found so far


@dataclass(frozen=True)
class Hypothesis:
    """A sequence of tokens, and the logarithm of the summed probability of its alignments that the beam has kept."""

    tokens: TokenIds
    log_prob: float


@dataclass
class _Beam:
    """The hypotheses of one utterance: live ones, all after equally many steps, and those that are past all frames."""

    frames: int
    max_tokens: int
    live: dict[TokenIds, float]
    done: dict[TokenIds, float] = field(default_factory=dict)

    def step(self, tops: Sequence[Sequence[tuple[int, float]]], blanks: Sequence[float], steps: int) -> None:
        """Take one step more after `steps`, with the best tokens and the blank's log-probability of each hypothesis.

        Two ways to the same tokens are in the same frame, and their probabilities are added.
        """
        reached: defaultdict[TokenIds, float] = defaultdict(lambda: -math.inf)
        for (tokens, log_prob), best, blank in zip(self.live.items(), tops, blanks, strict=True):
            if steps - len(tokens) == self.frames - 1:
                self.done[tokens] = log_prob + blank
            else:
                reached[tokens] = float(np.logaddexp(reached[tokens], log_prob + blank))
            if len(tokens) < self.max_tokens:
                for token, gain in best:
                    longer = (*tokens, token)
                    reached[longer] = float(np.logaddexp(reached[longer], log_prob + gain))
        self.live = reached

    def prune(self, width: int) -> None:
        """Keep the `width` best live hypotheses; none once all of them together cannot beat `width` finished ones."""
        kept = sorted(self.live.items(), key=lambda item: (-item[1], item[0]))[:width]
        done = sorted(self.done.values(), reverse=True)
        alive = math.log(sum(math.exp(log_prob - kept[0][1]) for _, log_prob in kept)) + kept[0][1] if kept else 0.0
        self.live = {} if len(done) >= width and done[width - 1] >= alive else dict(kept)

    def best(self, width: int) -> list[Hypothesis]:
        ranked = sorted(self.done.items(), key=lambda item: (-item[1], item[0]))[:width]
        return [Hypothesis(tokens, log_prob) for tokens, log_prob in ranked]


def beam_search(
    model: Transducer, encoded: Tensor, frames: Tensor, width: int = BEAM_WIDTH, max_tokens: int | None = None
) -> list[list[Hypothesis]]:
    """Return up to `width` best hypotheses of each utterance, the best one first.

    Alignment-length synchronous decoding (Saon et al., ICASSP 2020): after i steps, tokens and blanks together, a
    hypothesis of u tokens is in frame i - u, and the `width` best hypotheses are kept. With a beam that is wide enough
    the result is exact: the most probable sequences of up to `max_tokens` tokens (default: twice the frames), over all
    of their alignments.
    """
    counts = [int(count) for count in frames.tolist()]
    beams = [_Beam(n, 2 * n if max_tokens is None else max_tokens, {(): 0.0} if n else {}) for n in counts]
    places: list[_Place] = [(index, ()) for index, beam in enumerate(beams) if beam.live]  # one a row of `predicted`
    begun: dict[_Place, int] = {(index, ()): index for index in range(len(beams))}
    predicted, state = _rows_of(model, places, begun, *_begun(model, encoded, len(beams)))
    steps = 0
    while places:
        utterances = torch.tensor([index for index, _ in places], device=encoded.device)
        at = torch.tensor([steps - len(tokens) for _, tokens in places], device=encoded.device)
        log_probs = model.log_probs(encoded[utterances, at], predicted)
        gains, tokens_best = log_probs[:, BLANK + 1 :].topk(min(width, log_probs.shape[-1] - 1))
        tops = [
            list(zip(row_tokens, row_gains, strict=True))
            for row_tokens, row_gains in zip((tokens_best + BLANK + 1).tolist(), gains.tolist(), strict=True)
        ]
        blanks = log_probs[:, BLANK].tolist()
        row = 0
        for beam in beams:
            own = slice(row, row + len(beam.live))
            row = own.stop
            beam.step(tops[own], blanks[own], steps)
            beam.prune(width)
        rows = {place: row for row, place in enumerate(places)}
        places = [(index, tokens) for index, beam in enumerate(beams) for tokens in beam.live]
        predicted, state = _rows_of(model, places, rows, predicted, state)
        steps += 1
    return [beam.best(width) for beam in beams]


def _rows_of(
    model: Transducer, places: Sequence[_Place], rows: dict[_Place, int], predicted: Tensor, state: State
) -> tuple[Tensor, State]:
    """Return projections and states of `places`: known ones by `rows`, others from the place without its last token."""
    new = [place for place in places if place not in rows]
    if new:
        parents = torch.tensor([rows[index, tokens[:-1]] for index, tokens in new], device=predicted.device)
        last = torch.tensor([tokens[-1] for _, tokens in new], device=predicted.device)
        more, more_state = _after(model, last, state, parents)
        rows = rows | {place: len(predicted) + i for i, place in enumerate(new)}
        predicted = torch.cat([predicted, more])
        state = (torch.cat([state[0], more_state[0]], dim=1), torch.cat([state[1], more_state[1]], dim=1))
    chosen = torch.tensor([rows[place] for place in places], dtype=torch.long, device=predicted.device)
    return predicted[chosen], (state[0][:, chosen], state[1][:, chosen])


def _begun(model: Transducer, encoded: Tensor, batch: int) -> tuple[Tensor, State]:
    """Return the projections [batch, joiner_width] and states of `batch` hypotheses without tokens."""
    predicted, state = model.predict(torch.full((batch, 1), BLANK, device=encoded.device))
    return predicted[:, 0], state


def _after(model: Transducer, tokens: Tensor, state: State, rows: Tensor) -> tuple[Tensor, State]:
    """Return projections [n, joiner_width] and states after one more token [n] each, from the `rows` of `state`."""
    predicted, after = model.predict(tokens[:, None], (state[0][:, rows], state[1][:, rows]))
    return predicted[:, 0], after
