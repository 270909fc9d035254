"""The Transducer's loss and decoding, against enumerations of all alignments and all texts of tiny lattices."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from memsim.asr import transducer_decoding
from memsim.asr.kinds import RNNT
from memsim.asr.models.transducer import State, Transducer
from memsim.asr.transducer_decoding import BLANK, beam_search, greedy, lattice, transducer_losses
from tests.asr.networks import TRANSDUCERS, tiny


def network(
    name: str = "lstm-transducer-small", characters: str = " abc", seed: int = 0, gain: float = 1.0
) -> Transducer:
    """`gain` makes the distributions of an untrained network uneven."""
    model = tiny(name, characters, seed).model
    assert isinstance(model, Transducer)
    with torch.no_grad():
        model.output.weight.mul_(gain)
        model.joiner.prediction.weight.mul_(gain)
    return model


def encodings(batch: int, frames: int, seed: int, width: int = 7) -> Tensor:
    return 2 * torch.randn(batch, frames, width, generator=torch.Generator().manual_seed(seed))


def alignments(frames: int, target: list[int]) -> list[list[int]]:
    """Every order of the target's tokens and as many blanks as frames, the last one a blank."""
    steps = frames - 1 + len(target)
    found = []
    for places in itertools.combinations(range(steps), len(target)):
        tokens = iter(target)
        found.append([next(tokens) if step in places else BLANK for step in range(steps)] + [BLANK])
    return found


def log_likelihood(log_probs: Tensor, frames: int, target: list[int]) -> Tensor:
    """Of `target`, by adding up all alignments over `log_probs` [frames, targets + 1, tokens]."""
    paths = []
    for alignment in alignments(frames, target):
        t = u = 0
        path = log_probs.new_zeros(())
        for token in alignment:
            path = path + log_probs[t, u, token]
            t, u = (t + 1, u) if token == BLANK else (t, u + 1)
        paths.append(path)
    return torch.stack(paths).logsumexp(dim=0)


