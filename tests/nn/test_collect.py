"""Measuring inputs: histogram, limit, sample."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from memsim.crossbar.statistics import BINS, InputStatistics
from memsim.errors import InputError
from memsim.nn.collect import StatisticsCollector, collecting
from memsim.nn.front_ends import mappable_layers


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def collect(*batches: Tensor, rows: int = 8, seed: int = 0) -> InputStatistics:
    collector = StatisticsCollector(rows, generator(seed))
    for batch in batches:
        collector.add(batch)
    result = collector.result()
    assert result is not None
    return result


@settings(deadline=None)
@given(st.lists(st.floats(1e-3, 1e4), min_size=1, max_size=6), st.integers(0, 100))
def test_doubling_the_limit_keeps_the_counts(sizes: list[float], seed: int) -> None:
    """What is counted under a growing limit is what the final limit would have counted, up to values on an edge."""
    batches = [size * torch.randn(40, 3, generator=generator(seed)) for size in sizes]
    statistics = collect(*batches)
    values = torch.cat(batches).flatten()
    assert statistics.absmax == float(values.abs().max())
    assert statistics.limit / 2 < statistics.absmax <= statistics.limit or len(sizes) > 1
    assert statistics.absmax <= statistics.limit
    assert math.log2(statistics.limit).is_integer()
    cumulative = statistics.histogram.double().cumsum(0) * len(values)
    edges = torch.linspace(-statistics.limit, statistics.limit, BINS + 1, dtype=torch.float64)[1:, None]
    slack = 1e-6 * statistics.limit  # float32 moves what lies on an edge
    assert (cumulative >= (values < edges - slack).sum(1) - 1e-3).all()
    assert (cumulative <= (values < edges + slack).sum(1) + 1e-3).all()


@pytest.mark.parametrize("first", [0.0, 1e-30, 1.0, 1e30])
def test_any_first_batch_will_do(first: float) -> None:
    statistics = collect(torch.full((5, 2), first), torch.randn(100, 2, generator=generator()))
    assert statistics.absmax <= statistics.limit
    assert statistics.histogram.sum() == pytest.approx(1, abs=1e-5)
    assert statistics.sample.shape == (8, 2)


def test_batches_are_counted_as_one() -> None:
    x = torch.randn(4, 30, 3, generator=generator())
    whole = collect(x)
    parts = collect(*x.view(-1, 3).split([1, 50, 19, 50]))
    assert (parts.limit, parts.absmax) == (whole.limit, whole.absmax)
    assert torch.equal(parts.histogram, whole.histogram)
    assert torch.equal(parts.sample, whole.sample)


def test_the_sample_is_uniform_over_all_rows() -> None:
    """Every one of 60 rows, in batches of odd sizes, is sampled with probability 6 / 60."""
    x, trials = torch.arange(1.0, 61)[:, None], 4000
    counts = torch.zeros(61, dtype=torch.float64)
    shared = generator(1)
    for _ in range(trials):
        collector = StatisticsCollector(6, shared)
        for part in x.split([1, 7, 30, 22]):
            collector.add(part)
        result = collector.result()
        assert result is not None
        sample = result.sample.flatten().long()
        assert len(sample.unique()) == 6
        counts[sample] += 1
    z = (counts[1:] - trials * 0.1) / math.sqrt(trials * 0.1 * 0.9)
    assert z.abs().max() < 4.5
    assert 20 < z.square().sum() < 120  # chi-squared with 60 degrees of freedom, nearly


def test_few_rows_are_all_kept() -> None:
    x = torch.randn(3, 2, generator=generator())
    assert torch.equal(collect(x).sample.sort(0).values, x.sort(0).values)


def test_odd_inputs() -> None:
    assert StatisticsCollector(4, generator()).result() is None
    collector = StatisticsCollector(4, generator())
    collector.add(torch.zeros(0, 3))
    assert collector.result() is None
    assert collect(torch.ones(3)).sample.shape == (1, 3)  # one row
    x = torch.randn(10, 3, generator=generator()).half().requires_grad_()
    assert not collect(x).sample.requires_grad
    assert collect(x).sample.dtype == torch.float32
    for bad in (torch.nan, -torch.inf):
        with pytest.raises(InputError, match="NaN or Inf"):
            collector.add(torch.tensor([[1, bad]]))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.unused = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


def test_layers_are_measured_while_open_and_named_in_errors() -> None:
    net = Net()
    layers = mappable_layers(net)
    x = torch.randn(20, 3, generator=generator())
    with collecting(layers, lambda name: generator(len(name)), sample_rows=100) as collectors:
        net(x)
    net(100 * x)
    results = {name: collector.result() for name, collector in collectors.items()}
    assert results["unused"] is None
    first, second = results["first"], results["second"]
    assert first is not None
    assert second is not None
    assert first.absmax == float(x.abs().max())
    assert second.absmax == float(net.first(x).detach().relu().max())
    with pytest.raises(InputError, match=r"first: .*NaN"), collecting(layers, lambda name: generator()):
        net(x * torch.nan)
    net(x * torch.nan)  # no hook is left behind
