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
    chosen = []
    for counts, largest in zip(signals.counts, signals.largest.tolist(), strict=True):
        used = counts > 0
        chosen.append(mse_range(centres[used], counts[used], largest, config.bits) if largest else 0.0)
    return torch.tensor(chosen, device=signals.counts.device)


def mse_range(values: Tensor, weights: Tensor, largest: float, bits: int) -> float:
    """The full scale that minimises the mean squared error of `bits`-bit codes over `values` [n] x `weights` [n].

    Sought among powers of 2^0.25 below `largest`, and then between the neighbours of the best.
    """

    def best(candidates: Tensor) -> float:
        decoded = (dac_codes(values, full, bits) * (full / dac_max_code(bits)) for full in candidates)
        errors = [(each - values).square() @ weights for each in decoded]
        return float(candidates[torch.stack(errors).argmin()])

    coarse = best(largest * 2.0 ** -(torch.arange(64, dtype=values.dtype) / 4))
    fine = coarse * torch.linspace(2**-0.25, 2**0.25, 33, dtype=values.dtype)
    return best(fine[fine <= largest * (1 + 1e-9)].clamp_max(largest))
