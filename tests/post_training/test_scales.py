"""The weighted search for scales, against trying every one."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memsim.crossbar.scale_search import FRACTIONS, least_squares_scale
from memsim.post_training.scales import weighted_scale


def tried(column: torch.Tensor, importance: torch.Tensor, largest: int) -> float:
    """The smallest error of any fraction, with the best scale for its levels."""
    errors = []
    for fraction in FRACTIONS:
        step = column.abs().max() / largest * fraction
        level = (column / step).round().clamp(-largest, largest)
        power = (importance * level.square()).sum()
        scale = (importance * column * level).sum() / power if power > 0 else 0
        errors.append(float((importance * (column - scale * level).square()).sum()))
    return min(errors)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(2, 8), st.integers(0, 10**6))
def test_it_is_the_best_of_all_fractions(n: int, columns: int, bits: int, seed: int) -> None:
    generator, largest = torch.Generator().manual_seed(seed), 2 ** (bits - 1) - 1
    values = torch.randn(n, columns, generator=generator, dtype=torch.float64)
    importance = 10 ** (4 * torch.rand(n, generator=generator, dtype=torch.float64) - 2)
    scale = weighted_scale(values, importance, largest).double()
    for column, own in zip(values.T, scale, strict=True):
        level = (column / own).round().clamp(-largest, largest)
        error = float((importance * (column - own * level).square()).sum())
        # rounding anew with the scale of least squares can only come closer
        assert error <= tried(column, importance, largest) * (1 + 1e-4) + 1e-12


def test_inputs_that_are_all_alike_give_the_scale_of_the_weights() -> None:
    values = torch.randn(200, 30, generator=torch.Generator().manual_seed(0))
    found = weighted_scale(values, torch.full((200,), 3.0), 7)
    torch.testing.assert_close(found, least_squares_scale(values.T.contiguous(), 7), rtol=1e-5, atol=0)
    torch.testing.assert_close(weighted_scale(values, torch.zeros(200), 7), found)


def test_an_unimportant_outlier_is_clipped() -> None:
    values, importance = torch.full((100, 1), 0.1), torch.ones(100)
    values[0], importance[0] = 1.0, 1e-6
    values[1:50] *= -0.5
    assert weighted_scale(values, importance, 3)[0] < 0.3
    assert weighted_scale(torch.zeros(5, 2), torch.ones(5), 3).tolist() == [0, 0]
