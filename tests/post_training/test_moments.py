"""Second moments of inputs, streamed and estimated."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import memsim
from memsim.crossbar.statistics import one_hot_statistics
from memsim.errors import InputError
from memsim.nn.collect import StatisticsCollector
from memsim.post_training import moments as module
from memsim.post_training.feedback import feedback, product_errors
from memsim.post_training.moments import MomentCollector, mean_of, moments_of, part_size, shrinkage


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


@pytest.mark.parametrize(("groups", "inputs", "size"), [(1, 12, 6), (2, 6, 6), (3, 4, 4), (1, 24, 3), (2, 12, 3)])
def test_moments_of_too_many_values_are_kept_in_parts(monkeypatch, groups: int, inputs: int, size: int) -> None:
    """They have 81 values at most: 144 of 12 inputs are too many, 72 of two groups of 6 inputs are not."""
    monkeypatch.setattr(module, "MOST_INPUTS", 9)
    assert part_size(inputs, groups) == size
    x = rows_of(10, groups * inputs)
    sample, collector = StatisticsCollector(torch.Generator().manual_seed(0)), MomentCollector(groups)
    sample.add(x)
    collector.add(x)
    parts = x.view(10, -1, size)
    expected = torch.einsum("npi,npj->pij", parts, parts) / 10
    torch.testing.assert_close(collector.result(), expected)
    torch.testing.assert_close(moments_of(sample.result(), groups), expected)
    measured = replace(sample.result(), moments=collector.result(), mean=collector.mean())
    torch.testing.assert_close(mean_of(measured, groups), x.mean(dim=0).view(groups, inputs))
    about = (x - x.mean(dim=0)).view(10, -1, size)
    centred = torch.einsum("npi,npj->pij", about, about) / 10
    torch.testing.assert_close(moments_of(measured, groups, centred=True), centred, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("hardware", "mapping"),
    [("ideal", "feedback"), ("ideal", {"base": "feedback", "offsets": True}), ("physical", "read-back")],
)
@pytest.mark.parametrize("grouped", [False, True])
def test_levels_are_fed_back_within_parts(monkeypatch, hardware: str, mapping: object, grouped: bool) -> None:
    """The error of the product lies between that of rounding and that with all moments, or near the latter."""
    torch.manual_seed(3)
    layer = nn.Conv1d(8, 20, 12, groups=2) if grouped else nn.Linear(96, 20)
    x = nn.functional.avg_pool1d(torch.randn(2, 8, 1200) + 0.1, 7, 1)  # neighbours are alike
    x = x if grouped else x.unfold(2, 12, 4).transpose(1, 2).flatten(2)
    exact = layer(x).detach()

    def error(mapping: object) -> float:
        chip = memsim.map_model(layer, hardware, bits=3, calibration=[x], mapping=mapping)
        (fit,) = chip.mapping.report.layers.values()
        assert fit.method == ("nearest" if mapping == "nearest" else "feedback")
        return float((chip(x) - exact).norm() / exact.norm())

    whole, nearest = error(mapping), error("nearest")
    monkeypatch.setattr(module, "MOST_INPUTS", 48)
    in_parts = error(mapping)
    assert whole < 1.05 * in_parts < 0.95 * nearest


def test_the_estimate_from_a_sample() -> None:
    x = rows_of(60, 4)
    collector = StatisticsCollector(torch.Generator().manual_seed(0))
    collector.add(x)
    everything = collector.result()
    exact = x.T @ x / len(x)
    apart = ~torch.eye(4, dtype=torch.bool)
    torch.testing.assert_close(moments_of(everything)[0], exact)
    all_rows = moments_of(everything, shrunk=True)[0]
    torch.testing.assert_close(all_rows.diagonal(), exact.diagonal())
    of_mean = torch.outer(x.mean(dim=0), x.mean(dim=0))
    shrunk = (exact - of_mean) * 60 / 64 + of_mean  # 4 inputs, 60 rows
    torch.testing.assert_close(all_rows[apart], shrunk[apart])
    measured = replace(everything, moments=exact[None], mean=x.mean(dim=0)[None])
    torch.testing.assert_close(moments_of(measured, shrunk=True)[0], all_rows)
    torch.testing.assert_close(moments_of(measured)[0], exact)
    for _ in range(100):
        collector.add(x)
    repeated = collector.result()
    sampled, weights = moments_of(repeated, shrunk=True)[0], repeated.weights
    assert (sampled.diagonal() / exact.diagonal() - 1).abs().max() < 0.2
    of_sample = (repeated.sample.T * weights) @ repeated.sample / weights.sum()
    light = len(weights) - 64  # drawn rows, which stand for all but the 64 heaviest
    rows = 6060**2 / (64 + (6060 - 64) ** 2 / light)
    mean = weights @ repeated.sample / weights.sum()
    expected = torch.lerp(of_sample, torch.outer(mean, mean), shrinkage(4, rows))
    torch.testing.assert_close(sampled[apart], expected[apart])
    assert moments_of(one_hot_statistics(5)) is None


def test_an_input_that_never_changes_has_no_covariances() -> None:
    x = rows_of(5000, 6)
    x[:, 2:4] = torch.tensor([1 / 3, -0.7])
    collector, moments = StatisticsCollector(torch.Generator().manual_seed(0)), MomentCollector()
    for part in x.split(2048):
        collector.add(part)
        moments.add(part)
    statistics = collector.result()
    assert statistics is not None
    for own in (statistics, replace(statistics, moments=moments.result(), mean=moments.mean())):
        found = moments_of(own, centred=True)
        assert found is not None
        assert not found[0, 2:4].any()
        assert not found[0, :, 2:4].any()
        assert (found[0].diagonal()[[0, 1, 4, 5]] > 0.5).all()


@pytest.mark.parametrize(("rows", "seed"), [(1, 8), (30, 2)])
def test_offsets_for_inputs_that_never_change(rows: int, seed: int) -> None:
    """A network may be calibrated on one row; its products are the exact ones then."""
    x = torch.randn(1, 64, generator=torch.Generator().manual_seed(seed)).expand(rows, -1)
    layer = nn.Linear(64, 32)
    chip = memsim.map_model(layer, "ideal", bits=3, calibration=[x], mapping={"base": "feedback", "offsets": True})
    torch.testing.assert_close(chip(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [40, 160])
def test_feedback_with_moments_of_few_rows_errs_less_on_others(rows: int) -> None:
    """Moments of 40 rows of 60 inputs have no inverse, and say little about any other rows."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.eye(60) + 0.3 * torch.randn(60, 60, generator=generator) / 60**0.5
    errors = {"as measured": 0.0, "shrunk": 0.0}
    for draw in range(8):
        own = torch.Generator().manual_seed(draw)
        weight, seen = torch.randn(20, 60, generator=own), torch.randn(rows, 60, generator=own) @ mixing
        exact = seen.T @ seen / rows
        collector = StatisticsCollector(own)
        collector.add(seen)
        estimates = {
            "as measured": exact[None],
            "shrunk": moments_of(
                replace(collector.result(), moments=exact[None], mean=seen.mean(dim=0)[None]), shrunk=True
            ),
        }
        step = torch.full_like(weight, 1.0)
        for name, moments in estimates.items():
            levels, _ = feedback(weight, step, moments[0], 3, 0.01)
            errors[name] += float(product_errors(levels * step - weight, mixing.T @ mixing).sum())
    assert errors["shrunk"] < 0.97 * errors["as measured"]


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
