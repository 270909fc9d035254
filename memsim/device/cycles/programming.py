"""Programming schemes: the pulses and verify reads that take fresh cells to their levels.

A cell's digit is programmed to the current `targets[digit]`, a fraction of the mean LRS current at the verify voltage
(without verify, at the device's reference voltage). All pulses but the rising ones of `IncrementalReset` are assumed to
switch every cell fully, which `on_tiles` checks.

A cell that is cycled again draws its next cycle (Hennen et al., Front. Neurosci. 16:941753, 2022), which replaces its
old state. A programmer can therefore stop at a good state, but never return to one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memsim import rng
from memsim.device.cycles import compiled, compiled_schemes
from memsim.device.cycles.cells import draw_cycling_volts, pulse_cells
from memsim.device.cycles.compiled_schemes import OutcomeArrays, SchemeConstants, StateConstants, TryCost
from memsim.device.cycles.disturb import settle
from memsim.device.cycles.features import draw_states, state_means
from memsim.device.cycles.first_cycles import CycleFeatures, feature_law
from memsim.device.cycles.model import HRS, LRS, UR, DeviceModel
from memsim.device.cycles.ramp import RampCells, ResetRamp
from memsim.device.interface import Act, CurrentScale, Disturb, Outcome, Programmer, Tiles
from memsim.device.verify import VerifyRead
from memsim.errors import InputError
from memsim.hardware import IncrementalReset, Scheme, SinglePulse, WriteVerify
from memsim.portable.constants import split_key
from memsim.portable.kernels import as_array, is_compiled

Digits = NDArray[np.int32]
Counters = NDArray[np.int64]
Key = tuple[np.uint32, np.uint32]
"""The two words of a key, the lower one first."""

FULL_SET_VOLTS = -2.0
"""The voltage of a SET pulse that switches all but about one in 10^6 cells."""

POPULATION_CELLS = 1 << 15
"""Cells of each level whose mean is taken for the population's, accurate to 3e-4 of full scale or better."""


def make_programmer(config: Scheme, device: DeviceModel, levels: int) -> CyclesProgrammer:
    """Return the programmer of `config` for cells of `levels` levels: two unless the scheme is incremental_reset."""
    if isinstance(config, IncrementalReset):
        return IncrementalResetProgrammer(config, device, levels)
    if isinstance(config, WriteVerify):
        return WriteVerifyProgrammer(config, device)
    return SinglePulseProgrammer(config, device)


class FullPulse:
    """The energy U I t of a pulse that switches a cell fully, at the current of the state after the pulse.

    Beyond +-Umax, where the fitted polynomials end, cells are taken as ohmic.
    """

    def __init__(self, device: DeviceModel, volts: float, seconds: float) -> None:
        edge = math.copysign(min(abs(volts), device.reset_full_volts), volts)
        at = torch.tensor(edge, dtype=torch.float64, device=device.device)
        scale = volts * seconds * (volts / edge)
        self.llrs_joules = scale * device.llrs_current_amperes(at).item()
        self.window_joules = scale * device.window_amperes(at).item()

    def joules(self, r: Tensor) -> Tensor:
        """Return the energy of pulses after which cells are in the states `r` (any shape)."""
        return r * self.window_joules + self.llrs_joules


