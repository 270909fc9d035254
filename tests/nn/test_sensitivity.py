"""Sensitivities of a network's loss to the errors of its products."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import memsim
from memsim.nn.calibration import CalibrationData


def test_a_relative_error_raises_the_change_of_outputs_by_its_square():
    torch.manual_seed(0)
    first, second = nn.Linear(32, 24), nn.Linear(24, 6)
    model = nn.Sequential(first, second)
    batches = list(torch.randn(40, 100, 32))
    x = torch.cat(batches)
    found = CalibrationData(model, batches).sensitivities()
    mean_square = float((x @ first.weight.T).detach().square().mean())
    exact = 0.5 * 100 * float(second.weight.detach().square().sum()) * mean_square
    assert found["0"] == pytest.approx(exact, rel=0.05)
    last = float((first(x) @ second.weight.T).square().mean())
    assert found["1"] == pytest.approx(0.5 * 100 * 6 * last, rel=0.05)


@pytest.mark.parametrize("groups", [1, 4])
def test_frames_that_share_an_error_of_the_weights_add_up(groups):
    """Half the mean square change of a mean over frames, for errors of weights that are drawn again and again.

    Frames are nearly alike, so that errors of the weights do not average out over them.
    """
    torch.manual_seed(2)
    conv = nn.Conv1d(16, 8, 1, groups=groups)
    x = torch.randn(60, 16, 1) + 0.3 * torch.randn(60, 16, 50)

    class _Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv

        def forward(self, x):
            return self.conv(x).mean(2)

    found = CalibrationData(_Mean(), list(x[:, None])).sensitivities()["conv"]
    products = (conv(x) - conv.bias[:, None]).detach()
    changes = []
    for _ in range(300):
        error = nn.functional.conv1d(x, torch.randn(conv.weight.shape), groups=groups)
        error *= products.square().mean().sqrt() / error.square().mean().sqrt()
        changes.append(0.5 * float(error.mean(2).square().sum(1).mean()))
    assert found == pytest.approx(sum(changes) / len(changes), rel=0.1)


def test_losses_that_are_given():
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    x, target = torch.randn(20, 5), torch.randint(3, (20,))

    def losses(network):
        for row, label in zip(x, target, strict=True):
            yield nn.functional.cross_entropy(network(row), label)

    found = CalibrationData(model, [x], losses=losses).sensitivities()
    logits = model(x)
    gradient = logits.softmax(1) - nn.functional.one_hot(target, 3)
    inputs = model[0](x)
    weights = float((gradient.square().sum(1) * inputs.square().sum(1)).mean())
    exact = 0.5 * weights * float((inputs @ model[1].weight.T).square().mean() / inputs.square().sum(1).mean())
    assert found["1"] == pytest.approx(exact, rel=1e-4)


def test_losses_without_products_count_for_nothing():
    model, x = nn.Sequential(nn.Linear(5, 4)), torch.randn(6, 5)

    def losses(network, others):
        for row in x:
            if others:
                yield torch.ones(())
            yield network(row).square().sum()

    alone, among_others = (
        CalibrationData(model, [x], losses=lambda network, others=others: losses(network, others)).sensitivities()
        for others in (False, True)
    )
    assert alone["0"] > 0
    assert alone == among_others


def test_outputs_in_tuples_and_lists_count_as_one_alone_does():
    class _Wrapped(nn.Module):
        def __init__(self, wrap):
            super().__init__()
            self.layer, self.wrap = nn.Linear(5, 4), wrap

        def forward(self, x):
            return self.wrap(self.layer(x))

    def found(wrap):
        torch.manual_seed(0)
        return CalibrationData(_Wrapped(wrap), [torch.randn(6, 5)]).sensitivities()["layer"]

    alone = found(lambda y: y)
    assert alone > 0
    assert found(lambda y: (y, torch.arange(3))) == found(lambda y: {"y": [y], "length": 3}) == alone


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
