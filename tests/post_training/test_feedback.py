"""Error feedback against its definition by least squares, and what it promises."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memsim.post_training.feedback import BLOCK, feedback, product_errors


def inputs_of(features: int, rank: int, seed: int, rows: int = 400) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(rank, features, generator=generator, dtype=torch.float64)
    sizes = 10 ** (2 * torch.rand(features, generator=generator, dtype=torch.float64) - 1)
    return torch.randn(rows, rank, generator=generator, dtype=torch.float64) @ mixing * sizes


def moments_of(x: Tensor) -> Tensor:
    return x.T @ x / len(x)


def weight_of(out: int, features: int, seed: int) -> Tensor:
    return torch.randn(out, features, generator=torch.Generator().manual_seed(seed + 1000), dtype=torch.float64)


def by_least_squares(weight: Tensor, step: Tensor, moments: Tensor, largest: int, damping: float, order: Tensor):
    """Round one input after the other, and solve for the best later weights each time."""
    damped = moments + damping * moments.diagonal().mean() * torch.eye(len(moments), dtype=moments.dtype)
    wanted, levels = weight.clone(), torch.zeros_like(weight)
    for place, i in enumerate(order.tolist()):
        levels[:, i] = (wanted[:, i] / step[:, i]).round().clamp(-largest, largest)
        later = order[place + 1 :]
        fixed = wanted[:, i] - levels[:, i] * step[:, i]
        if len(later):  # min over the change c of the later weights of || fixed * x_i + c x_later ||
            change = torch.linalg.solve(damped[later][:, later], damped[later, i])
            wanted[:, later] += fixed[:, None] * change
    return levels


def rounded(weight: Tensor, step: Tensor, largest: int) -> Tensor:
    return (weight / step).round().clamp(-largest, largest)


@pytest.mark.parametrize("by_importance", [True, False])
@pytest.mark.parametrize("features", [1, 2, 7, 12])
def test_each_step_is_that_of_least_squares(features: int, by_importance: bool) -> None:
    for seed in range(20):
        weight, moments = weight_of(5, features, seed), moments_of(inputs_of(features, features, seed))
        step = weight.abs().amax(dim=1, keepdim=True).expand_as(weight) / 4  # 4 > 3: some levels are at the end
        order = torch.arange(features)
        if by_importance:
            order = moments.diagonal().argsort(descending=True, stable=True)
        expected = by_least_squares(weight, step, moments, 3, 0.01, order)
        plain = rounded(weight, step, 3)
        errors = [product_errors(levels * step - weight, moments) for levels in (expected, plain)]
        expected = torch.where((errors[0] < errors[1])[:, None], expected, plain)
        found, damping = feedback(weight, step, moments, 3, 0.01, by_importance=by_importance)
        assert torch.equal(found, expected)
        assert damping == 0.01


def test_the_errors_of_a_block_reach_the_next_blocks() -> None:
    features = 2 * BLOCK + 20
    weight, moments = weight_of(3, features, 0), moments_of(inputs_of(features, features, 0, 2000))
    step = torch.full_like(weight, 0.7)
    expected = by_least_squares(weight, step, moments, 3, 0.01, torch.arange(features))
    found, _ = feedback(weight, step, moments, 3, 0.01, by_importance=False)
    # a weight that is half way between levels may go either way
    assert (found != expected).double().mean() < 0.01
    assert (rounded(weight, step, 3) != expected).double().mean() > 0.1


@settings(max_examples=60, deadline=None)
@given(
    out=st.integers(1, 6),
    features=st.integers(1, 160),
    rank=st.integers(1, 160),
    bits=st.integers(2, 8),
    seed=st.integers(0, 10**6),
    dead=st.booleans(),
)
def test_no_output_is_further_than_by_rounding(out, features, rank, bits, seed, dead) -> None:
    x = inputs_of(features, rank, seed)
    if dead:
        x[:, ::3] = 0
    weight, moments, largest = weight_of(out, features, seed), moments_of(x), 2 ** (bits - 1) - 1
    step = (weight.abs().amax(dim=1, keepdim=True) / largest).expand_as(weight)
    found, _ = feedback(weight, step, moments, largest, 0.01)
    assert found.abs().max() <= largest
    assert torch.equal(found, found.round())
    plain = product_errors(rounded(weight, step, largest) * step - weight, moments)
    mine = product_errors(found * step - weight, moments)
    assert (mine <= plain * (1 + 1e-4) + 1e-9 * product_errors(weight, moments)).all()
    if dead:  # what is never driven is rounded, as nothing is known of it
        assert torch.equal(found[:, ::3], rounded(weight, step, largest)[:, ::3])


def test_weights_on_the_grid_stay() -> None:
    levels = torch.randint(-7, 8, (20, 50), generator=torch.Generator().manual_seed(1)).double()
    step = torch.rand(20, 50, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.1
    found, _ = feedback(levels * step, step, moments_of(inputs_of(50, 10, 3)), 7, 0.01)
    assert torch.equal(found, levels)


def test_diagonal_moments_give_rounding() -> None:
    weight = weight_of(8, 40, 0)
    step = torch.full_like(weight, 0.4)
    moments = torch.diag(torch.linspace(0, 3, 40, dtype=torch.float64))
    assert torch.equal(feedback(weight, step, moments, 7, 0.01)[0], rounded(weight, step, 7))
    assert torch.equal(feedback(weight, step, 0 * moments, 7, 0.01)[0], rounded(weight, step, 7))


def test_moments_without_an_inverse_are_damped_more() -> None:
    weight, step = weight_of(4, 6, 0), torch.full((4, 6), 0.3, dtype=torch.float64)
    moments = torch.ones(6, 6, dtype=torch.float64)
    moments -= 0.2 * torch.eye(6)  # not those of any inputs: its smallest eigenvalue is -0.2
    _, damping = feedback(weight, step, moments, 7, 0.01)
    assert damping == pytest.approx(1.0)


def test_moments_that_no_damping_helps_are_refused() -> None:
    moments = torch.tensor([[1.0, 1e9], [1e9, 1.0]])
    with pytest.raises(ValueError, match=r"^the second moments are not those of any inputs$"):
        feedback(weight_of(3, 2, 0), torch.ones(3, 2), moments, 7, 0.01)


def test_it_takes_much_of_the_error_away() -> None:
    x = inputs_of(100, 20, 0) + 0.01 * inputs_of(100, 100, 1)
    weight, step = weight_of(30, 100, 0), torch.full((30, 100), 0.4, dtype=torch.float64)
    found, _ = feedback(weight, step, moments_of(x), 7, 0.01)
    fresh = inputs_of(100, 20, 0, rows=800)[400:]
    errors = [(fresh @ (levels * step - weight).T).square().sum() for levels in (found, rounded(weight, step, 7))]
    assert errors[0] < 0.2 * errors[1]


def test_the_number_of_threads_does_not_change_the_levels() -> None:
    weight, moments = weight_of(70, 300, 0), moments_of(inputs_of(300, 300, 0))
    step, threads, found = torch.full_like(weight, 0.4), torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(feedback(weight, step, moments, 7, 0.01)[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
