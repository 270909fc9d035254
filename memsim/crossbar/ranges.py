"""The choice of converter ranges: the input at the DAC's full scale and the signal at the ADC's."""

from __future__ import annotations

import torch
from torch import Tensor

from memsim.crossbar.convert import LEAST_RANGE, dac_codes, dac_max_code
from memsim.crossbar.histogram import MagnitudeHistogram
from memsim.crossbar.statistics import InputStatistics
from memsim.hardware import CalibratedAdc, Dac, HardwareSpec

_POINTS_PER_BIN = 16


def needs_calibration(spec: HardwareSpec) -> bool:
    """Whether a layer's resolved spec has ranges that only its input can set."""
    return spec.dac is not None or spec.adc is not None or spec.cell != "ideal"


def fits_gain(spec: HardwareSpec) -> bool:
    """Whether the gain of a layer's resolved spec is fitted to whole inputs, not to their single values."""
    calibrated = spec.cell != "ideal" and spec.gain_per_ampere == "calibrated"
    return calibrated and not (spec.wires is None and has_input_range(spec))


def needs_inputs(spec: HardwareSpec) -> bool:
    """Whether the gain or the range of the ADC of a layer's resolved spec depends on whole inputs."""
    return fits_gain(spec) or isinstance(spec.adc, CalibratedAdc)


def has_input_range(spec: HardwareSpec) -> bool:
    """Whether one input, the same for all vectors, drives full scale."""
    return spec.dac is not None and spec.dac.range == "per_layer"


def in_range(dac: Dac | None, rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """Scale inputs [n, in] for the DAC where every vector has its own range.

    Returns the inputs and the range of each [n, 1], or None where one range serves all vectors.
    """
    if dac is None or dac.range == "per_layer":
        return rows, None
    largest = rows.abs().amax(dim=1, keepdim=True)
    ranges = torch.where(largest > 0, largest, torch.ones_like(largest))
    return rows / ranges, ranges


def dac_range(config: Dac, statistics: InputStatistics) -> float:
    """Return the input that drives full scale, above 0: the one that training learned, else the choice of the method.

    It is 1 where all inputs seen were 0.
    """
    if statistics.full_scale is not None:
        return max(statistics.full_scale, LEAST_RANGE)
    if not statistics.absmax:
        return 1.0
    if config.method == "max":
        chosen = statistics.absmax
    elif config.method == "percentile":
        chosen = statistics.percentile(config.percentile)
    else:
        # several points in each bin, because rounding errors average out only over bins wider than a code
        values, weights = statistics.values(_POINTS_PER_BIN)
        chosen = mse_range(values, weights, statistics.absmax, config.bits or 12)
    return max(chosen, LEAST_RANGE)


def calibrated_adc_range(config: CalibratedAdc, signals: MagnitudeHistogram) -> Tensor:
    """Return the full scale of each group [groups] for noiseless column `signals`; 0 where all signals are 0."""
    if config.method == "max":
        return signals.largest
    if config.method == "percentile":
        return signals.percentile(config.percentile)
    centres = (signals.edges[1:] + signals.edges[:-1]) / 2
    chosen: list[float] = []
    for counts, largest in zip(signals.counts, signals.largest.tolist(), strict=True):
        used = counts > 0
        chosen.append(
            mse_range(centres[used].clamp_max(largest), counts[used], largest, config.bits) if largest else 0.0
        )
    return torch.tensor(chosen, device=signals.counts.device)


def mse_range(values: Tensor, weights: Tensor, largest: float, bits: int) -> float:
    """Return the full scale of least mean squared error of `bits`-bit codes over `values` [n] with `weights` [n].

    The search goes over powers of 2^0.25 below `largest`, then around the best of these.
    """

    def errors(candidates: Tensor) -> Tensor:
        decoded = (dac_codes(values, full, bits) * (full / dac_max_code(bits)) for full in candidates)
        return torch.stack([(each - values).square() @ weights for each in decoded])

    # the error has many minima: search in steps of 1 % around each of the best points of the coarse grid
    coarse = largest * 2.0 ** -(torch.arange(64, dtype=values.dtype, device=values.device) / 4)
    found = errors(coarse)
    near = coarse[found <= 1.5 * found.min()]
    steps = 2.0 ** torch.linspace(-0.125, 0.125, 19, dtype=values.dtype, device=values.device)
    candidates = (near[:, None] * steps).flatten().clamp_max(largest).unique()
    found = errors(candidates)
    return float(
        candidates[found <= found.min() * (1 + 1e-3)].max()
    )  # of equally good ranges, the one that clips least
