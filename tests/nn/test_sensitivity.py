"""Sensitivities of a network's loss to the errors of its products."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import memsim
from memsim.nn.calibration import CalibrationData


def test_a_relative_error_raises_the_change_of_outputs_by_its_square():
    torch.manual_seed(0)
    first, second = nn.Linear(12, 8), nn.Linear(8, 6)
    model = nn.Sequential(first, second)
    x = torch.randn(4000, 12)
    found = CalibrationData(model, [x]).sensitivities()
    product = x @ first.weight.T
    mean_square = float(product.detach().square().mean())
    exact = 0.5 * len(x) * float(second.weight.square().sum()) * mean_square
    assert found["0"] == pytest.approx(exact, rel=0.05)
    last = float((first(x) @ second.weight.T).square().mean())
    assert found["1"] == pytest.approx(0.5 * len(x) * 6 * last, rel=1e-4)
    # half the mean square of the output's change by such errors
    noise = 0.1 * mean_square**0.5 * torch.randn(4000, 8)
    change = 0.5 * float((noise @ second.weight.T).square().sum())
    assert found["0"] * 0.01 == pytest.approx(change, rel=0.05)


def test_losses_that_are_given():
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    x, target = torch.randn(20, 5), torch.randint(3, (20,))

    def losses(network):
        for row, label in zip(x, target, strict=True):
            yield nn.functional.cross_entropy(network(row), label)

    found = CalibrationData(model, [x], losses=losses).sensitivities()
    logits = model(x)
    gradient = logits.softmax(1) - nn.functional.one_hot(target, 3)
    product = model[0](x) @ model[1].weight.T
    exact = 0.5 * float(gradient.square().sum(1).mean()) * float(product.square().mean())
    assert found["1"] == pytest.approx(exact, rel=1e-4)


class _Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 3, padding=1)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        y, _ = self.lstm(self.conv(x.transpose(1, 2)).transpose(1, 2))
        y, _ = self.attention(y, y, y)
        return {"logits": self.out(y)}


def test_every_kind_of_layer_has_one_and_the_network_stays_as_it_is():
    torch.manual_seed(1)
    model = _Mixed()
    batches = [torch.randn(2, 10, 4)]
    before = model(batches[0])["logits"]
    found = memsim.measure_inputs(model, batches, with_sensitivity=True)
    assert len(found) >= 7
    assert all(statistics.sensitivity is not None and statistics.sensitivity > 0 for statistics in found.values())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model(batches[0])["logits"], before)
    assert all(s.sensitivity is None for s in memsim.measure_inputs(model, batches).values())


def test_a_run_without_gradients_leaves_them_unknown():
    model = nn.Sequential(nn.Linear(4, 3))

    def run(network):
        with torch.no_grad():
            network(torch.randn(6, 4))

    found = memsim.measure_inputs(model, run, with_sensitivity=True)
    assert found["0"].sensitivity is None
