"""Second moments of the inputs of a matrix, which tell the errors of its product from those of its weights."""

from __future__ import annotations

import torch
from torch import Tensor

from memsim.crossbar.statistics import InputStatistics
from memsim.errors import InputError

MOST_INPUTS = 8192
"""The number of inputs of a matrix up to which moments of all pairs are kept: they take half a gigabyte then.

Those of more inputs, and of groups with as many values together, are kept within parts of neighbouring inputs. The
positional convolution of Wav2Vec2, 16 groups of 6144 inputs, has parts of 512 in place of 5 GB.
"""

_ROWS_AT_ONCE = 2048
_NEGLIGIBLE = 1e-4  # the variance of an input relative to its second moment, up to which float32 sums may leave one


def part_size(inputs: int, groups: int = 1) -> int:
    """Return the number of neighbouring inputs whose moments with each other are kept.

    It is that of a group of `inputs` inputs where its moments, times `groups`, have no more values than those of
    MOST_INPUTS inputs; otherwise the largest part of a group of which that holds. Parts are equally large.
    """
    most = MOST_INPUTS**2 // (groups * inputs)
    return next(size for size in range(min(inputs, max(most, 1)), 0, -1) if inputs % size == 0)


def by_part(values: Tensor, groups: int, parts: int) -> Tensor:
    """Return blocks [parts, out / groups, size] of `values` [out, in / groups], for the `parts` of all groups."""
    blocks: Tensor = values.unflatten(0, (groups, -1)).unflatten(2, (parts // groups, -1)).transpose(1, 2)
    return blocks.flatten(0, 1)


def from_parts(blocks: Tensor, groups: int) -> Tensor:
    """Return the values [out, in / groups] of which `by_part` gave `blocks`."""
    values: Tensor = blocks.unflatten(0, (groups, -1)).transpose(1, 2).flatten(2, 3)
    return values.flatten(0, 1)


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
        if not rows.numel():
            return
        size = part_size(rows.shape[1] // self._groups, self._groups)
        parts = rows.shape[1] // size
        if self._sum is None or self._inputs is None:
            self._sum = torch.zeros(parts, size, size, dtype=torch.float64)
            self._inputs = torch.zeros(parts, size, dtype=torch.float64)
        for some in rows.split(_ROWS_AT_ONCE):
            of_parts = some.unflatten(1, (parts, size)).transpose(0, 1)
            self._sum += of_parts.mT @ of_parts
            self._inputs += of_parts.sum(dim=1, dtype=torch.float64)
        if not torch.isfinite(self._sum.diagonal(dim1=1, dim2=2)).all():
            raise InputError("an input holds NaN or Inf, or its square does")
        self.rows += len(rows)

    def result(self) -> Tensor | None:
        """Return the mean of x x^T over the rows, [parts, size, size], float32: see `part_size`; None without rows."""
        return None if self._sum is None else (self._sum / self.rows).float()

    def mean(self) -> Tensor | None:
        """Return the mean of the rows, [parts, size], float32; None where `result` is."""
        return None if self._inputs is None else (self._inputs / self.rows).float()


def mean_of(statistics: InputStatistics, groups: int = 1) -> Tensor:
    """Return the mean [groups, in / groups] of the inputs that `statistics` hold, or that of the sample's rows."""
    if statistics.mean is not None:
        return statistics.mean.view(groups, -1)
    weights = statistics.weights.double() / statistics.weights.double().sum()
    return (weights @ statistics.sample.double()).float().view(groups, -1)


def moments_of(
    statistics: InputStatistics, groups: int = 1, *, centred: bool = False, shrunk: bool = False
) -> Tensor | None:
    """Return the second moments [parts, size, size] that `statistics` hold, or those of the sample: see `part_size`.

    Each row of the sample counts by its weight. None for one-hot inputs, whose moments are diagonal and all alike.
    `centred` moments are those of what the inputs differ from their mean by, and 0 for an input that is the same in all
    rows. `shrunk` ones estimate those of the inputs that the matrix will meet (see `shrinkage`).
    """
    if statistics.is_one_hot:
        return None
    weights = statistics.weights.double()
    if statistics.moments is not None:
        moments, rows = statistics.moments.double(), float(weights.sum())
    else:
        size = part_size(statistics.sample.shape[1] // groups, groups)
        parts = (statistics.sample.double() * weights.div(weights.sum()).sqrt()[:, None]).unflatten(1, (-1, size))
        moments = torch.einsum("rgi,rgj->gij", parts, parts)
        rows = float(weights.sum().square() / weights.square().sum())
    mean = mean_of(statistics, len(moments)).double()
    of_mean = mean[:, :, None] * mean[:, None]
    covariances = moments - of_mean
    if shrunk:
        variances = torch.diag_embed(covariances.diagonal(dim1=1, dim2=2))
        covariances = torch.lerp(covariances, variances, shrinkage(moments.shape[1], rows))
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
