"""Change of conductances from programming to a read: drift, relaxation, and noise that accumulates.

A cell's exponent of drift is its own, and its relaxation follows one path, so a chip that is read at two times is the
same chip. Accumulated noise is drawn anew for each time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from memsim import rng
from memsim.device.levels.deviation import Deviation, Path, Places
from memsim.device.levels.laws import law_values, time_law_values
from memsim.device.levels.programming import limited
from memsim.device.levels.schema import Accumulated, Drift, LevelsFile, Relaxation
from memsim.portable import elementwise
from memsim.portable.draws import standard_normals

REACH = 1.5
"""The largest conductance at which laws are tabulated, in units of the largest target; larger ones take its values."""


@dataclass(frozen=True, eq=False)
class Ageing:
    """The ageing of the cells of a matrix until a read `seconds` after programming."""

    file: LevelsFile
    key: int
    targets: Tensor  # [levels], microsiemens
    drift: tuple[Deviation, float] | None  # the exponent, and the logarithm to base 2 of the time ratio
    relaxation: tuple[Deviation, Path] | None
    accumulated: tuple[Deviation, Path] | None

    def __call__(self, r: Tensor, digits: Tensor, cells: Tensor) -> Tensor:
        """Return the states [n] of `cells` [n] (int64) with `digits` [n] that were programmed to `r` [n]."""
        file, high = self.file, self.file.microsiemens.high
        programmed = (1.0 - r) * high
        place = {"target": digits.float(), "programmed": programmed}
        now = programmed
        if self.drift is not None and file.drift is not None:
            exponent, log2_of_time = self.drift
            score, second = standard_normals(rng.derive_seed(self.key, "drift"), cells)
            own = exponent(place[file.drift.by], score, second).abs()
            now = elementwise.exp2(own * -log2_of_time) * now
        if self.relaxation is not None and file.relaxation is not None:
            change, path = self.relaxation
            second = standard_normals(rng.derive_seed(self.key, "relaxation of the cell"), cells)[0]
            moved = change(place[file.relaxation.by], path.scores(cells), second)
            start = now if file.relaxation.around == "programmed" else self.targets.index_select(0, digits)
            now = start + moved
        now = limited(now, file)
        if self.accumulated is not None and file.noise.accumulated is not None:
            noise, path = self.accumulated
            scores = path.scores(cells)
            deviation = noise(place[file.noise.accumulated.by], scores, scores)
            if file.noise.accumulated.relative:
                deviation = deviation * now
            now = limited(now + deviation, file)
        return 1.0 - now * (1.0 / high)


def ageing_of(
    file: LevelsFile, seconds: float, levels: int, key: int, exact: bool, device: torch.device
) -> Ageing | None:
    """Return the ageing until a read `seconds` after programming, or None where the file has none.

    `exact` leaves all spreads and noise away.
    """
    high = file.microsiemens.high
    targets = np.linspace(file.microsiemens.low, high, levels)
    by = {"target": Places.of_digits(targets), "programmed": Places.of_conductances(REACH * high)}
    size = 0.0 if exact else 1.0
    drift: tuple[Deviation, float] | None = None
    if file.drift is not None and seconds > 0:
        drift = _exponent(file.drift, by, high, size).to(device), math.log2(1 + seconds / file.drift.reference_seconds)
    relaxation: tuple[Deviation, Path] | None = None
    if file.relaxation is not None and seconds > 0:
        law = file.relaxation
        relaxation = _change(law, by, seconds, high, size).to(device), _path(law, seconds, key)
    accumulated: tuple[Deviation, Path] | None = None
    if file.noise.accumulated is not None and not exact:
        own = file.noise.accumulated
        path = Path.redrawn(rng.derive_seed(key, "accumulated noise"), seconds)
        accumulated = _noise(own, by, seconds, high).to(device), path
    if drift is None and relaxation is None and accumulated is None:
        return None
    return Ageing(file, key, torch.from_numpy(targets).float().to(device), drift, relaxation, accumulated)


def _exponent(law: Drift, by: dict[str, Places], high: float, size: float) -> Deviation:
    mean = partial(law_values, law.exponent_mean, largest=high)
    return Deviation.of(by[law.by], mean, lambda at: size * law_values(law.exponent_spread, at, high), "normal", high)


def _change(law: Relaxation, by: dict[str, Places], seconds: float, high: float, size: float) -> Deviation:
    mean = partial(time_law_values, law.mean, seconds=seconds, largest=high)
    return Deviation.of(
        by[law.by], mean, lambda at: size * time_law_values(law.spread, at, seconds, high), law.shape, high, seconds
    )


def _path(law: Relaxation, seconds: float, key: int) -> Path:
    own = rng.derive_seed(key, "relaxation")
    if law.path == "frozen":
        return Path.frozen(own)
    if law.path == "redrawn":
        return Path.redrawn(own, seconds)
    return Path.increments(own, math.log1p(seconds / law.path_seconds))


def _noise(law: Accumulated, by: dict[str, Places], seconds: float, high: float) -> Deviation:
    """Return spread sqrt(ln((t + reference + read) / (2 read))), which is 0 before the logarithm is positive."""
    ratio = (seconds + law.reference_seconds + law.read_seconds) / (2 * law.read_seconds)
    size = math.sqrt(max(math.log(ratio), 0.0))
    return Deviation.of(
        by[law.by], lambda at: 0.0 * at, lambda at: size * law_values(law.spread, at, high), "normal", high
    )
