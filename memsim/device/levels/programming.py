"""Programming to conductances: one attempt with the error of the device file, or attempts until one is accepted."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from memsim import rng
from memsim.device.interface import Act, CurrentScale, Device, Disturb, Outcome, Programmer, Tiles
from memsim.device.levels.deviation import Deviation, Places
from memsim.device.levels.laws import Floats, law_values
from memsim.device.levels.schema import LevelsFile, ProgrammingError
from memsim.device.verify import VerifyRead
from memsim.errors import InputError
from memsim.hardware import Scheme, SinglePulse, WriteVerify
from memsim.portable.draws import standard_normals

POPULATION_DRAWS = 1 << 21
"""Draws from which the mean states of all digits are taken, but for each at least 1024 and at most 32768."""


class LevelsProgrammer(Programmer):
    """The programmer of a device of kind `levels`; currents are fractions of that of the last digit.

    `single_pulse` is one attempt with the error of the file; `write_verify` is attempts until the cell reads within the
    tolerance, of which the last one stays.
    """

    def __init__(self, config: Scheme, device: Device, file: LevelsFile, levels: int) -> None:
        """Tabulate the error of each digit. Raises InputError for a scheme of pulses on switching cycles."""
        require_scheme(config, file.name)
        self._config, self._file, self._levels = config, file, levels
        self._where = device.device
        self._is_exact = config.exact
        low, self._high = file.microsiemens.low, file.microsiemens.high
        targets = np.linspace(low, self._high, levels)
        volts = device.reference_volts if config.verify is None else config.verify.read_volts
        self.scale = CurrentScale(device, volts, 0.0)
        self.targets = torch.from_numpy(targets / self._high).float().to(self._where)
        self._microsiemens = torch.from_numpy(targets).float().to(self._where)
        self._error = _error_of_digits(file, targets).to(self._where)
        self._read = None
        if isinstance(config, WriteVerify):
            self._read = VerifyRead(self.scale, config.verify.noise, config.verify.adc)

    def __call__(self, digits: Tensor, cells: Tensor, key: int) -> Outcome:
        """Program fresh cells to `digits` [n]: see `Programmer`."""
        if not isinstance(self._config, WriteVerify) or self._read is None:
            r, none = self._attempt(digits, cells, key, 0), torch.zeros_like(digits)
            return Outcome(r, none + 1, none, none.bool(), torch.zeros_like(r))
        outcome = Outcome.start(digits.numel(), digits.device)
        outcome.joules.zero_()
        places = torch.arange(digits.numel(), device=digits.device)
        for attempt in range(self._config.tries):
            r = self._attempt(digits, cells, key, attempt)
            one = torch.ones_like(digits)
            outcome.add(places, r, one, one, torch.zeros_like(r))
            (noise, _) = standard_normals(rng.derive_seed(key, "verify", attempt), cells)
            misses = (self._read(r, noise) - self.targets.index_select(0, digits)).abs() > self._config.tolerance
            missed = misses.nonzero().squeeze(1)
            places, digits, cells = (one.index_select(0, missed) for one in (places, digits, cells))
            if not len(places):
                return outcome
        outcome.failed.index_fill_(0, places, True)
        return outcome

    def on_tiles(self, tiles: Tiles, key: int, read_volts: Sequence[float]) -> tuple[Act, Disturb]:
        """Return what programs cells, and what reads do to them, which is nothing.

        Raises InputError for reads that are to disturb cells, as the file does not say how.
        """
        if read_volts:
            raise InputError(
                f"read_disturb: the file of device {self._file.name} does not say what reads do to its cells; "
                "set read_disturb to none"
            )
        act: Act = partial(self, key=key)
        if self._is_exact:
            act = partial(_in_mean_states, torch.tensor(self.mean_states(), device=self._where))
        return act, _undisturbed

    def _attempt(self, digits: Tensor, cells: Tensor, key: int, attempt: int) -> Tensor:
        """Draw the states [n] of `cells` after an attempt."""
        scores = standard_normals(rng.derive_seed(key, "attempt", attempt), cells)
        error = self._error(digits.float(), *scores)
        programmed = limited(self._microsiemens.index_select(0, digits) + error, self._file)
        return 1.0 - programmed * (1.0 / self._high)

    def mean_states(self) -> tuple[float, ...]:
        """Return the mean state of each digit, over cells of a fixed key."""
        count = min(max(POPULATION_DRAWS // self._levels, 1024), 1 << 15)
        cells = torch.arange(count, device=self._where)

        def mean(digit: int) -> float:
            digits = torch.full_like(cells, digit, dtype=torch.int32)
            return self(digits, cells, rng.derive_seed("population", digit)).r.double().mean().item()

        return tuple(mean(digit) for digit in range(self._levels))


def require_scheme(config: Scheme, name: str) -> None:
    """Raise InputError for a scheme of pulses on cells with switching cycles; `name` is the device's."""
    if isinstance(config, SinglePulse) and config.cycling is not None:
        raise InputError(
            f"programming.cycling: device {name} has no switching cycles, only conductances; set it to none"
        )
    if not isinstance(config, SinglePulse | WriteVerify):
        raise InputError(
            f"programming.scheme: {config.scheme} is for devices with switching cycles; {name} is programmed with the "
            "errors of its file: single_pulse is one attempt, write_verify attempts until one is within the tolerance"
        )


def limited(microsiemens: Tensor, file: LevelsFile) -> Tensor:
    """Return conductances [n] within the limits of the cells, in place."""
    return microsiemens.clamp_(file.floor_microsiemens, file.ceiling_microsiemens)


def _error_of_digits(file: LevelsFile, targets: Floats) -> Deviation:
    error, high = file.programming or ProgrammingError(), file.microsiemens.high
    mean, spread = (partial(law_values, law, largest=high) for law in (error.mean, error.spread))
    return Deviation.of(Places.of_digits(targets), mean, spread, error.shape, high)


def _in_mean_states(means: Tensor, digits: Tensor, _: Tensor) -> Outcome:
    return Outcome.in_states(means.index_select(0, digits))


def _undisturbed(r: Tensor, digits: Tensor, cells: Tensor) -> Tensor:
    return r
