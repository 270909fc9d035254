"""Second moments of the inputs of a matrix, which tell the errors of its product from those of its weights."""

from __future__ import annotations

import torch
from torch import Tensor

from memsim.crossbar.statistics import InputStatistics
from memsim.errors import InputError

MOST_INPUTS = 8192
"""The number of inputs of a block of a matrix up to which moments are collected: they take half a gigabyte then."""

SHRINKAGE = 2 / 3
"""The part of the off-diagonal moments that an estimate from a sample leaves out.

The sample has a few hundred rows, so that the rest is noise for the most part. Of `demo-float` at 3 bits, whose sample
has 256 rows of its training data, feedback with such moments leaves 12.4 % of error on the bundled speech; rounding
leaves 13.9 %, feedback with all of the sample's moments 14.1 %, and with those of the bundled speech itself 7.4 %.
"""

_ROWS_AT_ONCE = 2048


class MomentCollector:
    """The second moments of one matrix's inputs, summed up in float64 from float32 products of 2048 rows at most.

    They are those of the inputs before the DAC. `rows` is the number of input rows that were added.
    """

    def __init__(self, groups: int = 1) -> None:
        self._groups = groups
        self._sum: Tensor | None = None
        self._inputs: Tensor | None = None
        self.rows = 0

    def add(self, x: Tensor) -> None:
        """Add the rows of `x` [..., features]. Raises InputError where they hold NaN or Inf."""
        rows = x.detach().reshape(-1, x.shape[-1]).float().cpu()
        block = rows.shape[1] // self._groups
        if not rows.numel() or block > MOST_INPUTS:
            return
        if self._sum is None or self._inputs is None:
            self._sum = torch.zeros(self._groups, block, block, dtype=torch.float64)
            self._inputs = torch.zeros(self._groups, block, dtype=torch.float64)
        for part in rows.split(_ROWS_AT_ONCE):
            by_group = part.unflatten(1, (self._groups, block)).transpose(0, 1)
            self._sum += by_group.mT @ by_group
            self._inputs += by_group.sum(dim=1, dtype=torch.float64)
        if not torch.isfinite(self._sum.diagonal(dim1=1, dim2=2)).all():
            raise InputError("an input holds NaN or Inf, or its square does")
        self.rows += len(rows)

    def result(self) -> Tensor | None:
        """Return the mean of x x^T over the rows, [groups, in / groups, in / groups], float32.

        None where no rows were added, and for blocks of more than MOST_INPUTS inputs.
        """
        return None if self._sum is None else (self._sum / self.rows).float()

    def mean(self) -> Tensor | None:
        """Return the mean of the rows, [groups, in / groups], float32; None where `result` is."""
        return None if self._inputs is None else (self._inputs / self.rows).float()


def mean_of(statistics: InputStatistics, groups: int = 1) -> Tensor:
    """Return the mean [groups, in / groups] of the inputs that `statistics` hold, or that of the sample's rows."""
    if statistics.mean is not None:
        return statistics.mean
    weights = statistics.weights.double() / statistics.weights.double().sum()
    return (weights @ statistics.sample.double()).float().view(groups, -1)


def moments_of(statistics: InputStatistics, groups: int = 1, *, centred: bool = False) -> Tensor | None:
    """Return the second moments [groups, in / groups, in / groups] that `statistics` hold, or an estimate.

    The estimate is that of the rows of the sample, each counted by its weight, with smaller moments off the diagonal
    (see SHRINKAGE) unless the sample is of all rows. None for one-hot inputs, whose moments
    are diagonal and all alike, and for blocks of more than MOST_INPUTS inputs. `centred` moments are those of what the
    inputs differ from their mean by.
    """
    if statistics.moments is not None:
        if not centred:
            return statistics.moments
        mean = mean_of(statistics, groups).double()
        return (statistics.moments.double() - mean[:, :, None] * mean[:, None]).float()
    block = statistics.sample.shape[1] // groups
    if statistics.is_one_hot or block > MOST_INPUTS:
        return None
    weights = statistics.weights.double() / statistics.weights.double().sum()
    sample = statistics.sample.double()
    if centred:
        sample = sample - weights @ sample
    rows = (sample * weights.sqrt()[:, None]).unflatten(1, (groups, block)).transpose(0, 1)
    moments: Tensor = (rows.mT @ rows).float()
    if statistics.is_complete:
        return moments
    return torch.lerp(moments, torch.diag_embed(moments.diagonal(dim1=1, dim2=2)), SHRINKAGE)
