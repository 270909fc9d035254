"""Statistics of a matrix's input, from which converter ranges follow without the data.

The histogram of the input values gives the DAC's range. A sample of whole input rows, read by the hardware, gives the
ADC's range where the data are not at hand. Both are independent of the hardware, so one set of statistics serves every
spec.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import frexp, inf
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from memsim.crossbar.histogram import MagnitudeHistogram, bin_edges
from memsim.errors import InputError

PREFIX = "statistics/"
MANTISSA_BITS = 3
"""Bins of input values are 1/8 of an octave wide."""
ONE_HOT_ROWS = 64
"""Rows in the sample of one-hot statistics."""
_ONE_HOT_CHUNK = 256
_NEGLIGIBLE = 1e-6  # the share of the values other than 0, the smallest, that are counted as 0
_LINEAR_BINS = 256  # size of the histogram that memsim 0.1 reads
_STORED_ROWS = torch.float8_e4m3fn


@dataclass(frozen=True)
class InputStatistics:
    """Distribution of one matrix's input.

    Attributes:
        absmax: the largest magnitude seen.
        edges: [bins + 1], ascending magnitudes.
        histogram: [2, bins], the fractions of the values with magnitudes between the edges, for negative and positive
            values. The rest, up to 1, lies below the first edge and counts as 0.
        sample: [rows, features], whole input rows: those of largest norm and a random draw of the others (see
            `memsim.nn.collect`), or all rows where they are few.
        weights: [rows], the number of input rows that each row of the sample stands for: 1 for the first rows, which
            are those of largest norm, and one same number for the others.
        full_scale: the input at the DAC's full scale that training chose, if any.
        is_one_hot: whether the input rows are all rows with a single 1, of which the sample has some.
        moments: [parts, size, size], the mean of x x^T over all input rows, by group of the matrix, or parts of groups
            (see `memsim.post_training.moments.part_size`); None where it was not asked for. Files do not hold it.
        mean: [parts, size], the mean of x over all input rows; None where `moments` are.
        sensitivity: the rise of the network's loss where the matrix's products err by as much as they are, in second
            order, of which a relative error of e gives e^2 (see `memsim.nn.sensitivity`); None where it was not asked
            for or is not known. Files do not hold it.
    """

    absmax: float
    edges: Tensor
    histogram: Tensor
    sample: Tensor
    weights: Tensor
    full_scale: float | None = None
    is_one_hot: bool = False
    moments: Tensor | None = None
    mean: Tensor | None = None
    sensitivity: float | None = None

    @property
    def is_complete(self) -> bool:
        """Whether `rows` gives all input rows, and not a sample of them."""
        return self.is_one_hot or bool((self.weights == 1).all())

    def rows(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield input rows [n, features] in parts, with the number of rows [n] that each stands for."""
        if not self.is_one_hot:
            yield self.sample, self.weights
            return
        features = self.sample.shape[1]
        for places in torch.arange(features).split(_ONE_HOT_CHUNK):
            yield F.one_hot(places, features).float(), torch.ones(len(places))

    def taken_as_all(self) -> InputStatistics:
        """Return the same statistics with the rows of the sample as all inputs."""
        return replace(self, weights=torch.ones_like(self.weights))

    def values(self, points_per_bin: int = 1) -> tuple[Tensor, Tensor]:
        """Return input values [n], evenly spaced within each bin, and the fraction [n] of the inputs of each."""
        inside = (torch.arange(points_per_bin, dtype=torch.float64) + 0.5) / points_per_bin
        magnitudes = (self.edges[:-1, None] + inside * self.edges.diff()[:, None]).flatten().clamp_max(self.absmax)
        fractions = self.histogram.double().repeat_interleave(points_per_bin, dim=1) / points_per_bin
        return torch.cat([-magnitudes.flip(0), magnitudes]), torch.cat([fractions[0].flip(0), fractions[1]])

    def percentile(self, percent: float) -> float:
        """Return the magnitude that `percent` % of the values stay below, linear within a bin; 100 gives the maximum.

        Where fewer than 100 - `percent` % of the values are not 0, it is the same percentile of those values.
        """
        if percent >= 100:
            return self.absmax
        cumulative = self.histogram.double().sum(0).cumsum(0)
        share, total = percent / 100, float(cumulative[-1])
        target = share - (1 - total)
        if target <= 0:  # the percentile of the values that are not 0
            target = share * total
        index = int(torch.searchsorted(cumulative, target).clamp_max(len(cumulative) - 1))
        below = float(cumulative[index - 1]) if index else 0.0
        inside = (target - below) / max(float(cumulative[index]) - below, 1e-12)
        low, high = float(self.edges[index]), float(self.edges[index + 1])
        return min(low + inside * (high - low), self.absmax)

    def to_tensors(self, layer: str) -> dict[str, Tensor]:
        """Return tensors for a checkpoint, with the sample in 8-bit floats and the histogram that memsim 0.1 reads."""
        step = max(float(self.sample.abs().max()), 1e-12) / torch.finfo(_STORED_ROWS).max
        boosts = _boosts(self.sample)
        limit = min(2.0 ** frexp(max(self.absmax, 1e-12))[1], torch.finfo(torch.float32).max)
        learned = [] if self.full_scale is None else [self.full_scale]
        values, fractions = self.values()
        places = ((values / limit + 1) * (_LINEAR_BINS / 2)).long().clamp(0, _LINEAR_BINS - 1)
        linear = torch.bincount(places, fractions, minlength=_LINEAR_BINS)
        linear[_LINEAR_BINS // 2] += (1 - fractions.sum()).clamp_min(0)
        return {
            f"{PREFIX}{layer}/histogram": linear.half(),
            f"{PREFIX}{layer}/distribution": self.histogram.bfloat16(),
            f"{PREFIX}{layer}/sample": (self.sample * boosts[:, None] / step).to(_STORED_ROWS),
            **({f"{PREFIX}{layer}/boosts": boosts} if (boosts > 1).any() else {}),
            f"{PREFIX}{layer}/weights": torch.tensor([(self.weights == 1).sum(), self.weights.max()]),
            f"{PREFIX}{layer}/scales": torch.tensor([limit, self.absmax, step, *learned], dtype=torch.float32),
        }


def distribution(histogram: MagnitudeHistogram, values: float) -> dict[str, Any]:
    """Return `absmax`, `edges` and `histogram` of the statistics of so many `values`, counted by sign."""
    counts, edges = histogram.counts, histogram.edges
    cumulative = counts.sum(dim=0).cumsum(0)
    first = int((cumulative < _NEGLIGIBLE * cumulative[-1]).sum())
    last = max(first + 1, int((cumulative < cumulative[-1]).sum()) + 1)
    return {
        "absmax": float(histogram.largest.max()),
        "edges": edges[first : last + 1],
        "histogram": (counts[:, first:last] / values).float(),
    }


def one_hot_statistics(features: int) -> InputStatistics:
    """Return the statistics of all rows with a single 1; zeros, which make no signal, are not in the histogram."""
    places = torch.linspace(0, features - 1, min(features, ONE_HOT_ROWS)).long()
    sample = F.one_hot(places, features).float()
    edges, histogram = torch.tensor([0.999, 1.0], dtype=torch.float64), torch.tensor([[0.0], [1.0]])
    weights = torch.full((len(places),), features / len(places))
    return InputStatistics(1.0, edges, histogram, sample, weights, 1.0, is_one_hot=True)


def statistics_from_tensors(tensors: Mapping[str, Tensor]) -> dict[str, InputStatistics]:
    """Read the statistics of every layer found in `tensors`: those of `to_tensors`, and those of memsim 0.1.

    Raises InputError where they are incomplete or malformed.
    """
    layers = sorted({name[len(PREFIX) :].rpartition("/")[0] for name in tensors if name.startswith(PREFIX)})
    return {layer: _of_layer(tensors, layer) for layer in layers}


def _of_layer(tensors: Mapping[str, Tensor], layer: str) -> InputStatistics:
    prefix = f"{PREFIX}{layer}"
    is_linear = f"{prefix}/distribution" not in tensors
    wanted = ("histogram",) if is_linear else ("distribution", "weights")
    try:
        found = {part: tensors[f"{prefix}/{part}"].float() for part in (*wanted, "sample", "scales")}
        limit, absmax, step, *learned = found["scales"].view(-1).tolist()
    except (KeyError, RuntimeError, ValueError) as error:
        raise InputError(f"{prefix}: incomplete input statistics ({error}); train or calibrate again") from None
    numbers_fit = 0 < limit < inf and 0 <= absmax < inf and 0 < step < inf
    numbers_fit = numbers_fit and len(learned) <= 1 and all(0 < number < inf for number in learned)
    if not numbers_fit or (is_linear and found["histogram"].shape != (_LINEAR_BINS,)):
        raise _malformed(prefix)
    sample = found["sample"]
    if is_linear:
        halves = found["histogram"].view(2, -1)
        histogram = torch.stack([halves[0].flip(0), halves[1]]) / halves.sum()
        edges = torch.linspace(0, limit, len(halves[0]) + 1, dtype=torch.float64)
        # memsim 0.1 kept at most 24 rows, and not the number of rows that they stand for
        heavy, each = (float(len(sample)), 1.0) if len(sample) < 24 else (0.0, 2.0)
    else:
        histogram = found["distribution"]
        if histogram.ndim != 2 or not histogram.numel() or found["weights"].shape != (2,):
            raise _malformed(prefix)
        edges = bin_edges(absmax, histogram.shape[1], MANTISSA_BITS)
        heavy, each = (float(number) for number in found["weights"])
    if not (
        sample.ndim == 2
        and len(sample) > 0
        and len(histogram) == 2
        and all(part.isfinite().all() for part in (histogram, sample))
        and (histogram >= 0).all()
        and histogram.sum() < 1.01
        and 0 <= heavy <= len(sample)
        and 1 <= each < inf
    ):
        raise _malformed(prefix)
    weights = torch.full((len(sample),), each)
    weights[: int(heavy)] = 1.0
    boosts = tensors.get(f"{prefix}/boosts", torch.ones(len(sample))).float()
    if boosts.shape != weights.shape or not (boosts >= 1).all():
        raise _malformed(prefix)
    return InputStatistics(absmax, edges, histogram, sample * (step / boosts[:, None]), weights, *learned)


def _boosts(sample: Tensor) -> Tensor:
    """Return the power of two [rows] that scales a row far smaller than the largest into the range of 8-bit floats."""
    largest = sample.abs().amax(dim=1)
    ratios = largest.max() / largest.clamp_min(torch.finfo(torch.float32).tiny)
    return torch.where((ratios > 256) & (largest > 0), ratios.log2().floor().exp2(), 1.0)


def _malformed(prefix: str) -> InputError:
    return InputError(f"{prefix}: malformed input statistics; train or calibrate again")