@given(data=st.data())
@settings(deadline=None, max_examples=20)
def test_the_loss_is_that_of_all_alignments(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=3))
    model = network(seed=len(sizes), gain=3.0)
    targets = [torch.tensor(data.draw(st.lists(st.integers(1, 4), min_size=n, max_size=n))) for _, n in sizes]
    frames = torch.tensor([count for count, _ in sizes])
    encoded = encodings(len(sizes), int(frames.max()) + data.draw(st.integers(0, 2)), seed=7).requires_grad_()
    log_probs, valid = lattice(model, encoded, frames, targets)
    losses = transducer_losses(log_probs, frames, targets)
    wanted = torch.stack(
        [
            -log_likelihood(log_probs[i], int(frames[i]), target.tolist()) / len(target)
            for i, target in enumerate(targets)
        ]
    )
    torch.testing.assert_close(losses, wanted, atol=1e-5, rtol=1e-5)
    assert valid.sum(dim=(1, 2)).tolist() == [count * (n + 1) for count, n in sizes]
    gradients = [torch.autograd.grad(value.sum(), encoded, retain_graph=True)[0] for value in (losses, wanted)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_an_utterance_without_frames_costs_nothing() -> None:
    model = network()
    encoded, frames = encodings(2, 3, seed=0).requires_grad_(), torch.tensor([0, 3])
    targets = [torch.tensor([1, 2]), torch.tensor([3])]
    outputs = RNNT().outputs(model, encoded, frames, targets)
    losses = RNNT().losses(outputs, targets)
    assert losses[0] == 0
    assert losses[1] > 0
    assert not outputs.valid[0].any()
    losses.sum().backward()
    assert encoded.grad is not None
    assert not encoded.grad[0].any()
    assert RNNT().too_short(frames, targets) == 1
    with torch.inference_mode():
        assert greedy(model, encoded, frames)[0] == []
        assert beam_search(model, encoded, frames)[0] == []
        assert beam_search(model, encoded[:1], frames[:1]) == [[]]


def greedy_by_hand(model: Transducer, encoded: Tensor) -> list[int]:
    """Of one utterance [frames, width], step by step."""
    found: list[int] = []
    predicted, state = model.predict(torch.tensor([[BLANK]]))
    for frame in encoded:
        for _ in range(transducer_decoding.MAX_TOKENS_PER_FRAME):
            token = int(model.log_probs(frame, predicted[0, 0]).argmax())
            if token == BLANK:
                break
            found.append(token)
            predicted, state = model.predict(torch.tensor([[token]]), state)
    return found


@pytest.mark.parametrize("name", TRANSDUCERS)
@pytest.mark.parametrize("blank_bias", [0.0, 2.0])
def test_greedy_decoding_together_is_each_alone_by_hand(name: str, blank_bias: float) -> None:
    model = network(name, gain=4.0)
    with torch.no_grad():
        model.output.bias[BLANK] += blank_bias
    encoded, frames = encodings(5, 9, seed=1), torch.tensor([9, 1, 4, 0, 7])
    with torch.inference_mode():
        found = greedy(model, encoded, frames)
        wanted = [greedy_by_hand(model, row[:count]) for row, count in zip(encoded, frames.tolist(), strict=True)]
    assert found == wanted
    lengths = [len(tokens) for tokens in found]
    assert lengths[3] == 0
    assert len({tuple(tokens) for tokens in found}) > 3
    if not blank_bias:  # some frame would never end
        assert max(lengths) > transducer_decoding.MAX_TOKENS_PER_FRAME


def texts_by_probability(
    model: Transducer, encoded: Tensor, tokens: int, longest: int
) -> list[tuple[float, tuple[int, ...]]]:
    """Every text of up to `longest` tokens with its log-probability, the most probable first."""
    frames = torch.tensor([len(encoded)])
    texts = [text for n in range(longest + 1) for text in itertools.product(range(1, tokens), repeat=n)]
    found = []
    for text in texts:
        log_probs, _ = lattice(model, encoded[None], frames, [torch.tensor(text, dtype=torch.long)])
        found.append((log_likelihood(log_probs[0], len(encoded), list(text)).item(), text))
    return sorted(found, key=lambda pair: (-pair[0], pair[1]))


@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_finds_the_most_probable_texts(seed: int) -> None:
    model = network(characters=" a", seed=seed, gain=6.0)
    longest = 4
    encoded, frames = encodings(3, 4, seed=seed), torch.tensor([4, 2, 3])
    with torch.inference_mode():
        found = beam_search(model, encoded, frames, width=100, max_tokens=longest)
        for row, count, hypotheses in zip(encoded, frames.tolist(), found, strict=True):
            wanted = texts_by_probability(model, row[:count], tokens=3, longest=longest)
            assert len(hypotheses) == len(wanted) == 31
            assert [hypothesis.tokens for hypothesis in hypotheses[:5]] == [text for _, text in wanted[:5]]
            for hypothesis, (log_prob, _) in zip(hypotheses, wanted, strict=True):
                assert hypothesis.log_prob == pytest.approx(log_prob, abs=1e-4)


def test_what_beams_find_is_never_better_than_the_best_and_rarely_worse() -> None:
    """Also: stopping early, once nothing that is alive can win, loses nothing."""
    worse = {1: 0, 9: 0, 60: 0}  # the last holds all that can be alive
    for seed in range(12):
        model = network(characters=" a", seed=seed, gain=6.0)
        encoded, frames = encodings(1, 4, seed=seed), torch.tensor([4])
        with torch.inference_mode():
            best = texts_by_probability(model, encoded[0], tokens=3, longest=5)[0]
            for width in worse:
                ((hypothesis, *_),) = beam_search(model, encoded, frames, width=width, max_tokens=5)
                assert hypothesis.log_prob <= best[0] + 1e-4
                worse[width] += hypothesis.tokens != best[1]
    assert worse[60] == 0 < worse[9] < worse[1]


def test_a_beam_together_is_each_alone() -> None:
    model = network(gain=4.0)
    encoded, frames = encodings(4, 8, seed=3), torch.tensor([8, 3, 0, 6])
    with torch.inference_mode():
        together = beam_search(model, encoded, frames, width=4)
        for row, (hypotheses, count) in enumerate(zip(together, frames.tolist(), strict=True)):
            (alone,) = beam_search(model, encoded[row : row + 1, : max(1, count)], frames[row : row + 1], width=4)
            assert [h.tokens for h in hypotheses] == [h.tokens for h in alone]
            assert [h.log_prob for h in hypotheses] == pytest.approx([h.log_prob for h in alone], abs=1e-4)
            assert len(hypotheses) == (4 if count else 0)


class Endless(Transducer):
    """Gives one token for ever, never the blank."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.output = nn.Identity()

    def predict(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        return torch.zeros(*tokens.shape, 3), (torch.zeros(1, len(tokens), 1), torch.zeros(1, len(tokens), 1))

    def log_probs(self, encoded: Tensor, predicted: Tensor) -> Tensor:
        return torch.tensor([-20.0, 0.0, -20.0]).log_softmax(dim=-1).expand(len(encoded), 3)


def test_decoding_ends_whatever_the_network_says() -> None:
    encoded, frames = torch.zeros(1, 3, 3), torch.tensor([3])
    assert greedy(Endless(), encoded, frames) == [[1] * 3 * transducer_decoding.MAX_TOKENS_PER_FRAME]
    ((best, *_),) = beam_search(Endless(), encoded, frames, width=2)
    assert best.tokens == (1,) * 6  # twice the frames
    assert math.isfinite(best.log_prob)
