from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from memsim.asr.greedy import greedy
from memsim.asr.tokens import CharacterTokens

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


def test_by_hand() -> None:
    paths = [[2, 2, 0, 2, 3, 3, 0, 0], [1, 2, 1, 0, 1, 3, 1, 1], [0] * 8, [2, 3, 2, 3, 2, 3, 2, 3]]
    texts = greedy(log_probs_of(paths), torch.tensor([8, 8, 8, 3]), TOKENS)
    assert texts == ["aab", "a b", "", "aba"]


def test_no_frames() -> None:
    assert greedy(torch.zeros(2, 0, 4), torch.tensor([0, 0]), TOKENS) == ["", ""]