class CyclesProgrammer(Programmer):
    """A programming scheme, prepared for a device of kind `cycles`."""

    def __init__(self, config: Scheme, device: DeviceModel) -> None:
        self._scheme = config
        self._device = device
        lrs, hrs = state_means(device, config.history)
        volts = device.reference_volts if config.verify is None else config.verify.read_volts
        self.scale = CurrentScale(device, volts, lrs)
        self.targets = self.scale.currents(torch.tensor([hrs, lrs], device=device.device))
        self._set = FullPulse(device, config.set_volts, config.pulse_seconds)
        self._reset = FullPulse(device, config.reset_volts, config.pulse_seconds)
        # for pulses whose resulting states are not drawn
        self._mean_set_joules = self._set.joules(torch.tensor(lrs, dtype=torch.float64)).item()
        self._mean_reset_joules = self._reset.joules(torch.tensor(hrs, dtype=torch.float64)).item()

    def on_tiles(self, tiles: Tiles, key: int, read_volts: Sequence[float]) -> tuple[Act, Disturb]:
        """Return what programs cells, and what reads do to them: see `Programmer`."""
        config, device = self._scheme, self._device
        act: Act = partial(self, key=key)
        if config.exact:
            means = torch.tensor(mean_states(config, device, len(self.targets)), device=device.device)
            act = partial(_in_mean_states, means)

        def disturb(r: Tensor, digits: Tensor, cells: Tensor) -> Tensor:
            return settle(r, digits, cells, config, device, read_volts, key) if read_volts else r

        return act, disturb

    def _switches_fully(self) -> bool:
        """Whether the pulses are strong enough to switch every cell, whatever its thresholds and its past."""
        config = self._scheme
        return config.set_volts <= FULL_SET_VOLTS and config.reset_volts >= self._device.reset_full_volts


def _in_mean_states(means: Tensor, digits: Tensor, _: Tensor) -> Outcome:
    return Outcome.in_states(means.index_select(0, digits))


class SinglePulseProgrammer(CyclesProgrammer):
    """The scheme of one pulse: a RESET of all cells, and a SET of those whose digit is 1."""

    def __init__(self, config: SinglePulse, device: DeviceModel) -> None:
        super().__init__(config, device)
        self._config = config

    def __call__(self, digits: Tensor, cells: Tensor, key: int) -> Outcome:
        """Program fresh cells to `digits` [n]: see `Programmer`."""
        return self.outcome(digits, draw_states(self._device, digits, cells, key, self._config.history))

    def on_tiles(self, tiles: Tiles, key: int, read_volts: Sequence[float]) -> tuple[Act, Disturb]:
        """Return what programs cells, and what reads do to them: see `Programmer`.

        Where the past or the thresholds of cells matter, every pulse acts on every cell of a tile, those of reads, too.
        """
        config = self._config
        matters = config.cycling is not None or bool(read_volts) or not self._switches_fully()
        if config.exact or not matters:
            return super().on_tiles(tiles, key, read_volts)
        return self._by_pulse(tiles, key, read_volts), _undisturbed

    def _by_pulse(self, tiles: Tiles, key: int, read_volts: Sequence[float]) -> Act:
        config, device = self._config, self._device
        # two sequences of pulses a tile: for cells of digit 0 and of digit 1
        last = [[config.reset_volts, volts, *read_volts] for volts in (0.0, config.set_volts)]
        volts = torch.tensor(last, device=device.device).repeat(tiles.tiles, 1)
        if config.cycling is not None:
            cycling = draw_cycling_volts(config.cycling, tiles.tiles, rng.derive_seed(key, "cycling"), device.device)
            volts = torch.cat([cycling.repeat_interleave(2, dim=0), volts], dim=1)

        def act(digits: Tensor, cells: Tensor) -> Outcome:
            r = pulse_cells(device, cells, key, volts, 2 * tiles.tile_of(cells) + digits, config.history)
            return self.outcome(digits, r)

        return act

    def outcome(self, digits: Tensor, r: Tensor) -> Outcome:
        """Return the outcome of cells programmed to `digits` [n] that are in the states `r` [n]."""
        if not is_compiled(digits):
            return self.outcome_by_definition(digits, r)
        energy = (self._set.window_joules, self._set.llrs_joules)
        return Outcome(r, *compiled.single_pulse(digits, r, energy, self._mean_reset_joules))

    def outcome_by_definition(self, digits: Tensor, r: Tensor) -> Outcome:
        """Return what `outcome` does, in torch operations for any device."""
        joules = self._set.joules(r).mul_(digits).add_(self._mean_reset_joules)
        none = torch.zeros_like(digits)
        return Outcome(r, digits + 1, none, none.bool(), joules)


