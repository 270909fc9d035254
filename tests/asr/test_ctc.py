"""The CTC loss in cases that can be counted by hand, and greedy decoding."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from memsim.asr.kinds import CTC, Outputs
from memsim.asr.tokens import CharacterTokens
from memsim.rng import generator

too_short = CTC().too_short


def ctc_losses(log_probs: Tensor, frames: Tensor, targets: list[Tensor]) -> Tensor:
    return CTC().losses(Outputs(log_probs, torch.ones_like(frames), frames), targets)


def greedy(log_probs: Tensor, frames: Tensor, tokens: CharacterTokens) -> list[str]:
    return CTC().transcribe(torch.nn.Identity(), log_probs, frames, tokens)


UNIFORM = torch.full((2, 2, 3), -math.log(3))


def test_the_loss_is_per_character() -> None:
    # One frame a character and certainty: no loss. Uniform over 3 tokens, one frame, one character: log 3.
    certain = torch.tensor([[[0.0, -99, -99], [-99, 0, -99]]])
    assert ctc_losses(certain, torch.tensor([2]), [torch.tensor([1])]).tolist() == pytest.approx([0], abs=1e-6)
    one = ctc_losses(UNIFORM[:1, :1], torch.tensor([1]), [torch.tensor([2])])
    assert one.tolist() == pytest.approx([math.log(3)])
    # Two different characters in two frames have one path: 2 log 3, over 2 characters.
    targets = [torch.tensor([1, 2]), torch.tensor([1, 2])]
    assert ctc_losses(UNIFORM, torch.tensor([2, 2]), targets).tolist() == pytest.approx([math.log(3)] * 2)
    # Too few frames count as no loss.
    assert ctc_losses(UNIFORM, torch.tensor([2, 1]), targets).tolist() == pytest.approx([math.log(3), 0])


def test_its_mean_is_torch_s() -> None:
    draws = generator("loss")
    log_probs = torch.randn(5, 30, 7, generator=draws).log_softmax(-1)
    frames = torch.tensor([30, 25, 3, 28, 30])
    targets: list[Tensor] = [torch.randint(1, 7, (n,), generator=draws) for n in (4, 9, 5, 1, 12)]
    lengths = torch.tensor([len(target) for target in targets])
    expected = F.ctc_loss(log_probs.transpose(0, 1), torch.cat(targets), frames, lengths, zero_infinity=True)
    torch.testing.assert_close(ctc_losses(log_probs, frames, targets).mean(), expected)


def test_no_characters() -> None:
    loss = ctc_losses(UNIFORM[:1], torch.tensor([2]), [torch.empty(0, dtype=torch.long)])
    assert loss.tolist() == pytest.approx([2 * math.log(3)])  # two blanks


def test_repeated_characters_need_a_frame_between_them() -> None:
    for tokens, needed in (([1, 2, 1], 3), ([1, 1], 3), ([2, 2, 2], 5), ([1], 1)):
        assert [too_short(torch.tensor([frames]), [torch.tensor(tokens)]) for frames in (needed - 1, needed)] == [1, 0]
    targets = [torch.tensor([1, 2]), torch.tensor([1, 1])]
    assert too_short(torch.tensor([2, 2]), targets) == 1
    assert too_short(torch.tensor([1, 2]), targets) == 2
    assert too_short(torch.tensor([2, 3]), targets) == 0


TOKENS = CharacterTokens((" ", "a", "b"))
PATHS = st.lists(st.lists(st.integers(0, 3), min_size=8, max_size=8), min_size=1, max_size=4)


def collapsed(path: list[int]) -> str:
    """CTC's rule, one frame at a time: a label counts where it differs from the frame before and is no blank."""
    text, previous = "", 0
    for label in path:
        if label not in (0, previous):
            text += TOKENS.characters[label - 1]
        previous = label
    return " ".join(text.split())


def log_probs_of(paths: list[list[int]]) -> torch.Tensor:
    """Noise in which the path is the best one."""
    noise = torch.rand(len(paths), len(paths[0]), 4, generator=torch.Generator().manual_seed(0))
    return (noise + 2 * torch.nn.functional.one_hot(torch.tensor(paths), 4)).log_softmax(dim=-1)


@given(PATHS, st.data())
def test_greedy_is_ctc_s_collapse(paths: list[list[int]], data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, 8), min_size=len(paths), max_size=len(paths)))
    texts = greedy(log_probs_of(paths), torch.tensor(lengths), TOKENS)
    assert texts == [collapsed(path[:length]) for path, length in zip(paths, lengths, strict=True)]


def test_greedy_by_hand() -> None:
    paths = [[2, 2, 0, 2, 3, 3, 0, 0], [1, 2, 1, 0, 1, 3, 1, 1], [0] * 8, [2, 3, 2, 3, 2, 3, 2, 3]]
    texts = greedy(log_probs_of(paths), torch.tensor([8, 8, 8, 3]), TOKENS)
    assert texts == ["aab", "a b", "", "aba"]


def test_no_frames() -> None:
    assert greedy(torch.zeros(2, 0, 4), torch.tensor([0, 0]), TOKENS) == ["", ""]
