from __future__ import annotations

import pytest
import torch
from torch import nn

from memsim.training.hooks import Hooks, ParameterGroup
from memsim.training.optimiser import averaged, make_optimiser, set_learning_rate
from tests.training.tones import PLAIN, fresh


@pytest.mark.parametrize("optimiser", ["adamw", "radam"])
def test_weight_decay_is_on_matrices_only(optimiser: str) -> None:
    model = fresh().model
    config = PLAIN.model_copy(update={"weight_decay": 0.5, "optimiser": optimiser})
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    made = make_optimiser(model, Hooks().parameter_groups(model, config), config)
    assert sum(len(group["params"]) for group in made.param_groups) == len(before)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made.step()
    for name, parameter in model.named_parameters():
        kept = 1 - 1e-3 * 0.5 if parameter.ndim > 1 else 1
        torch.testing.assert_close(parameter.detach(), kept * before[name], msg=name)


def test_rates_are_scaled_by_group() -> None:
    model = nn.Linear(2, 2)
    groups = [ParameterGroup([model.weight], 0.0), ParameterGroup([model.bias], 0.0, rate_scale=0.1)]
    made = make_optimiser(model, groups, PLAIN)
    set_learning_rate(made, 0.5)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    made.step()  # Adam's first step is the learning rate
    for old, new, rate in zip(before, model.parameters(), (0.5, 0.05), strict=True):
        torch.testing.assert_close(old - new, torch.full_like(old, rate))


def test_rates_follow_sizes() -> None:
    model = nn.Linear(2, 2)
    groups = [ParameterGroup([model.weight], 0.0), ParameterGroup([model.bias], 0.0, 0.5, follows_size=True)]
    made = make_optimiser(model, groups, PLAIN)
    for size, rate in ((0.0, 0.0), (3.0, 0.15), (-1.0, 0.0)):
        torch.nn.init.constant_(model.bias, size)
        set_learning_rate(made, 0.1)
        assert [group["lr"] for group in made.param_groups] == pytest.approx([0.1, rate])


def test_frozen_parameters_belong_to_no_group() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    assert [len(group.parameters) for group in Hooks().parameter_groups(model, PLAIN)] == [1, 0]
    make_optimiser(model, Hooks().parameter_groups(model, PLAIN), PLAIN)
    with pytest.raises(ValueError, match="parameter groups hold bias 1 times"):
        make_optimiser(model, [ParameterGroup(list(model.parameters()), 0.0)], PLAIN)
    with pytest.raises(ValueError, match="parameter groups hold weight 2 times"):
        make_optimiser(model, [ParameterGroup([model.weight], 0.0)] * 2, PLAIN)


def test_the_moving_average() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = averaged(model, 0.6)
    values = [3.0, -1.0, 4.0, 1.0, 5.0, -9.0, 2.0, 6.0, 5.0, 3.0, 5.0, 8.0, 9.0, 7.0]
    expected = values[0]
    for n, value in enumerate(values):
        with torch.no_grad():
            model.weight.fill_(value)
        average.update_parameters(model)
        if n:
            decay = min(0.6, (1 + n) / (10 + n))
            expected = decay * expected + (1 - decay) * value
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-5)
    assert (1 + 12) / (10 + 12) < 0.6 == min(0.6, (1 + 13) / (10 + 13))  # both sides of the minimum were seen


def test_without_a_decay_the_average_is_the_weights() -> None:
    model = nn.Linear(3, 3)
    average = averaged(model, 0.0)
    for _ in range(3):
        nn.init.normal_(model.weight)
        average.update_parameters(model)
        assert torch.equal(average.module.weight, model.weight)
