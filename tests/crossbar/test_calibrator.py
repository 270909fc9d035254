"""Ranges and gain of a matrix from all its inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memsim.crossbar.calibrator import Calibrator
from memsim.crossbar.matrix import MappedMatrix
from memsim.crossbar.ranges import in_range
from memsim.crossbar.statistics import InputStatistics, one_hot_statistics
from memsim.errors import InputError
from memsim.hardware import HardwareSpec
from tests.crossbar.by_hand import spec_of, statistics_of
from tests.crossbar.matrices import from_weight

QUIET = {"read_noise": None}
CHIPS: dict[str, dict[str, Any]] = {
    "ideal cells": {"cell": "ideal"},
    "no DAC": {"cell": "ideal", "dac": None},
    "cells": {},
    "a range for each vector": {"dac": {"bits": 8, "range": "per_vector"}},
    "two phases": {"dac": {"bits": 8, "polarity": "two_phase"}},
    "slices of the input": {"dac": {"bits": 9, "slice_bits": 2}},
    "line resistance": {"wires": {"ohms": 0.5, "solve": "effective"}},
    "relaxed cells": {"programming": {"scheme": "single_pulse", "relaxation": 0.05}},
}


def inputs(kind: str, seed: int = 0, n: int = 2000, features: int = 7) -> Tensor:
    """Rows [n, features] of which some matter far more than others."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, features, generator=generator)
    if kind == "sparse":
        x *= (torch.rand(n, 1, generator=generator) < 0.01).float()
    elif kind == "heavy":
        x *= torch.rand(n, 1, generator=generator) ** -1.5
    elif kind == "padded":
        x[n // 10 :] = 0
    return x


def chip(spec: HardwareSpec, x: Tensor, seed: int = 0, out: int = 6, parts: int = 3) -> MappedMatrix:
    """A matrix of random weights that is calibrated by all of `x`."""
    weight = torch.randn(out, x.shape[1], generator=torch.Generator().manual_seed(5))
    matrix = from_weight("layer", weight, spec, seed)
    calibrator = Calibrator(matrix.arrays, statistics_of(x))
    if calibrator.needs_inputs:
        for part in x.chunk(parts):
            calibrator.add(part)
    matrix.set_ranges(calibrator.finish())
    return matrix


def clipped(matrix: MappedMatrix, x: Tensor) -> float:
    """The share of the conversions of `x` beyond the range, as a histogram of the noiseless signals has it."""
    scaled, _ = in_range(matrix.spec.dac, x)
    gain = 1.0 if matrix.gain_per_ampere is None else float(matrix.gain_per_ampere)
    input_range = 1.0 if matrix.input_range is None else float(matrix.input_range)
    signals = matrix.arrays.signal_reader(input_range, gain)(scaled)
    full = matrix.adc_range.expand(len(signals), -1) if matrix.adc_range.ndim == 2 else matrix.adc_range
    return float((signals.abs() > full[:, None, :, None] * (1 + 1e-5)).double().mean())


KINDS = ["normal", "sparse", "heavy", "padded"]
ALL = [(chip, kind, granularity) for chip in CHIPS for kind in KINDS for granularity in ("layer", "plane", "tile")]
SOLVED = ("line resistance", "heavy", "plane")  # takes seconds


@pytest.mark.parametrize(("name", "kind", "granularity"), [c for c in ALL if c[0] != SOLVED[0] or c == SOLVED])
def test_max_clips_no_calibration_input(name: str, kind: str, granularity: str) -> None:
    x, changes = inputs(kind), CHIPS[name]
    adc = {"range": "calibrated", "bits": 8, "method": "max", "granularity": granularity}
    for seed in range(2):
        matrix = chip(spec_of(4, 3, **QUIET, adc=adc, **changes), x, seed)
        assert clipped(matrix, x) == 0
        matrix.reads.count_clips = True
        matrix(x)
        assert int(matrix.clips.adc_clipped) == 0
        assert int(matrix.clips.adc_total) > 0
        # and no range is wider than it must be
        matrix.adc_range *= 0.99
        assert clipped(matrix, x) > 0


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 100), st.sampled_from(KINDS), st.sampled_from([90.0, 99.0, 99.9]))
def test_a_percentile_clips_the_rest(seed: int, kind: str, percent: float) -> None:
    x = inputs(kind, seed)
    adc = {"range": "calibrated", "bits": 8, "percentile": percent, "granularity": "layer"}
    matrix = chip(spec_of(3, 3, **QUIET, adc=adc), x)
    share = clipped(matrix, x)
    assert share <= 1 - percent / 100 + 1e-9
    matrix.adc_range = torch.zeros(1, 1)
    if clipped(matrix, x) > 1 - percent / 100:  # enough conversions are other than 0
        assert share > 0.97 * (1 - percent / 100) - 2 / (2000 * 6 * 2 * 3)
    else:
        assert share <= (1 - percent / 100) * clipped(matrix, x) + 1e-9


@pytest.mark.parametrize("method", ["max", "percentile", "mse"])
def test_the_range_depends_on_neither_order_nor_parts_nor_seed(method: str) -> None:
    x = inputs("heavy")
    spec = spec_of(4, 3, cell="ideal", read_noise=None, adc={"range": "calibrated", "bits": 8, "method": method})
    first = chip(spec, x, 0).adc_range
    for seed, parts, order in ((1, 1, 1), (2, 7, 1), (3, 3, -1)):
        again = chip(spec, x if order == 1 else x.flip(0), seed, parts=parts).adc_range
        assert torch.equal(again, first)


