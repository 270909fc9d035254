"""Converters: inputs to row voltages (DAC) and column currents to numbers (ADC), and the choice of their ranges."""

from __future__ import annotations

import torch
from torch import Tensor

from memsim.crossbar.statistics import InputStatistics
from memsim.spec import CalibratedAdc, Dac, FixedAdc

_POINTS_PER_BIN = 16


def dac_max_code(bits: int) -> int:
    """The largest code of a signed DAC; codes are symmetric, so 8 bits have 255 levels."""
    return (1 << (bits - 1)) - 1


def dac_codes(x: Tensor, input_range: Tensor | float, bits: int) -> Tensor:
    """Codes (whole numbers in the dtype of `x`) of inputs `x`; `input_range` is the input that drives full scale."""
    largest = dac_max_code(bits)
    return (x * (largest / input_range)).round_().clamp_(-largest, largest)


def mse_range(values: Tensor, weights: Tensor, largest: float, bits: int) -> float:
    """The full scale that minimises the mean squared error of `bits`-bit codes over `values` [n] x `weights` [n]."""
    candidates = largest * torch.linspace(0.05, 1.0, 96, dtype=values.dtype)[:, None]
    decoded = dac_codes(values[None, :], candidates, bits) * candidates / dac_max_code(bits)
    errors = ((decoded - values) ** 2 * weights).sum(dim=1)
    return float(candidates[errors.argmin(), 0])


def adc_steps(config: CalibratedAdc | FixedAdc, adc_range: Tensor) -> tuple[Tensor, int]:
    """(size of one code, largest code) of an ADC whose full scale is `adc_range` (any shape), in signal units."""
    if isinstance(config, FixedAdc):
        return torch.full_like(adc_range, 2.0**-config.precision_bits), fixed_adc_max_code(config)
    largest = (1 << (config.bits - 1)) - 1
    return adc_range / largest, largest


def fixed_adc_max_code(config: FixedAdc) -> int:
    """The paper's converter clamps to +-2^(precision + range - 1), both ends included."""
    return 1 << (config.precision_bits + config.range_bits - 1)


def fixed_adc_range(config: FixedAdc) -> float:
    """Full scale in units of (weight 1 x full-scale input)."""
    return fixed_adc_max_code(config) * 2.0**-config.precision_bits


def dac_range(config: Dac, statistics: InputStatistics) -> float:
    """The input that drives full scale, chosen by `config.method`; positive."""
    if config.method == "max":
        chosen = statistics.absmax
    elif config.method == "percentile":
        chosen = statistics.percentile(config.percentile)
    else:
        # Several points a bin: where a code is narrower than a bin, the centres alone would say little of rounding.
        inside = (torch.arange(_POINTS_PER_BIN, dtype=torch.float64) + 0.5) / _POINTS_PER_BIN - 0.5
        width = statistics.bin_centres[1] - statistics.bin_centres[0]
        values = (statistics.bin_centres[:, None] + inside * width).flatten()
        weights = statistics.histogram.double().repeat_interleave(_POINTS_PER_BIN)
        chosen = mse_range(values, weights, statistics.absmax, config.bits or 12)
    return max(chosen, 1e-12)


def calibrated_adc_range(config: CalibratedAdc, columns: Tensor) -> Tensor:
    """Full scale [1, planes] that covers the noiseless column signals `columns` [row_tiles, n, planes, out]."""
    magnitudes = columns.abs().transpose(0, 2).flatten(1)  # (planes, values)
    if config.method == "max":
        chosen = magnitudes.amax(dim=1)
    else:
        rank = round(config.percentile / 100 * magnitudes.shape[1])
        chosen = magnitudes.kthvalue(max(1, rank), dim=1).values
    return chosen.clamp_min(1e-12)[None]
