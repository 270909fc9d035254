"""Second moments of inputs, streamed and estimated."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import memsim
from memsim.crossbar.statistics import one_hot_statistics
from memsim.errors import InputError
from memsim.nn.collect import StatisticsCollector
from memsim.post_training import moments as module
from memsim.post_training.moments import SHRINKAGE, MomentCollector, moments_of


def rows_of(n: int, features: int) -> torch.Tensor:
    return torch.randn(n, features, generator=torch.Generator().manual_seed(0)) + 0.5


@pytest.mark.parametrize("groups", [1, 3])
def test_the_parts_of_a_stream_add_up(groups: int) -> None:
    x = rows_of(5000, 12)
    collector = MomentCollector(groups)
    for part in (x[:1], x[1:40].view(3, 13, 12), x[40:40], x[40:]):
        collector.add(part)
    assert collector.rows == 5000
    blocks = x.double().view(5000, groups, -1)
    torch.testing.assert_close(collector.result(), torch.einsum("ngi,ngj->gij", blocks, blocks).float() / 5000)


def test_inputs_that_cannot_be_used() -> None:
    assert MomentCollector().result() is None
    with pytest.raises(InputError, match="NaN or Inf"):
        MomentCollector().add(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(InputError, match="NaN or Inf"):
        MomentCollector().add(torch.tensor([[1.0, 1e30]]))


def test_blocks_of_very_many_inputs_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_INPUTS", 3)
    few, many = MomentCollector(2), MomentCollector()
    for collector in (few, many):
        collector.add(rows_of(10, 6))
    assert few.result() is not None
    assert many.result() is None


def test_the_estimate_from_a_sample() -> None:
    x = rows_of(60, 4)
    collector = StatisticsCollector(torch.Generator().manual_seed(0))
    collector.add(x)
    everything = collector.result()
    exact = x.T @ x / len(x)
    torch.testing.assert_close(moments_of(everything), exact[None])
    for _ in range(100):
        collector.add(x)
    sampled = moments_of(collector.result())[0]
    assert (sampled.diagonal() / exact.diagonal() - 1).abs().max() < 0.2
    apart = ~torch.eye(4, dtype=torch.bool)
    assert (sampled[apart] / exact[apart]).mean() == pytest.approx(1 - SHRINKAGE, abs=0.1)
    assert moments_of(one_hot_statistics(5)) is None


def test_they_are_measured_in_the_run_of_the_statistics() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv1d(4, 6, 3, groups=2), nn.LSTM(6, 5, batch_first=True)
            self.runs = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.runs += 1
            return self.second(self.first(x).mT)[0]

    runs = []

    def run(model: nn.Module) -> None:
        model(rows_of(8, 40).view(2, 4, 40))
        runs.append(model.runs)

    torch.manual_seed(0)
    plain = memsim.measure_inputs(Net(), run)
    found = memsim.measure_inputs(Net(), run, with_moments=True)
    assert runs == [1, 1]
    assert {name: own.moments for name, own in plain.items()} == dict.fromkeys(plain)
    shapes = {name: tuple(own.moments.shape) for name, own in found.items()}
    assert shapes == {"first": (2, 6, 6), "second.weight_ih_l0": (1, 6, 6), "second.weight_hh_l0": (1, 5, 5)}
    own = found["second.weight_ih_l0"]
    torch.testing.assert_close(own.moments[0], own.sample.T @ own.sample / len(own.sample))
