"""The device of kind `levels`: cells that are programmed to conductances, as arrays see it.

The state of a cell is r = 1 - g / g_high, where g_high is the conductance of the last digit: 0 at that conductance, and
1 for a cell that conducts nothing.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Self

import torch
from torch import Tensor

from memsim.device.interface import Ageing, Device, Disturbed, Programmer, Relaxation
from memsim.device.levels.ageing import REACH, ageing_of
from memsim.device.levels.deviation import Places
from memsim.device.levels.laws import dumped, law_values
from memsim.device.levels.programming import LevelsProgrammer, require_scheme
from memsim.device.levels.schema import CellNoise, LawSection, LevelsFile
from memsim.errors import InputError
from memsim.hardware import Scheme


class LevelsDevice(Device):
    """A device of kind `levels`: see `Device`. `file` has its laws."""

    def __init__(self, file: LevelsFile, device: torch.device | str = "cpu") -> None:
        self.file = file
        self.name, self.source, self.licence = file.name, file.source, file.licence
        self.reference_volts = file.reference_volts
        self.llrs = torch.tensor([file.microsiemens.high * 1e-6, 0.0], dtype=torch.float64, device=device)
        self.hhrs = torch.zeros(2, dtype=torch.float64, device=device)

    def to(self, device: torch.device | str) -> Self:
        """Return the same device with its tensors on `device`."""
        return type(self)(self.file, device)

    def stored(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return no tensors, and the keys of the file in the metadata."""
        return {}, {"name": self.name, "kind": "levels", "levels": json.dumps(dumped(self.file), sort_keys=True)}

    @property
    def higher_powers(self) -> int:
        """The number of further powers of U, from the square on, in the current of a cell."""
        return 0 if self.file.current == "ohmic" else len(self.file.current.higher_powers_amperes)

    def higher_power_terms(self, r: Tensor) -> tuple[Tensor, ...]:
        """Return N_2(r), N_3(r), ... in amperes per volt^k for states `r` of any shape."""
        if self.file.current == "ohmic":
            return ()
        return tuple(self._by_conductance(law, r) for law in self.file.current.higher_powers_amperes)

    @property
    def has_white_noise(self) -> bool:
        """Whether the file has noise of every read."""
        return self.file.noise.white is not None

    def white_variance(self, r: Tensor, bandwidth_hz: float | None) -> Tensor:
        """Return the variance (S^2) of the conductance of cells in states `r` (any shape) in a read of a bandwidth."""
        white = self.file.noise.white
        if white is None:
            return torch.zeros_like(r)
        spread = self._by_conductance(white.spread, r) * 1e-6
        if white.relative:
            spread = spread * ((1.0 - r) * self.file.microsiemens.high)
        ratio = 1.0 if white.bandwidth_hz is None or bandwidth_hz is None else bandwidth_hz / white.bandwidth_hz
        return spread.square() * ratio

    def _by_conductance(self, law: float | LawSection, r: Tensor) -> Tensor:
        """Return the values of `law` for cells in states `r` (any shape), in the shape of `r`."""
        high = self.file.microsiemens.high
        places = Places.of_conductances(REACH * high)
        table = places.table(law_values(law, places.microsiemens, high)).to(r.device)
        return table((1.0 - r.flatten()) * high).view(r.shape)

    @property
    def has_ageing(self) -> bool:
        """Whether the file has a law of drift, of relaxation or of noise that accumulates."""
        file = self.file
        return any(law is not None for law in (file.drift, file.relaxation, file.noise.accumulated))

    def require_programmable(self, config: Scheme, cell_bits: int) -> None:
        """Raise InputError for schemes of pulses on cells with switching cycles."""
        require_scheme(config, self.name)

    def programmer(self, config: Scheme, levels: int) -> Programmer:
        """Return the programmer of `config` for cells of `levels` levels."""
        return LevelsProgrammer(config, self, self.file, levels)

    def mean_states(self, config: Scheme, levels: int) -> tuple[float, ...]:
        """Return the mean state of each digit right after programming, over many cells of a fixed key."""
        return _mean_states(config, self, levels)

    def ageing(self, seconds: float, config: Scheme, levels: int, key: int) -> Ageing | None:
        """Return what the laws say of the time until a read `seconds` after programming; None for nothing.

        With `config.exact` cells have the mean exponent and the mean relaxation, and no noise has accumulated.
        """
        return ageing_of(self.file, seconds, levels, key, config.exact, self.device)

    def relaxation(self, seconds: float, key: int) -> Relaxation:
        """Return what the law of relaxation makes of conductances in units of the last digit's: see `Device`."""
        law = self.file.relaxation
        if law is None or "target" in (law.by, law.around):
            raise InputError(
                f"programming.relaxation: the file of device {self.name} has no law of relaxation by the programmed "
                "conductance"
            )
        alone = self.file.model_copy(update={"drift": None, "noise": CellNoise()})
        change = ageing_of(alone, seconds, 2, key, False, self.device)

        def relaxed(fractions: Tensor, cells: Tensor) -> Tensor:
            digits = torch.zeros_like(cells, dtype=torch.int32)
            return fractions if change is None else 1.0 - change(1.0 - fractions, digits, cells)

        return relaxed

    def disturbed(self, volts: float, config: Scheme) -> Disturbed | None:
        """Return None: it is not known what reads do to the cells."""
        return None

    def stuck_states(self, is_lrs: Tensor, cells: Tensor, key: int) -> Tensor:
        """Return the states [n] of the last digit where `is_lrs` [n], else of the first, without errors."""
        low = 1.0 - self.file.microsiemens.low / self.file.microsiemens.high
        return torch.where(is_lrs, 0.0, low)


@lru_cache(maxsize=64)
def _mean_states(config: Scheme, device: LevelsDevice, levels: int) -> tuple[float, ...]:
    with_errors = config.model_copy(update={"exact": False})
    return LevelsProgrammer(with_errors, device.to("cpu"), device.file, levels).mean_states()
