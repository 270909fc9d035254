"""Second moments of the inputs of a matrix, which tell the errors of its product from those of its weights."""

from __future__ import annotations

import torch
from torch import Tensor

from memsim.crossbar.statistics import InputStatistics
from memsim.errors import InputError

MOST_INPUTS = 8192
"""The number of inputs of a matrix up to which moments are collected: they take half a gigabyte then.

A matrix of groups may have as many values, and so fewer inputs in a block: the positional convolution of Wav2Vec2, 16
groups of 6144 inputs, would take 5 GB.
"""

_ROWS_AT_ONCE = 2048
_NEGLIGIBLE = 1e-4  # the variance of an input relative to its second moment, up to which float32 sums may leave one


def _are_kept(groups: int, block: int) -> bool:
    """Whether moments of `groups` blocks of `block` inputs have no more values than those of MOST_INPUTS inputs."""
    return groups * block**2 <= MOST_INPUTS**2


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
        if not rows.numel() or not _are_kept(self._groups, block):
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

        Returns None where no rows were added, and where they have more values than those of MOST_INPUTS inputs.
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


def moments_of(
    statistics: InputStatistics, groups: int = 1, *, centred: bool = False, shrunk: bool = False
) -> Tensor | None:
    """Return the second moments [groups, in / groups, in / groups] that `statistics` hold, or those of the sample.

    Each row of the sample counts by its weight. None for one-hot inputs, whose moments are diagonal and all alike, and
    for moments of more values than those of MOST_INPUTS inputs. `centred` moments are those of what the inputs differ
    from their mean by, and 0 for an input that is the same in all rows. `shrunk` ones estimate those of the inputs that
    the matrix will meet (see `shrinkage`).
    """
    block = statistics.sample.shape[1] // groups
    if statistics.is_one_hot or not _are_kept(groups, block):
        return None
    weights = statistics.weights.double()
    if statistics.moments is not None:
        moments, rows = statistics.moments.double(), float(weights.sum())
    else:
        parts = (statistics.sample.double() * weights.div(weights.sum()).sqrt()[:, None]).unflatten(1, (groups, block))
        moments = torch.einsum("rgi,rgj->gij", parts, parts)
        rows = float(weights.sum().square() / weights.square().sum())
    mean = mean_of(statistics, groups).double()
    of_mean = mean[:, :, None] * mean[:, None]
    covariances = moments - of_mean
    if shrunk:
        variances = torch.diag_embed(covariances.diagonal(dim1=1, dim2=2))
        covariances = torch.lerp(covariances, variances, shrinkage(block, rows))
    if not centred:
        return (covariances + of_mean).float()
    # what is left of an input that never changes is the rounding of its mean and of its square
    varies = covariances.diagonal(dim1=1, dim2=2) > _NEGLIGIBLE * moments.diagonal(dim1=1, dim2=2)
    return covariances.where(varies[:, :, None] & varies[:, None], 0.0).float()


def shrinkage(inputs: int, rows: float) -> float:
    """Return the part of the covariances of `inputs` inputs that an estimate from `rows` rows leaves out.

    Covariances are zero a priori, with the certainty of as many rows as there are inputs: the mean of an inverse
    Wishart distribution, after the rows. Without it, the moments of fewer rows than inputs have no inverse, and levels
    are fitted to what only these rows have in common. Where rows count differently, `rows` is the number of equal ones
    that tell as much (Kish, Survey Sampling, 1965).
    """
    return inputs / (inputs + rows)
