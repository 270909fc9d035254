"""What is remembered of a matrix's input, so that converter ranges can be derived without the data.

A signed histogram gives the DAC's range; a few whole input rows, sent through the hardware read, give the ADC's.
Both are hardware-independent, so one set of statistics serves every spec.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from memsim.errors import InputError

BINS = 256
PREFIX = "statistics/"
ONE_HOT_ROWS = 64  # of a sample


@dataclass(frozen=True)
class InputStatistics:
    """Distribution of one layer's input.

    `histogram` [BINS] holds the fraction of values in equal bins over [-limit, limit]; `absmax` is the largest
    magnitude seen; `sample` [rows, features] holds whole input rows. `full_scale` is the input that training chose to
    drive the DAC's full scale.
    """

    limit: float
    absmax: float
    histogram: Tensor
    sample: Tensor
    full_scale: float | None = None

    @property
    def bin_centres(self) -> Tensor:
        """[BINS] input values."""
        width = 2 * self.limit / BINS
        return (torch.arange(BINS, dtype=torch.float64) + 0.5) * width - self.limit

    def percentile(self, percent: float) -> float:
        """The magnitude that `percent` % of the values stay below, linear within a bin; 100 gives the maximum."""
        if percent >= 100:
            return self.absmax
        halves = self.histogram.double().view(2, BINS // 2)
        cumulative = (halves[0].flip(0) + halves[1]).cumsum(0)
        target = percent / 100 * float(cumulative[-1])
        index = int(torch.searchsorted(cumulative, target).clamp_max(BINS // 2 - 1))
        below = float(cumulative[index - 1]) if index else 0.0
        inside = (target - below) / max(float(cumulative[index]) - below, 1e-12)
        return min((index + inside) * 2 * self.limit / BINS, self.absmax)

    def to_tensors(self, layer: str) -> dict[str, Tensor]:
        """Tensors for a checkpoint; the sample in 8 bits, which is what a DAC makes of it."""
        step = max(float(self.sample.abs().max()), 1e-12) / 127
        learned = [] if self.full_scale is None else [self.full_scale]
        return {
            f"{PREFIX}{layer}/histogram": self.histogram.half(),
            f"{PREFIX}{layer}/sample": (self.sample / step).round().to(torch.int8),
            f"{PREFIX}{layer}/scales": torch.tensor([self.limit, self.absmax, step, *learned], dtype=torch.float32),
        }


def one_hot_statistics(features: int) -> InputStatistics:
    """Those of rows of zeros with a single 1, anywhere with the same chance; the zeros, which make no signal, are left
    out of the histogram."""
    histogram = torch.zeros(BINS)
    histogram[-1] = 1
    places = torch.linspace(0, features - 1, min(features, ONE_HOT_ROWS)).long()
    return InputStatistics(1.0, 1.0, histogram, torch.nn.functional.one_hot(places, features).float(), 1.0)


def statistics_of_rows(rows: Tensor, full_scale: float) -> InputStatistics:
    """Those of input rows [n, features], all of which are the sample."""
    absmax = float(rows.abs().max())
    histogram = torch.histc(rows.float().cpu(), BINS, -absmax, absmax)
    return InputStatistics(absmax, absmax, histogram / histogram.sum(), rows, full_scale)


def statistics_from_tensors(tensors: Mapping[str, Tensor]) -> dict[str, InputStatistics]:
    """The inverse of `to_tensors`, for every layer found. Raises InputError on an incomplete set."""
    layers = sorted({name[len(PREFIX) :].rpartition("/")[0] for name in tensors if name.startswith(PREFIX)})
    found = {}
    for layer in layers:
        try:
            histogram, sample, scales = (
                tensors[f"{PREFIX}{layer}/{part}"].float() for part in ("histogram", "sample", "scales")
            )
            limit, absmax, step, *learned = scales.view(-1).tolist()
        except (KeyError, RuntimeError, ValueError) as error:
            raise InputError(
                f"{PREFIX}{layer}: incomplete input statistics ({error}); train or calibrate again"
            ) from None
        shapes_fit = histogram.shape == (BINS,) and sample.ndim == 2 and len(sample) > 0
        numbers_fit = 0 < limit < inf and 0 <= absmax < inf and 0 < step < inf and (histogram >= 0).all()
        numbers_fit = numbers_fit and len(learned) <= 1 and all(0 < number < inf for number in learned)
        if not (shapes_fit and numbers_fit and 0 < histogram.sum() < inf and sample.isfinite().all()):
            raise InputError(f"{PREFIX}{layer}: malformed input statistics; train or calibrate again")
        found[layer] = InputStatistics(limit, absmax, histogram / histogram.sum(), sample * step, *learned)
    return found
