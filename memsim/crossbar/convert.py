"""Converters: from inputs to row voltages (DAC) and from column currents to numbers (ADC)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from memsim.hardware import Adc, Dac, FixedAdc
from memsim.portable.draws import standard_normals

LEAST_RANGE = 1e-12
"""The smallest full scale of a converter."""


@dataclass(frozen=True)
class Conversion:
    """The conversion of column signals to numbers.

    Attributes:
        weights: [row_tiles, planes], the value of one code (without an ADC, of one unit of signal) in the sum, in units
            of (weight 1 x full-scale input).
        max_code: the largest code; None without an ADC.
        offsets: [row_tiles, columns], offset errors in codes.
        nonlinearity_codes: the largest deviation of the characteristic from a straight line, in codes.
        tile_factors: [row_tiles, out], digital factors of the sum over the planes of each tile; None without any.
    """

    weights: Tensor
    max_code: int | None = None
    offsets: Tensor | None = None
    nonlinearity_codes: float = 0.0
    tile_factors: Tensor | None = None

    @property
    def planes(self) -> int:
        """The number of planes."""
        return self.weights.shape[1]

    @property
    def per_output(self) -> int:
        """The number of conversions for each output and phase."""
        return 0 if self.max_code is None else self.weights.numel()

    @property
    def bow(self) -> float:
        """The factor b of the deviation b t (1 - t^2), t being the signal over full scale; its peak is 2 b / 3^1.5."""
        return self.nonlinearity_codes * 3**1.5 / 2


@dataclass(frozen=True)
class AdcErrors:
    """The relative gain error and the offset (in codes) of every column's converter, [row_tiles, planes, out] each."""

    gain: Tensor
    offset_codes: Tensor

    @classmethod
    def draw(cls, config: Adc | None, shape: tuple[int, int, int], key: int, device: torch.device) -> AdcErrors | None:
        """Draw Gaussian errors with the deviations of the spec; None for converters without such errors.

        A converter's counter is its place in the flat `shape`.
        """
        if config is None or not (config.gain_error or config.offset_error_codes):
            return None
        gain, offset = standard_normals(key, torch.arange(math.prod(shape), device=device))
        return cls((gain * config.gain_error).view(shape), (offset * config.offset_error_codes).view(shape))


def dac_max_code(bits: int) -> int:
    """Return the largest code of a signed DAC; codes are symmetric, so 8 bits have 255 levels."""
    return (1 << (bits - 1)) - 1


def dac_codes(x: Tensor, input_range: Tensor | float, bits: int) -> Tensor:
    """Convert inputs `x` to codes, whole numbers in the dtype of `x`; `input_range` is the input at full scale."""
    largest = dac_max_code(bits)
    return (x * (largest / input_range)).round_().clamp_(-largest, largest)


def dac_fractions(config: Dac, largest: int, signal: Callable[[Tensor], Tensor], device: torch.device) -> Tensor:
    """Return the voltages of the codes -largest to `largest`, as fractions of full scale; [2 largest + 1], float64.

    With `transfer: uniform` steps are equal. With `linearised` the `signal` of a fraction of full scale, which must be
    monotone, is proportional to the code; bisection finds the fractions. The largest code then has the smaller of the
    signals at both ends of the range, unless no negative voltage is used. With `level_grid: uniform` each fraction is
    rounded to the nearest voltage of a DAC with equal steps.
    """
    codes = torch.arange(-largest, largest + 1, dtype=torch.float64, device=device) / largest
    if config.transfer == "uniform":
        return codes
    ends = signal(torch.tensor([-1.0, 1.0], dtype=torch.float64, device=device))
    full = ends[1] if config.polarity == "two_phase" else torch.minimum(-ends[0] * ends[1].sign(), ends[1].abs())
    wanted = codes.abs() * full.abs()
    low, high = torch.zeros_like(codes), torch.ones_like(codes)
    for _ in range(52):  # halvings, to the last bit of a float64
        middle = (low + high) / 2
        too_low = signal(middle * codes.sign()).abs() < wanted
        low, high = torch.where(too_low, middle, low), torch.where(too_low, high, middle)
    fractions = codes.sign() * (low + high) / 2
    return (fractions * largest).round() / largest if config.level_grid == "uniform" else fractions


def adc_steps(config: Adc, adc_range: Tensor) -> tuple[Tensor, int]:
    """Return the size of one code, in signal units, and the largest code of an ADC of full scale `adc_range`.

    The size has the shape of `adc_range`.
    """
    if isinstance(config, FixedAdc):
        return torch.full_like(adc_range, 2.0**-config.precision_bits), fixed_adc_max_code(config)
    largest = (1 << (config.bits - 1)) - 1
    return adc_range / largest, largest


def fixed_adc_max_code(config: FixedAdc) -> int:
    """Return the largest code of a fixed ADC, which clamps to +-2^(precision + range - 1), as in arXiv 2505.24721."""
    return 1 << (config.precision_bits + config.range_bits - 1)


def adc_range_of_spec(config: Adc | None) -> float | None:
    """Return the full scale that the spec of an ADC gives, in units of (weight 1 x full-scale input).

    Returns None where calibration chooses it, and without an ADC.
    """
    return fixed_adc_max_code(config) * 2.0**-config.precision_bits if isinstance(config, FixedAdc) else None
