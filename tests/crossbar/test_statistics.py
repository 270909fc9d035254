"""Statistics of a layer's input, and their form in a checkpoint."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from memsim.crossbar.ranges import dac_range
from memsim.crossbar.statistics import PREFIX, InputStatistics, statistics_from_tensors
from memsim.errors import InputError
from memsim.hardware import Dac
from tests.crossbar.by_hand import statistics_of


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(50.1, 99.9), st.sampled_from(["normal", "skew", "constant", "outliers", "half"]))
def test_percentiles_are_numpys_within_a_bin(seed: int, percent: float, kind: str) -> None:
    x = torch.randn(2000, 2, generator=torch.Generator().manual_seed(seed))
    outliers = torch.where(torch.arange(2000)[:, None] % 1000 == 0, 1e5, x)
    half = x * (torch.arange(2000)[:, None] % 2)
    kinds = {"normal": x, "skew": x.exp(), "constant": torch.full_like(x, -0.7), "outliers": outliers, "half": half}
    x = kinds[kind]
    statistics = statistics_of(x)
    got = statistics.percentile(percent)
    low, high = np.percentile(x.abs().numpy(), [max(0, percent - 0.05), min(100, percent + 0.05)])
    assert low * (1 - 1 / 8) <= got <= high * (1 + 1 / 8)
    assert got <= statistics.absmax == float(x.abs().max())
    assert statistics.percentile(100) == statistics.absmax


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(50.1, 99.99), st.floats(1e-4, 0.4))
@example(1, 60.0, 0.4)
def test_a_percentile_that_zeros_reach_is_that_of_the_other_values(seed: int, percent: float, share: float) -> None:
    """Otherwise an input that is seldom other than 0 has no range at all."""
    values = torch.rand(max(1, round(20_000 * share)), generator=torch.Generator().manual_seed(seed)) + 0.5
    x = torch.zeros(20_000)
    x[: len(values)] = values
    got = statistics_of(x[:, None]).percentile(percent)
    # where zeros just fail to reach it, the rounding of the histogram (float32) decides, and both answers are right
    if len(values) / len(x) < 1 - percent / 100 - 1e-7:
        low, high = (float(np.percentile(values.numpy(), percent, method=method)) for method in ("lower", "higher"))
        assert 0.87 * low <= got <= 1.13 * high
    assert got > 0.4


def test_percentile_is_linear_within_a_bin_and_of_both_signs() -> None:
    edges = torch.arange(8, dtype=torch.float64)
    histogram = torch.zeros(2, 7)
    histogram[:, 4] = 0.5  # magnitudes in (4, 5), half of them negative
    statistics = InputStatistics(6.0, edges, histogram, torch.zeros(1, 1), torch.ones(1))
    assert [statistics.percentile(p) for p in (51, 75, 99)] == pytest.approx([4.51, 4.75, 4.99])
    values, fractions = statistics.values()
    assert values.tolist() == [-6.0, -5.5, -4.5, -3.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.0]
    assert values[fractions > 0].tolist() == [-4.5, 4.5]
    fine, shares = statistics.values(4)
    assert shares.sum() == 1
    assert fine[shares > 0].abs().unique().tolist() == [4.125, 4.375, 4.625, 4.875]


@pytest.mark.parametrize("ratio", [1e3, 1e8, 1e20, 1e30])
def test_an_outlier_leaves_the_percentile_and_the_other_rows(ratio: float) -> None:
    x = torch.randn(3000, 24, generator=torch.Generator().manual_seed(0))
    expected = float(np.percentile(x.abs().numpy(), 99.9))
    x[5, 3] = ratio
    statistics = statistics_of(x)
    assert statistics.percentile(99.9) == pytest.approx(expected, rel=0.1)
    again = statistics_from_tensors(statistics.to_tensors("a"))["a"]
    assert again.percentile(99.9) == pytest.approx(expected, rel=0.1)
    others = statistics.sample.abs().amax(dim=1) < 100
    torch.testing.assert_close(again.sample[others], statistics.sample[others], rtol=1 / 15, atol=0.01)


@pytest.mark.parametrize("layer", ["a", "encoder.blocks.0.linear", "odd/name"])
def test_statistics_survive_a_checkpoint(layer: str) -> None:
    x = torch.randn(5000, 3, generator=torch.Generator().manual_seed(2))
    x[17] *= 300
    statistics = statistics_of(x)
    tensors = statistics.to_tensors(layer)
    assert all(name.startswith(f"{PREFIX}{layer}/") for name in tensors)
    other = statistics_of(2 * x).to_tensors("other")
    found = statistics_from_tensors(tensors | other | {"encoder.weight": torch.zeros(2, 2)})
    assert sorted(found) == sorted([layer, "other"])
    again = found[layer]
    assert again.absmax == statistics.absmax
    assert torch.equal(again.edges, statistics.edges)
    torch.testing.assert_close(again.weights, statistics.weights)
    torch.testing.assert_close(again.histogram, statistics.histogram, rtol=2**-8, atol=0)
    # each value to 1/16 of itself, the small ones beside a heavy row, too
    smallest = statistics.sample.abs().max() * 2.0**-17
    assert ((again.sample - statistics.sample).abs() <= statistics.sample.abs() / 16 + smallest).all()
    for percent in (75, 99, 99.9, 100):
        assert again.percentile(percent) == pytest.approx(statistics.percentile(percent), rel=5e-3)
    assert statistics_from_tensors({}) == {}


def test_statistics_of_0_1_are_read() -> None:
    """A linear histogram, 24 rows as whole numbers, and nothing of how many rows these stand for."""
    x = torch.randn(5000, 3, generator=torch.Generator().manual_seed(2))
    step = float(x[:24].abs().max()) / 127
    old = {
        "histogram": (torch.histc(x, 256, -8, 8) / x.numel()).half(),
        "sample": (x[:24] / step).round().to(torch.int8),
        "scales": torch.tensor([8, float(x.abs().max()), step]),
    }
    found = statistics_from_tensors({f"{PREFIX}a/{part}": value for part, value in old.items()})["a"]
    assert found.absmax == float(x.abs().max())
    for percent in (60, 99, 99.9):
        assert found.percentile(percent) == pytest.approx(float(np.percentile(x.abs().numpy(), percent)), abs=0.07)
    assert (found.sample - x[:24]).abs().max() <= 0.501 * step
    assert not found.is_complete


def test_what_0_1_reads_is_in_the_file() -> None:
    x = torch.randn(5000, 3, generator=torch.Generator().manual_seed(2))
    tensors = {name.rpartition("/")[2]: value for name, value in statistics_of(x).to_tensors("a").items()}
    limit, absmax, step = tensors["scales"].tolist()
    assert absmax <= limit < 2 * absmax
    histogram = tensors["histogram"].float()
    expected = torch.histc(x, 256, -limit, limit) / x.numel()
    assert (histogram.cumsum(0) - expected.cumsum(0)).abs().max() < 0.03  # bins of another kind
    assert (tensors["sample"].float() * step).abs().max() == pytest.approx(absmax, rel=1e-6)


def test_the_full_scale_of_a_training_survives_and_is_the_dac_s() -> None:
    statistics = replace(statistics_of(torch.randn(500, 3)), full_scale=1.25)
    again = statistics_from_tensors(statistics.to_tensors("a"))["a"]
    assert again.full_scale == 1.25
    for method in ("max", "percentile", "mse"):
        assert dac_range(Dac(method=method), again) == 1.25
    assert dac_range(Dac(method="max"), replace(again, full_scale=None)) == again.absmax


DAMAGE = {
    "no sample": {"sample": None},
    "no weights": {"weights": None},
    "no scales": {"scales": None},
    "short distribution": {"distribution": torch.ones(2, 3)},
    "a distribution of more than all": {"distribution": torch.ones(2, 192)},
    "negative distribution": {"distribution": torch.full((2, 192), -1e-4)},
    "NaN distribution": {"distribution": torch.full((2, 192), torch.nan)},
    "no bins": {"distribution": torch.ones(2, 0)},
    "one sign": {"distribution": torch.zeros(1, 192)},
    "flat sample": {"sample": torch.ones(50, dtype=torch.int8)},
    "no rows": {"sample": torch.ones(0, 3, dtype=torch.int8)},
    "more heavy rows than rows": {"weights": torch.tensor([51.0, 1])},
    "rows that stand for none": {"weights": torch.tensor([12.0, 0])},
    "NaN weights": {"weights": torch.tensor([12.0, torch.nan])},
    "one weight": {"weights": torch.tensor([12.0])},
    "NaN sample": {"sample": torch.full((50, 3), torch.nan)},
    "two scales": {"scales": torch.ones(2)},
    "one scale": {"scales": torch.tensor(1.0)},
    "NaN scale": {"scales": torch.tensor([1, 1, torch.nan])},
    "no full scale": {"scales": torch.tensor([1.0, 1, 1, 0])},
    "five scales": {"scales": torch.ones(5)},
    "no limit": {"scales": torch.tensor([0.0, 1, 1])},
    "negative maximum": {"scales": torch.tensor([1.0, -1, 1])},
    "negative step": {"scales": torch.tensor([1.0, 1, -1])},
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_statistics_are_refused_by_name(damage: str) -> None:
    tensors = statistics_of(torch.randn(50, 3)).to_tensors("enc.0")
    for part, value in DAMAGE[damage].items():
        tensors.pop(f"{PREFIX}enc.0/{part}")
        if value is not None:
            tensors[f"{PREFIX}enc.0/{part}"] = value
    with pytest.raises(InputError, match=r"statistics/enc\.0: .*train or calibrate again"):
        statistics_from_tensors(tensors)
