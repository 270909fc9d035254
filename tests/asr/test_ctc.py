"""The CTC loss in cases that can be counted."""

from __future__ import annotations

import math

import pytest
import torch

from memsim.asr.ctc import ctc_loss


def test_the_loss_is_per_character() -> None:
    # One frame a character and certainty: no loss. Uniform over 3 tokens, one frame, one character: log 3.
    certain = torch.tensor([[[0.0, -99, -99], [-99, 0, -99]]])
    assert ctc_loss(certain, torch.tensor([2]), [torch.tensor([1])]).item() == pytest.approx(0, abs=1e-6)
    uniform = torch.full((2, 2, 3), -math.log(3))
    assert ctc_loss(uniform[:1, :1], torch.tensor([1]), [torch.tensor([2])]).item() == pytest.approx(math.log(3))
    # Two different characters in two frames have one path: 2 log 3, over 2 characters.
    targets = [torch.tensor([1, 2]), torch.tensor([1, 2])]
    assert ctc_loss(uniform, torch.tensor([2, 2]), targets).item() == pytest.approx(math.log(3))
    # Too few frames count as no loss.
    assert ctc_loss(uniform, torch.tensor([2, 1]), targets).item() == pytest.approx(math.log(3) / 2)
