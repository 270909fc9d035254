"""The choice of converter ranges: an input that drives the DAC's full scale, a signal that fills the ADC."""

from __future__ import annotations

import torch
from torch import Tensor

from memsim.crossbar.convert import LEAST_RANGE, dac_codes, dac_max_code
from memsim.crossbar.histogram import MagnitudeHistogram
from memsim.crossbar.statistics import InputStatistics
from memsim.spec import CalibratedAdc, Dac

_POINTS_PER_BIN = 16


def dac_range(config: Dac, statistics: InputStatistics) -> float:
    """The input that drives full scale, positive: the one that training learned, else chosen by `config.method`.

    1 where only zeros were seen: any input may come.
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
        # several points a bin: where a code is narrower than a bin, the centres alone would say little of rounding
        values, weights = statistics.values(_POINTS_PER_BIN)
        chosen = mse_range(values, weights, statistics.absmax, config.bits or 12)
    return max(chosen, LEAST_RANGE)


def calibrated_adc_range(config: CalibratedAdc, signals: MagnitudeHistogram) -> Tensor:
    """Full scale of each group [groups] for noiseless column `signals`; 0 where all of them are 0."""
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
    """The full scale that minimises the mean squared error of `bits`-bit codes over `values` [n] x `weights` [n].

    Sought among powers of 2^0.25 below `largest`, and then around the best of these.
    """

    def errors(candidates: Tensor) -> Tensor:
        decoded = (dac_codes(values, full, bits) * (full / dac_max_code(bits)) for full in candidates)
        return torch.stack([(each - values).square() @ weights for each in decoded])

    # the error has many minima: those near the best on a coarse grid are looked at in steps of 1 %
    coarse = largest * 2.0 ** -(torch.arange(64, dtype=values.dtype, device=values.device) / 4)
    found = errors(coarse)
    near = coarse[found <= 1.5 * found.min()]
    steps = 2.0 ** torch.linspace(-0.125, 0.125, 19, dtype=values.dtype, device=values.device)
    candidates = (near[:, None] * steps).flatten().clamp_max(largest).unique()
    found = errors(candidates)
    return float(candidates[found <= found.min() * (1 + 1e-3)].max())  # of ranges as good, the one that clips least
