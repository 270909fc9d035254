"""The reads in progress on a chip: their inputs, their counts, and the keys of their noise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch

from memsim import rng


@dataclass
class ReadContext:
    """The chip and the batch that reads belong to, from which the keys of their noise follow.

    All matrices of a chip share one object.

    Attributes:
        seed: seed of the chip.
        trial: number of the trial.
        batch: key of the batch that is read.
        count_clips: whether reads count the conversions beyond full scale.
        count_work: whether reads add up the power of the cells.
        has_masked_rows: whether attention gave NaN for queries that see no key. From then on, rows of NaN give NaN
            instead of an error.
    """

    seed: int = 0
    trial: int = 0
    batch: str = ""
    count_clips: bool = False
    count_work: bool = False
    has_masked_rows: bool = False
    _calls: Counter[str] = field(default_factory=Counter)

    def begin(self, batch: str) -> None:
        """Start the reads of `batch`; starting the same batch again repeats its noise."""
        self.batch, self.has_masked_rows = batch, False
        self._calls.clear()

    @contextmanager
    def within(self, batch: str) -> Iterator[None]:
        """Start the reads of `batch`, and continue with those of the previous batch when the block ends."""
        before = self.batch, self.has_masked_rows, self._calls
        self.batch, self.has_masked_rows, self._calls = batch, False, Counter()
        try:
            yield
        finally:
            self.batch, self.has_masked_rows, self._calls = before

    def noise_key(self, name: str) -> int:
        """Return the key of the noise of the next read of matrix `name`."""
        self._calls[name] += 1
        return rng.derive_seed(self.seed, self.trial, name, "read", self.batch, self._calls[name])


def full_precision(device: str) -> AbstractContextManager[None]:
    """Return a context in which autocast is off: the precision of the network does not apply to its arrays.

    Entering `torch.autocast` takes 4 us, a tenth of a read of one frame, so on a CPU it is entered where it must be.
    """
    if device == "cpu" and not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)
