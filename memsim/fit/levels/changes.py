"""Conductances of cells after their start, as arrays."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memsim.fit.arrays import Floats, Ints


@dataclass(frozen=True, eq=False)
class Changes:
    """Conductances of cells after their start, one reading in a place of each array [n].

    Attributes:
        cells: number of the cell.
        start: its conductance at the start, in µS.
        seconds: time since the start.
        now: conductance, in µS.
        group: number of the group of times that `seconds` belongs to.
        first_seconds: the time from which logarithms of time count, before which nothing is known.
    """

    cells: Ints
    start: Floats
    seconds: Floats
    now: Floats
    group: Ints
    first_seconds: float

    def __len__(self) -> int:
        return len(self.cells)

    def where(self, keep: Any) -> Changes:
        """Return the readings of a mask or of indices."""
        arrays = {name: getattr(self, name)[keep] for name in ("cells", "start", "seconds", "now", "group")}
        return replace(self, **arrays)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return (start, seconds, now) as float64 tensors."""
        start, seconds, now = (torch.from_numpy(np.ascontiguousarray(a)) for a in (self.start, self.seconds, self.now))
        return start, seconds, now

    @property
    def positive(self) -> bool:
        """Whether all conductances are above zero, as a law of ln g needs."""
        return bool((self.start > 0).all() and (self.now > 0).all())