def test_mse_is_over_all_inputs() -> None:
    """The range that errs least over every conversion, which the rows of a small sample would put elsewhere."""
    x = inputs("heavy", n=3000)
    for bits in (4, 6, 8):
        spec = spec_of(
            4,
            8,
            cell="ideal",
            **QUIET,
            adc={"range": "calibrated", "bits": bits, "method": "mse", "granularity": "layer"},
        )
        matrix = chip(spec, x)
        signals = matrix.arrays.signal_reader(float(matrix.input_range), 1.0)(x).flatten().double()
        largest = 2 ** (bits - 1) - 1

        def error(full: float, signals: Tensor = signals, largest: int = largest) -> float:
            codes = (signals * largest / full).round().clamp(-largest, largest)
            return float((codes * full / largest - signals).square().mean())

        best = min(error(float(full)) for full in torch.logspace(-2.5, 0, 150) * signals.abs().max())
        assert error(float(matrix.adc_range)) < 1.06 * best  # it has many minima


def test_max_needs_the_data_and_says_so() -> None:
    x = inputs("heavy")
    spec = spec_of(4, adc={"range": "calibrated", "method": "max"})
    matrix = from_weight("enc.3", torch.randn(4, 7), spec, 0)
    with pytest.raises(InputError, match=r"enc\.3: adc\.method: max needs all calibration inputs.*--calibrate DATA"):
        matrix.calibrate(statistics_of(x))
    matrix.calibrate(statistics_of(x[:50]))  # which are all in the sample
    assert matrix.is_calibrated


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percent", [99.0, 99.9, 99.99])
def test_a_stored_sample_keeps_its_promise(kind: str, percent: float) -> None:
    """The bound of memsim.nn.collect, of 95 %, in each of 20 samples; and far below it in the mean."""
    q, b = 1 - percent / 100, torch.tensor(20.0).log() / 192
    bound = float(q + (2 * q * b).sqrt() + 2 * b)
    shares = []
    spec = spec_of(3, 3, **QUIET, adc={"range": "calibrated", "percentile": percent})
    for seed in range(20):
        x = inputs(kind, seed, n=20_000)
        tensors = statistics_of(x).to_tensors("layer")
        matrix = from_weight("layer", torch.randn(6, 7), spec, 0, _stored(tensors))
        shares.append(clipped(matrix, x))
    assert max(shares) < bound
    assert sum(shares) / len(shares) < 5 * q + 0.001


def _stored(tensors: dict[str, Tensor]) -> InputStatistics:
    from memsim.crossbar.statistics import statistics_from_tensors

    return statistics_from_tensors(tensors)["layer"]


def test_one_hot_rows_are_all_read() -> None:
    weight = torch.randn(5, 300)
    weight[2, 217] = 40.0  # in no sample
    spec = spec_of(
        8, 128, cell="ideal", **QUIET, adc={"range": "calibrated", "bits": 8, "method": "max", "granularity": "layer"}
    )
    matrix = from_weight("layer", weight, spec, 0, one_hot_statistics(300))
    x = torch.eye(300)
    matrix.reads.count_clips = True
    matrix(x)
    assert int(matrix.clips.adc_clipped) == 0


@pytest.mark.parametrize("granularity", ["layer", "plane", "tile"])
@pytest.mark.parametrize("method", ["max", "percentile", "mse"])
@pytest.mark.parametrize("name", ["cells", "two phases", "a range for each vector", "slices of the input"])
def test_one_hot_rows_are_read_as_any_others(name: str, method: str, granularity: str) -> None:
    adc = {"range": "calibrated", "bits": 8, "method": method, "percentile": 99.0, "granularity": granularity}
    spec = spec_of(4, 16, **QUIET, adc=adc, **CHIPS[name])
    weight = torch.randn(5, 70, generator=torch.Generator().manual_seed(5))
    quick = from_weight("layer", weight, spec, 0, one_hot_statistics(70))
    slow = from_weight("layer", weight, spec, 0)
    calibrator = Calibrator(slow.arrays, one_hot_statistics(70))
    calibrator.add(torch.eye(70))
    slow.set_ranges(calibrator.finish())
    torch.testing.assert_close(quick.adc_range, slow.adc_range, rtol=5e-3, atol=0)
    torch.testing.assert_close(quick.gain_per_ampere, slow.gain_per_ampere, rtol=1e-4, atol=0)


def test_inputs_that_were_all_zero_leave_ranges_that_others_fit() -> None:
    x = torch.rand(50, 7)
    for method in ("max", "percentile", "mse"):
        for changes in ({}, {"cell": "ideal"}, {"dac": {"bits": 8, "range": "per_vector"}}):
            spec = spec_of(8, 4, **QUIET, adc={"range": "calibrated", "bits": 10, "method": method}, **changes)
            matrix = chip(spec, torch.zeros(40, 7))
            weight = matrix.levels * matrix.scale[:, None]
            wanted = x @ weight.T
            assert (matrix(x) - wanted).norm() < 0.25 * wanted.norm()
