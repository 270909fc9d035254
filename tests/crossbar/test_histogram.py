"""Histograms of magnitudes: counts, and the percentiles for ranges."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memsim.crossbar import counting
from memsim.crossbar.histogram import MagnitudeHistogram


def histogram_of(*parts: Tensor, mantissa_bits: int = 10) -> MagnitudeHistogram:
    histogram = MagnitudeHistogram(len(parts[0]), mantissa_bits)
    for part in parts:
        histogram.add(part)
    return histogram


def some(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(
    st.integers(0, 1000),
    st.floats(50, 99.999),
    st.integers(1, 3),
    st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=4),
)
def test_a_percentile_clips_no_more_than_the_rest_and_no_bin_lower_would_do(
    seed: int, percent: float, groups: int, sizes: list[float]
) -> None:
    values = torch.cat([size * some(seed + i, groups, 300) for i, size in enumerate(sizes)], dim=1)
    values[:, ::7] = 0
    histogram = histogram_of(*values.split([1, 9, values.shape[1] - 10], dim=1))
    for group, chosen in zip(values.abs().double(), histogram.percentile(percent).double(), strict=True):
        allowed = (1 - percent / 100) * len(group)
        assert (group > chosen).sum() <= allowed + 1e-6
        assert (group > chosen * (1 - 1.01 / 1024)).sum() > allowed - 1e-6 or chosen == group.max()
    assert torch.equal(histogram.percentile(100), values.abs().amax(dim=1))


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(1, 5), st.floats(1e-3, 1e3))
def test_parts_in_any_order_give_the_same_counts(seed: int, parts: int, growth: float) -> None:
    values = some(seed, 2, 200) * growth ** torch.arange(200)[None].div(50, rounding_mode="floor")
    whole = histogram_of(values)
    pieces = list(values.split(-(-200 // parts), dim=1))
    for order in (pieces, pieces[::-1]):
        found = histogram_of(*order)
        assert torch.equal(found.counts, whole.counts)
        assert torch.equal(found.rest, whole.rest)
        assert torch.equal(found.edges, whole.edges)
        assert torch.equal(found.largest, whole.largest)
    assert torch.equal(whole.counts.sum(1) + whole.rest, torch.tensor([200.0, 200.0]).double())


def test_weights_count_as_copies_do() -> None:
    rows, weights = some(1, 100, 3), torch.randint(1, 5, (100,), generator=torch.Generator().manual_seed(2))
    groups = torch.arange(100) % 2
    weighted, copied = MagnitudeHistogram(2, 10), MagnitudeHistogram(2, 10)
    weighted.add(rows, groups, weights)
    copied.add(rows.repeat_interleave(weights, dim=0), groups.repeat_interleave(weights))
    assert torch.equal(weighted.counts, copied.counts)
    assert torch.equal(weighted.rest, copied.rest)
    for percent in (50, 90, 99):
        assert torch.equal(weighted.percentile(percent), copied.percentile(percent))


@pytest.mark.parametrize("share", [0.5, 1e-2, 1e-4])
def test_values_that_are_nearly_always_zero_have_a_range(share: float) -> None:
    values = torch.zeros(1, 100_000)
    count = round(share * values.numel())
    values[0, :count] = torch.linspace(1, 2, count)
    chosen = float(histogram_of(values).percentile(99.5))
    expected = 2 - 0.005 / share if share > 0.005 else 1.995
    assert chosen == pytest.approx(expected, rel=0.01)


def test_zeros_alone_have_no_range() -> None:
    for values in (torch.zeros(2, 30), torch.zeros(2, 0)):
        for percent in (50, 99.99, 100):
            assert histogram_of(values).percentile(percent).tolist() == [0, 0]


@pytest.mark.parametrize("value", [1e-45, 1e-38, 1.0, 3.4e38])
def test_every_float_has_a_bin(value: float) -> None:
    histogram = histogram_of(torch.tensor([[value, -value, 0]]))
    assert histogram.counts.sum() + histogram.rest.sum() == 3
    assert float(histogram.percentile(60)) == pytest.approx(value, rel=1e-3, abs=1e-45) or value < 1e-37


@settings(deadline=None)
@given(st.integers(0, 1000), st.lists(st.floats(1e-30, 1e30), min_size=1, max_size=4), st.booleans())
def test_counts_are_those_of_the_definition(seed: int, sizes: list[float], is_weighted: bool) -> None:
    """However far the bins move up, and however many threads count."""
    few, many = MagnitudeHistogram(3, 2, octaves=5), MagnitudeHistogram(3, 2, octaves=5)
    rows = torch.cat([size * some(seed + i, 9, 20) ** 3 for i, size in enumerate(sizes)])
    rows[::4] = 0
    groups = torch.arange(len(rows)) % 3
    weights = some(seed + 1, len(rows)).abs() if is_weighted else torch.ones(len(rows))
    for part in torch.arange(len(rows)).split(9):
        given_weights = weights[part] if is_weighted else None
        few.add(rows[part], groups[part], given_weights)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(counting, "WORTH_THREADS", 0)
            patch.setattr(torch, "get_num_threads", lambda: 3)
            many.add(rows[part], groups[part], given_weights)
    assert torch.equal(many.counts, few.counts)
    assert torch.equal(many.rest, few.rest)
    for group in range(3):
        own = groups == group
        values, each = rows[own].abs().double(), weights[own].double()[:, None].expand(-1, 20)
        edges = few.edges
        inside = [each[(values >= low) & (values < high)].sum() for low, high in pairwise(edges.tolist())]
        torch.testing.assert_close(few.counts[group], torch.stack(inside), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(few.rest[group], each[values < edges[0]].sum(), rtol=1e-9, atol=1e-9)
        assert few.largest[group] == rows[own].abs().max()


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(1, 3), st.booleans())
def test_signs_are_counted_apart(seed: int, threads: int, is_plain: bool) -> None:
    values = some(seed, 7, 30).relu() - some(seed + 1, 7, 30).relu()
    apart = MagnitudeHistogram(2, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "WORTH_THREADS", 0)
        patch.setattr(torch, "get_num_threads", lambda: threads)
        apart.add_by_sign(values)
    wanted = histogram_of(torch.stack([-values.flatten(), values.flatten()]).clamp_(min=0), mantissa_bits=3)
    assert torch.equal(apart.counts, wanted.counts)
    assert torch.equal(apart.largest, wanted.largest)
    assert apart.counts.sum() + apart.rest.sum() == values.numel()


@settings(deadline=None)
@given(st.integers(0, 1000), st.booleans())
def test_compiled_and_plain_count_alike(seed: int, is_weighted: bool) -> None:
    values = some(seed, 12, 33) ** 3
    weights = some(seed + 1, 12).abs().double() if is_weighted else None
    rows, signs = torch.arange(12, dtype=torch.int32) % 2, (values >= 0).int()
    numbers = {"first": int(torch.tensor(1e-3).view(torch.int32)) >> 13, "shift": 13}

    def table() -> tuple[Tensor, Tensor]:
        return torch.zeros(2, 1 << 12, dtype=torch.float64), torch.zeros(2, dtype=torch.int32)

    found, wanted = table(), table()
    counting.count(*found, values, rows, weights, **numbers)
    counting._count_on_device(*wanted, values, rows[:, None], weights, **numbers)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    found, wanted = table(), table()
    counting.count_by_sign(*found, values.flatten(), **numbers)
    counting._count_on_device(*wanted, values, signs, None, **numbers)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
