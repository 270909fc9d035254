"""What is remembered of a layer's input, and its form in a checkpoint."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossbar.by_hand import statistics_of
from memsim.crossbar.convert import dac_range
from memsim.crossbar.statistics import BINS, PREFIX, InputStatistics, statistics_from_tensors
from memsim.errors import InputError
from memsim.spec import Dac


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(50.1, 100), st.sampled_from(["normal", "skew", "constant", "wide"]))
def test_percentiles_are_numpys_within_a_bin(seed: int, percent: float, kind: str) -> None:
    x = torch.randn(2000, 2, generator=torch.Generator().manual_seed(seed))
    x = {"normal": x, "skew": x.exp(), "constant": torch.full_like(x, -0.7), "wide": x**3}[kind]
    statistics = statistics_of(x)
    expected = np.percentile(x.abs().numpy(), percent)
    # above the last value but one numpy interpolates towards the maximum, across empty bins
    second = float(x.abs().flatten().sort().values[-2])
    got = statistics.percentile(percent)
    if expected <= second:
        neighbours = np.percentile(x.abs().numpy(), [max(0, percent - 0.05), min(100, percent + 0.05)])
        width = 2 * statistics.limit / BINS
        assert neighbours[0] - width <= got <= neighbours[1] + width
    assert got <= statistics.absmax == float(x.abs().max())
    assert statistics.percentile(100) == statistics.absmax


def test_percentile_is_linear_within_a_bin_and_of_both_signs() -> None:
    histogram = torch.zeros(BINS)
    histogram[BINS // 2 + 4] = 0.5  # magnitudes in (4, 5) bins
    histogram[BINS // 2 - 5] = 0.5  # the same, negative
    statistics = InputStatistics(BINS / 2, 6.0, histogram, torch.zeros(1, 1))
    assert [statistics.percentile(p) for p in (51, 75, 99)] == pytest.approx([4.51, 4.75, 4.99])
    assert torch.equal(statistics.bin_centres[[0, -1]], torch.tensor([-127.5, 127.5], dtype=torch.float64))


@pytest.mark.parametrize("layer", ["a", "encoder.blocks.0.linear", "odd/name"])
def test_statistics_survive_a_checkpoint(layer: str) -> None:
    x = torch.randn(5000, 3, generator=torch.Generator().manual_seed(2))
    statistics = statistics_of(x)
    tensors = statistics.to_tensors(layer)
    assert all(name.startswith(f"{PREFIX}{layer}/") for name in tensors)
    other = statistics_of(2 * x).to_tensors("other")
    found = statistics_from_tensors(tensors | other | {"encoder.weight": torch.zeros(2, 2)})
    assert sorted(found) == sorted([layer, "other"])
    again = found[layer]
    assert (again.limit, again.absmax) == (statistics.limit, statistics.absmax)
    assert again.histogram.sum() == pytest.approx(1)
    torch.testing.assert_close(again.histogram, statistics.histogram, rtol=1e-3, atol=1e-7)  # float16
    step = float(statistics.sample.abs().max()) / 127
    assert (again.sample - statistics.sample).abs().max() <= 0.501 * step
    for percent in (75, 99, 99.9):
        assert again.percentile(percent) == pytest.approx(statistics.percentile(percent), rel=5e-3)
    assert statistics_from_tensors({}) == {}


def test_the_full_scale_of_a_training_survives_and_is_the_dac_s() -> None:
    statistics = replace(statistics_of(torch.randn(500, 3)), full_scale=1.25)
    again = statistics_from_tensors(statistics.to_tensors("a"))["a"]
    assert again.full_scale == 1.25
    for method in ("max", "percentile", "mse"):
        assert dac_range(Dac(method=method), again) == 1.25
    assert dac_range(Dac(method="max"), replace(again, full_scale=None)) == again.absmax


DAMAGE = {
    "no histogram": {"histogram": None},
    "no sample": {"sample": None},
    "no scales": {"scales": None},
    "short histogram": {"histogram": torch.ones(BINS - 1)},
    "empty histogram": {"histogram": torch.zeros(BINS)},
    "negative histogram": {"histogram": torch.ones(BINS).index_fill(0, torch.tensor(3), -1.0)},
    "NaN histogram": {"histogram": torch.full((BINS,), torch.nan)},
    "flat sample": {"sample": torch.ones(4, dtype=torch.int8)},
    "no rows": {"sample": torch.ones(0, 3, dtype=torch.int8)},
    "NaN sample": {"sample": torch.full((2, 3), torch.nan)},
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
