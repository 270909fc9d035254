"""Histograms of magnitudes that are filled from a stream, with bins of equal relative width."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from memsim.crossbar import counting

OCTAVES = 48
"""Octaves that the bins span by default, from the largest magnitude down to 2^-48 of it."""
ALL_OCTAVES = 254
"""The number of octaves of float32, for data whose outliers may lie any distance above the rest."""


class MagnitudeHistogram:
    """Counts of magnitudes, several histograms side by side.

    An octave has 2^`mantissa_bits` bins, and the leading bits of a float32 number give its bin. The bins span `octaves`
    octaves and move up when a larger value arrives. Memory is therefore bounded, and the result does not depend on how
    the values are split into parts.
    """

    def __init__(
        self, groups: int, mantissa_bits: int, device: torch.device | str = "cpu", octaves: int = OCTAVES
    ) -> None:
        self._shift = 23 - mantissa_bits
        self._first = 1  # the leading bits of the values in the first bin; those of 0 are 0
        self._table = torch.zeros(groups, 1 + (octaves << mantissa_bits) + 1, dtype=torch.float64, device=device)
        self._largest = torch.zeros(groups, dtype=torch.int32, device=device)

    @property
    def counts(self) -> Tensor:
        """The counts [groups, bins], float64; the last bin has the largest magnitude of all groups."""
        return self._table[:, 1:-1]

    @property
    def rest(self) -> Tensor:
        """The number of values below the first bin, [groups], float64, which include zeros."""
        return self._table[:, 0]

    @property
    def largest(self) -> Tensor:
        """The largest magnitude [groups], exact."""
        return self._largest.view(torch.float32)

    def add(self, values: Tensor, groups: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Count `values` [rows, n], float32 and finite.

        Row i counts in group `groups` [rows] i (default: in group i), each of its values `weights` [rows] i times
        (default: once).
        """
        if values.numel():
            of_row = torch.arange(len(values), device=values.device) if groups is None else groups
            each = None if weights is None else weights.double()
            self._count(partial(counting.count, values=values, groups=of_row.int(), weights=each))

    def add_by_sign(self, values: Tensor) -> None:
        """Count `values` of any shape, float32 and finite: negative ones in group 0, the others in group 1."""
        if values.numel():
            self._count(partial(counting.count_by_sign, values=values.reshape(-1)))

    def _count(self, count: Callable[..., None]) -> None:
        """Add values by `count`; where some lie above the bins, move these up and count again for the new bins."""
        count(self._table, self._largest, first=self._first, shift=self._shift)
        bins = self._table.shape[1] - 2
        up = (int(self._largest.max()) >> self._shift) - (self._first + bins - 1)
        if up <= 0:
            return
        self._first += up
        again, above = torch.zeros_like(self._table), self._table[:, -1].clone()
        count(again, self._largest, first=self._first, shift=self._shift)
        kept, new = max(0, bins - up), min(up, bins)
        self.rest.add_(self.counts[:, :up].sum(dim=1))
        self.counts[:, :kept] = self.counts[:, bins - kept :].clone()
        self.counts[:, kept:] = again[:, -1 - new : -1]
        if up > bins:
            self.rest.add_(above - self.counts.sum(dim=1))  # values between the old bins and the new ones
        self._table[:, -1] = 0

    @property
    def edges(self) -> Tensor:
        """The magnitudes [bins + 1], float64, between which the bins lie."""
        return _edges(self._first, self._table.shape[1] - 2, self._shift).to(self.counts.device)

    def percentile(self, percent: float) -> Tensor:
        """Return the smallest edge [groups] with at most 100 - `percent` % of the values above; 100 gives the maximum.

        A range set there clips no more than that share, and is at most a bin above the smallest range that does so.
        Where fewer values than that share are not 0, it is the same percentile of the values that are not 0; it is 0
        where all values are 0.
        """
        if percent >= 100:
            return self.largest
        above = self.counts.flip(1).cumsum(1).flip(1)  # the count of a bin and of those above it
        allowed = (1 - percent / 100) * (above[:, 0] + self.rest)
        among_all = allowed < above[:, 0]
        allowed = torch.where(among_all, allowed, (1 - percent / 100) * above[:, 0])
        # the tolerance keeps rounding errors of the sums from moving the edge
        index = (above > allowed[:, None] * (1 + 1e-12)).sum(dim=1)
        return torch.minimum(self.edges[index].float(), self.largest)


def bin_edges(largest: float, bins: int, mantissa_bits: int) -> Tensor:
    """Return the edges [bins + 1], float64, of bins of which the last has the magnitude `largest`."""
    shift = 23 - mantissa_bits
    code = int(torch.tensor(largest, dtype=torch.float32).view(torch.int32)) >> shift
    return _edges(max(1, code - bins + 1), bins, shift)


def _edges(first: int, bins: int, shift: int) -> Tensor:
    codes = first + torch.arange(bins + 1)
    return (codes << shift).int().view(torch.float32).double().clamp_max(torch.finfo(torch.float32).max)
