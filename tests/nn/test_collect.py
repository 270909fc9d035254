"""Measurement of inputs: histogram, limit, sample."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from memsim.crossbar.statistics import InputStatistics
from memsim.errors import InputError
from memsim.nn import collect as module
from memsim.nn.collect import Collectors, StatisticsCollector, collecting, statistics_collectors
from memsim.nn.layer_adapters import mappable_layers, matrix_sources
from memsim.post_training.moments import MomentCollector


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def collect(*batches: Tensor, rows: int = 8, seed: int = 0) -> InputStatistics:
    collector = StatisticsCollector(generator(seed), rows)
    for batch in batches:
        collector.add(batch)
    result = collector.result()
    assert result is not None
    return result


@settings(deadline=None)
@given(st.lists(st.floats(1e-3, 1e4), min_size=1, max_size=6), st.integers(0, 100))
def test_the_histogram_is_that_of_all_values(sizes: list[float], seed: int) -> None:
    """However large the first ones are: what is counted is what the final bins would have counted at once."""
    batches = [size * torch.randn(40, 3, generator=generator(seed)) for size in sizes]
    statistics = collect(*batches)
    values = torch.cat(batches).flatten()
    assert statistics.absmax == float(values.abs().max())
    for sign, found in zip((-1, 1), statistics.histogram, strict=True):
        magnitudes = (sign * values).double()
        edges = statistics.edges
        expected = torch.tensor(
            [((magnitudes >= edges[i]) & (magnitudes < edges[i + 1])).sum() for i in range(len(found))]
        )
        assert torch.equal((found.double() * len(values)).round().long(), expected)


@pytest.mark.parametrize("first", [0.0, 1e-30, 1.0, 1e30])
def test_any_first_batch_will_do(first: float) -> None:
    statistics = collect(torch.full((5, 2), first), torch.randn(100, 2, generator=generator()))
    assert statistics.histogram.sum() == pytest.approx(0.952 if first == 0 else 1, abs=0.01)
    if 0 < first < 1e3:
        assert 1.7 < statistics.percentile(95) < 3  # whatever the others
    assert statistics.sample.shape[1] == 2
    assert float(statistics.weights.sum()) == pytest.approx(105)


def test_batches_are_counted_as_one() -> None:
    x = torch.randn(4, 30, 3, generator=generator())
    x[1, 3:9] = 2.0  # rows of the same norm: those that come first are taken
    whole = collect(x)
    parts = collect(*x.view(-1, 3).split([1, 50, 19, 50]))
    assert whole.absmax == parts.absmax
    for name in ("edges", "histogram", "sample", "weights"):
        assert torch.equal(getattr(parts, name), getattr(whole, name)), name


@pytest.mark.parametrize("trials", [500, pytest.param(4000, marks=pytest.mark.slow)])
def test_the_light_rows_are_a_uniform_sample_of_all_but_the_heaviest(trials: int) -> None:
    """Of 60 rows, in batches of odd sizes, the 2 heaviest are always there; each other has the same chance."""
    x = torch.arange(1.0, 61)[:, None].flip(0)
    counts, expected = torch.zeros(61, dtype=torch.float64), 0.0
    shared = generator(1)
    for _ in range(trials):
        collector = StatisticsCollector(shared, 8)
        for part in x.split([1, 7, 30, 22]):
            collector.add(part)
        result = collector.result()
        assert result is not None
        heavy, light = result.sample[:2], result.sample[2:]
        assert sorted(heavy.flatten().tolist()) == [59, 60]
        assert torch.equal(result.weights[:2], torch.ones(2))
        torch.testing.assert_close(result.weights[2:], torch.full((len(light),), 58 / max(1, len(light))))
        counts[light.flatten().long()] += 1
        expected += len(light) / 58
    assert counts[59:].sum() == 0
    p = expected / trials
    z = (counts[1:59] - expected) / math.sqrt(trials * p * (1 - p))
    assert z.abs().max() < 4.5
    assert 20 < z.square().sum() < 120  # chi-squared with 58 degrees of freedom, nearly


def test_few_rows_are_all_kept() -> None:
    x = torch.randn(8, 2, generator=generator())
    statistics = collect(x, rows=16)
    assert torch.equal(statistics.sample.sort(0).values, x.sort(0).values)
    assert statistics.is_complete
    assert not collect(torch.randn(40, 2, generator=generator())).is_complete


def test_one_row_in_ten_thousand_is_in_the_sample() -> None:
    x = torch.zeros(10_000, 3)
    x[7321] = torch.tensor([0.0, 0.5, -2.0])
    for seed in range(5):
        assert (collect(*x.split(999), seed=seed).sample == x[7321]).all(dim=1).any()


@pytest.mark.parametrize(("features", "rows"), [(10, 256), (2048, 128), (8192, 32), (40_000, 8)])
def test_wide_inputs_have_fewer_rows(features: int, rows: int) -> None:
    collector = StatisticsCollector(generator())
    collector.add(torch.ones(300, features))
    result = collector.result()
    assert result is not None
    assert rows * 0.6 < len(result.sample) <= rows
    assert result.weights.sum() == pytest.approx(300)


def test_odd_inputs() -> None:
    assert StatisticsCollector(generator()).result() is None
    collector = StatisticsCollector(generator())
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


@pytest.mark.parametrize("is_wide", [False, True])
@pytest.mark.parametrize(
    ("sizes", "together", "together_if_wide"),
    [
        ([1] * 700, [256, 256, 188], [256, 256, 188]),
        ([1, 40, 3, 16, 17, 1, 300, 2], [1, 40, 19, 17, 1, 300, 2], [78, 300, 2]),
        ([(), 1, (2, 3), 0], [8], [8]),
    ],
)
def test_rows_of_small_calls_count_like_others(
    monkeypatch, sizes: list[Any], together: list[int], together_if_wide: list[int], is_wide: bool
) -> None:
    """However the rows are shared out to calls, all are counted, in their order."""
    if is_wide:
        monkeypatch.setattr(module, "WIDE", 2)
    net, passed = nn.Linear(3, 4), list[int]()
    layers = mappable_layers(net)
    draws = generator()
    calls = [torch.randn(*((n,) if isinstance(n, int) else n), 3, generator=draws) for n in sizes]
    rows = torch.cat([call.reshape(-1, 3) for call in calls])
    (name,) = matrix_sources(layers)
    statistics, moments = statistics_collectors(layers), MomentCollector()
    counter = SimpleNamespace(add=lambda x: passed.append(len(x)))
    with collecting(layers, {name: Collectors(statistics[name], moments, counter)}):
        for call in calls:
            net(call)
    assert passed == (together_if_wide if is_wide else together)
    result = statistics[name].result()
    assert result is not None
    assert statistics[name].rows == moments.rows == len(rows)
    assert result.absmax == float(rows.abs().max())
    torch.testing.assert_close(moments.result(), (rows.mT @ rows / len(rows))[None])
    heaviest = rows[rows.norm(dim=1).argsort(descending=True)[: min(64, len(rows))]]
    torch.testing.assert_close(result.sample[: len(heaviest)], heaviest)
    at_once = statistics_collectors(layers)[name]
    at_once.add(rows)
    whole = at_once.result()
    assert whole is not None
    assert torch.equal(result.sample, whole.sample)  # its light rows are drawn by their places
    assert torch.equal(result.weights, whole.weights)
    with pytest.raises(InputError, match=f"{name}: .*NaN"), collecting(layers, {name: MomentCollector()}):
        net(torch.full((1, 3), torch.nan))


def test_layers_are_measured_while_open_and_named_in_errors() -> None:
    net = Net()
    layers = mappable_layers(net)
    x = torch.randn(20, 3, generator=generator())
    collectors = statistics_collectors(layers)
    with collecting(layers, collectors):
        net(x)
    net(100 * x)
    results = {name: collector.result() for name, collector in collectors.items()}
    assert results["unused"] is None
    first, second = results["first"], results["second"]
    assert first is not None
    assert second is not None
    assert first.absmax == float(x.abs().max())
    assert second.absmax == float(net.first(x).detach().relu().max())
    with pytest.raises(InputError, match=r"first: .*NaN"), collecting(layers, statistics_collectors(layers)):
        net(x * torch.nan)
    net(x * torch.nan)  # no hook is left behind