def _undisturbed(r: Tensor, digits: Tensor, cells: Tensor) -> Tensor:
    return r


class ClosedLoopProgrammer(CyclesProgrammer):
    """A scheme that verifies its cells, by compiled code on CPUs."""

    def on_tiles(self, tiles: Tiles, key: int, read_volts: Sequence[float]) -> tuple[Act, Disturb]:
        """Return what programs cells, and what reads do to them: see `Programmer`."""
        if not self._switches_fully():
            config = self._scheme
            raise InputError(
                f"programming: closed loops need pulses that switch every cell: set_volts at most {FULL_SET_VOLTS} (it"
                f" is {config.set_volts}), reset_volts at least {self._device.reset_full_volts} (it is"
                f" {config.reset_volts})"
            )
        return super().on_tiles(tiles, key, read_volts)

    def __call__(self, digits: Tensor, cells: Tensor, key: int) -> Outcome:
        """Program fresh cells to `digits` [n]: see `Programmer`."""
        if not is_compiled(digits) or self._device.failures is not None:
            return self.by_definition(digits, cells, key)
        outcome = Outcome.start(digits.numel(), digits.device)
        arrays = OutcomeArrays(**{name: tensor.numpy() for name, tensor in vars(outcome).items()})
        low, high = (np.uint32(word) for word in split_key(key))
        self._compiled(as_array(digits), as_array(cells), (low, high), arrays)
        return outcome

    def by_definition(self, digits: Tensor, cells: Tensor, key: int) -> Outcome:
        """Program fresh cells by torch operations, which run on any device and are the definition of the scheme."""
        raise NotImplementedError

    def _compiled(self, digits: Digits, cells: Counters, key: Key, outcome: OutcomeArrays) -> None:
        """Program fresh cells by compiled code: fill `outcome`, which is that of untouched cells."""
        raise NotImplementedError


class _Approach(NamedTuple):
    """The way of write-verify to one digit: the feature of its state and the pulses of a try."""

    feature: int
    last_pulse: FullPulse
    earlier_pulses: tuple[int, int]  # in the first and in later tries
    earlier_joules: tuple[float, float]


class WriteVerifyProgrammer(ClosedLoopProgrammer):
    """The scheme that cycles a cell until its current is near the mean of its digit."""

    def __init__(self, config: WriteVerify, device: DeviceModel) -> None:
        super().__init__(config, device)
        self._config = config
        self._read = VerifyRead(self.scale, config.verify.noise, config.verify.adc)
        set_joules, reset_joules = self._mean_set_joules, self._mean_reset_joules
        self._approaches = (
            _Approach(HRS, self._reset, (0, 1), (0.0, set_joules)),
            _Approach(LRS, self._set, (1, 1), (reset_joules, reset_joules)),
        )

    def by_definition(self, digits: Tensor, cells: Tensor, key: int) -> Outcome:
        """Program fresh cells by torch operations: see `ClosedLoopProgrammer`."""
        outcome = Outcome.start(digits.numel(), digits.device)
        for digit in range(len(self._approaches)):
            places = (digits == digit).nonzero().squeeze(1)
            if places.numel():
                self._cycle(places, cells.index_select(0, places), key, digit, outcome)
        return outcome

    def _cycle(self, places: Tensor, cells: Tensor, key: int, digit: int, outcome: Outcome) -> None:
        """Program the `cells` [m] that have these `places` [m] in the outcome to one digit."""
        config, approach = self._config, self._approaches[digit]
        features = CycleFeatures(self._device, ((approach.feature, 0),), config.tries, cells, key, config.history)
        for attempt in range(config.tries):
            (ohms,), normals = features.draw()
            r = self._device.state_of_resistance(ohms)
            one, later = torch.ones_like(places, dtype=torch.int32), min(attempt, 1)
            joules = approach.last_pulse.joules(r) + approach.earlier_joules[later]
            outcome.add(places, r, one + approach.earlier_pulses[later], one, joules)
            missed = _outside(self._read(r, normals), self.targets[digit], config.tolerance)
            places = places.index_select(0, missed)
            if not places.numel():
                return
            features.keep(missed)
        outcome.failed.index_fill_(0, places, True)

    def _compiled(self, digits: Digits, cells: Counters, key: Key, outcome: OutcomeArrays) -> None:
        for digit, arguments in enumerate(self._arguments):
            compiled_schemes.write_verify(*arguments, digit, digits, cells, key, outcome)

    @cached_property
    def _arguments(self) -> list[tuple[Any, ...]]:
        """The arguments of compiled code for each digit."""
        config, device = self._config, self._device
        return [
            (
                feature_law(device, ((approach.feature, 0),), config.tries, config.history),
                StateConstants.of(device),
                self._read.constants(),
                TryCost.of(approach.last_pulse, approach.earlier_pulses, approach.earlier_joules),
                np.float32(target),
                np.float32(config.tolerance),
                config.tries,
            )
            for approach, target in zip(self._approaches, self.targets.tolist(), strict=True)
        ]


