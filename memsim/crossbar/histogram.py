"""Histograms of magnitudes that are filled from a stream, with bins of equal relative width."""

from __future__ import annotations

import torch
from torch import Tensor

from memsim.crossbar.drive import steps

OCTAVES = 48
"""Octaves that the bins span by default, from the largest magnitude down to 2^-48 of it."""
ALL_OCTAVES = 254
"""The number of octaves of float32, for data whose outliers may lie any distance above the rest."""


class MagnitudeHistogram:
    """Counts of magnitudes, several histograms side by side.

    An octave has 2^`mantissa_bits` bins, and the leading bits of a float32 number give its bin. The bins span `octaves`
    octaves and move up when a larger value arrives. Memory is therefore bounded, and the result does not depend on how
    the values are split into parts.

    Attributes:
        counts: [groups, bins], float64; the last bin has the largest magnitude of all groups.
        rest: [groups], float64, the count of values below the first bin, which include zeros.
        largest: [groups], the largest magnitude, exact.
    """

    def __init__(
        self, groups: int, mantissa_bits: int, device: torch.device | str = "cpu", octaves: int = OCTAVES
    ) -> None:
        self._shift = 23 - mantissa_bits
        self._first = 1  # the leading bits of the values in the first bin; those of 0 are 0
        self.counts = torch.zeros(groups, octaves << mantissa_bits, dtype=torch.float64, device=device)
        self.rest = torch.zeros(groups, dtype=torch.float64, device=device)
        self.largest = torch.zeros(groups, device=device)

    def add(self, values: Tensor, weights: Tensor | None = None) -> None:
        """Count `values` [groups, n], float32 and finite; each `weights` [n] times (default: once)."""
        if not values.numel():
            return
        low, high = values.aminmax(dim=1)
        self.largest = torch.maximum(self.largest, torch.maximum(-low, high))
        self._reach(int(self.largest.max().view(torch.int32)) >> self._shift)
        bins = self.counts.shape[1] + 1
        found = steps(values).count(values.view(torch.int32), self._first - 1, self._shift, weights, bins)
        self.rest += found[:, 0]
        self.counts += found[:, 1:]

    def _reach(self, code: int) -> None:
        """Move the bins up until the last one is the bin of leading bits `code` or a higher one."""
        bins = self.counts.shape[1]
        up = code - (self._first + bins - 1)
        if up <= 0:
            return
        self.rest += self.counts[:, :up].sum(dim=1)
        kept = self.counts[:, up:]
        self.counts = torch.nn.functional.pad(kept, (0, bins - kept.shape[1]))
        self._first += up

    @property
    def edges(self) -> Tensor:
        """The magnitudes [bins + 1], float64, between which the bins lie."""
        return _edges(self._first, self.counts.shape[1], self._shift).to(self.counts.device)

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