class IncrementalResetProgrammer(ClosedLoopProgrammer):
    """The scheme of RESET, SET, and rising pulses until a cell reads at most its target.

    A cell that ends outside the tolerance starts again, up to `retries` times.
    """

    _ROUND = ((LRS, 0), (UR, 0), (HRS, 1))
    """In a try a cell goes from the LRS of one cycle, at its UR, to the HRS of the next."""

    def __init__(self, config: IncrementalReset, device: DeviceModel, levels: int) -> None:
        super().__init__(config, device)
        self._config = config
        self.targets = torch.linspace(config.low_level, config.high_level, levels).to(device.device)
        self._read = VerifyRead(self.scale, config.verify.noise, config.verify.adc)
        reach = self._read.within_reach(self._read.highest_current(self.targets.double()))
        self._thresholds = self.scale.states(reach)
        self._ramp = ResetRamp(device, ramp_volts(config).to(device.device))

    def by_definition(self, digits: Tensor, cells: Tensor, key: int) -> Outcome:
        """Program fresh cells by torch operations: see `ClosedLoopProgrammer`."""
        device, config = self._device, self._config
        outcome = Outcome.start(digits.numel(), digits.device)
        features = CycleFeatures(device, self._ROUND, config.retries + 1, cells, key, config.history)
        places = torch.arange(digits.numel(), device=digits.device)
        for _ in range(config.retries + 1):
            (lrs_ohms, reset_volts, hrs_ohms), normals = features.draw()
            lrs, hrs = device.state_of_resistance(lrs_ohms), device.state_of_resistance(hrs_ohms)
            in_lrs = self._ramp.cells(lrs, reset_volts, hrs)
            sent, r, measured = self._stop(in_lrs, digits, features, normals)
            joules = self._ramp.work(in_lrs, sent) * config.pulse_seconds
            joules = joules + self._set.joules(lrs) + self._mean_reset_joules
            outcome.add(places, r, sent + 2, sent + 1, joules)
            missed = _outside(measured, self.targets.index_select(0, digits), config.tolerance)
            places, digits = places.index_select(0, missed), digits.index_select(0, missed)
            if not places.numel():
                return outcome
            features.keep(missed)
        outcome.failed.index_fill_(0, places, True)
        return outcome

    def _stop(
        self, cells: RampCells, digits: Tensor, features: CycleFeatures, normals: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the pulses sent, states and measured currents, [n] each, when the programmer stops at each cell.

        Reads begin where noise can make the programmer stop (see NOISE_REACH); earlier reads are not drawn. Nearly all
        cells stop there or a pulse later. The n-th read that is drawn takes the n-th normal of its cell's try.
        """
        ramp, targets = self._ramp, self.targets.index_select(0, digits)
        sent = ramp.pulses_to(cells, self._thresholds, digits).clamp_(max=len(ramp))
        r = ramp.states(cells, sent)
        measured = self._read(r, normals)
        if not self._read.is_noisy:
            return sent, r, measured
        places = torch.arange(len(sent), device=sent.device)
        last_sent, last_measured, draw = sent, measured, 0
        while True:
            going_on = ((last_measured > targets) & (last_sent < len(ramp))).nonzero().squeeze(1)
            if not going_on.numel():
                return sent, r, measured
            places, targets = places.index_select(0, going_on), targets.index_select(0, going_on)
            cells = cells.select(going_on)
            ahead = torch.stack(features.read_normals(places, draw))  # (4, m)
            steps = torch.arange(1, len(ahead) + 1, dtype=torch.int32, device=sent.device)[:, None]
            trail = (last_sent.index_select(0, going_on) + steps).clamp_(max=len(ramp))
            states = ramp.states(cells, trail)
            reads = self._read(states, ahead)
            stops = (reads <= targets) | (trail == len(ramp))
            stops[-1] = True  # or continue from there
            stop = stops.int().argmax(dim=0, keepdim=True)
            last_sent, last, last_measured = (x.gather(0, stop).squeeze(0) for x in (trail, states, reads))
            for whole, part in ((sent, last_sent), (r, last), (measured, last_measured)):
                whole.index_copy_(0, places, part)
            draw += 1

    def _compiled(self, digits: Digits, cells: Counters, key: Key, outcome: OutcomeArrays) -> None:
        compiled_schemes.incremental_reset(*self._arguments, digits, cells, key, outcome)

    @cached_property
    def _arguments(self) -> tuple[Any, ...]:
        """The arguments of compiled code."""
        config, device, tries = self._config, self._device, self._config.retries + 1
        return (
            feature_law(device, self._ROUND, tries, config.history),
            StateConstants.of(device),
            self._ramp.tables(self._thresholds),
            self._read.constants(),
            TryCost.of(self._set, (1, 1), (self._mean_reset_joules, self._mean_reset_joules)),
            SchemeConstants(
                as_array(self.targets), np.float32(config.tolerance), tries, np.float32(config.pulse_seconds)
            ),
        )


def ramp_volts(config: IncrementalReset) -> Tensor:
    """Return the voltages [K], float64, of the rising pulses: start, start + step, ... up to stop."""
    count = math.floor((config.stop_volts - config.start_volts) / config.step_volts + 1e-9) + 1
    return config.start_volts + config.step_volts * torch.arange(count, dtype=torch.float64)


def _outside(measured: Tensor, target: Tensor, tolerance: float) -> Tensor:
    """Return the indices [m] of the cells whose reading deviates from the target by more than the tolerance."""
    return ((measured - target).abs() > tolerance).nonzero().squeeze(1)


@lru_cache(maxsize=64)
def mean_states(config: Scheme, device: DeviceModel, levels: int = 2) -> tuple[float, ...]:
    """Return the mean state of each digit: exact for single pulses, else over POPULATION_CELLS cells of a fixed key."""
    if isinstance(config, SinglePulse):
        lrs, hrs = state_means(device, config.history)
        return hrs, lrs
    there = device.to("cpu")
    config = config.model_copy(update={"exact": False})
    programmer = make_programmer(config, there, levels)

    def mean(digit: int) -> float:
        digits = torch.full((POPULATION_CELLS,), digit, dtype=torch.int32)
        cells = torch.arange(POPULATION_CELLS)
        return programmer(digits, cells, rng.derive_seed("population", digit)).r.double().mean().item()

    return tuple(mean(digit) for digit in range(levels))
