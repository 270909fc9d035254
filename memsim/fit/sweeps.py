"""The reading of I-V sweeps, batch by batch: cycles are cut out and checked, and their features are extracted.

Resistances are U0 / I(U0) at the read voltage U0 > 0. The HRS of a cycle is read at the end of the cycle before. A SET
or RESET that does not change the resistance has failed, and gives no features. A sample of the cycles is kept whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memsim.device.cycles.model import HRS
from memsim.errors import InputError
from memsim.fit.arrays import Bools, Floats, Ints
from memsim.fit.cycle_grid import CycleGrid, CycleRows
from memsim.fit.extract import CHANNELS, END_HRS, Sweeps, features_of
from memsim.units import si

KEPT_CYCLES = 2000
"""Number of cycles that are kept with all their samples, for the fit of the I-V envelopes."""
_SAMPLE = np.dtype("i8, i8, f8, f8, f8, i8")
_SAMPLE.names = ("device", "cycle", "volts", "amperes", "seconds", "row")
_HELD, _HELD_SPAN = 0.02, 0.1
"""Relative width of a current that is held by a compliance, and the least relative range of voltages that it spans."""
_UNEVEN = 0.03  # share of a sweep's range by which the voltage may go back because of noise


@dataclass(frozen=True)
class Traces:
    """A sample of complete cycles, padded with NaN."""

    device: Ints  # [n] indices of devices
    cycle: Ints  # [n] cycle numbers
    volts: Floats  # [n, samples]
    amperes: Floats  # [n, samples]

    def __len__(self) -> int:
        return len(self.device)


class SweepReader:
    """Extracts features by device and cycle from samples in file order."""

    def __init__(self, where: str, read_volts: float, seed: int) -> None:
        self.rows = CycleRows(where, CHANNELS)
        self._where = where
        self._read_volts = read_volts
        self._rng = np.random.default_rng(seed)
        self._left: NDArray[np.void] = np.empty(0, _SAMPLE)  # the last cycle, which the next batch may continue
        self._reach: tuple[float, float] | None = None
        self._kept = _Reservoir(KEPT_CYCLES)
        self.gradual_sets = 0
        self._outcomes = dict.fromkeys(("complete", "failed SET", "failed RESET", "incomplete"), 0)

    def add(
        self,
        devices: Ints,
        cycles: Ints,
        volts: Floats,
        amperes: Floats,
        seconds: Floats | None,
        first_row: int,
    ) -> None:
        """Add samples [n]; the samples of a cycle are consecutive and in order of time.

        Args:
            devices: indices of devices.
            cycles: cycle numbers.
            volts: voltages.
            amperes: currents.
            seconds: times, if they are known.
            first_row: number of the first row in the file, for messages.

        Raises:
            InputError: for time that does not rise, and for sweeps of another shape.
        """
        samples = np.zeros(len(devices), _SAMPLE)
        samples["device"], samples["cycle"], samples["volts"], samples["amperes"] = devices, cycles, volts, amperes
        samples["seconds"], samples["row"] = 0 if seconds is None else seconds, first_row + np.arange(len(devices))
        samples = np.concatenate([self._left, samples])
        starts = np.flatnonzero(_is_start(samples))
        self._left = samples[starts[-1] :]
        if seconds is not None:
            self._require_rising_time(samples)
        self._extract(samples[: starts[-1]])

    def finish(self) -> tuple[CycleGrid, Floats, Traces, Mapping[str, int]]:
        """Return what the sweeps hold.

        That is the grid of the four features, the resistances after failed SETs and RESETs [2, devices, cycles] in
        log10 ohm, the cycles kept whole, and outcome -> number of cycles.
        """
        self._extract(self._left)
        grid = self.rows.grid()
        values = grid.values[:END_HRS].copy()
        values[HRS] = _hrs(values[HRS], grid.values[END_HRS])
        failed = grid.values[END_HRS + 1 :]
        return CycleGrid(grid.devices, grid.first_cycles, values), failed, self._kept.traces, self._outcomes

    def notes(self) -> list[str]:
        """Return remarks for people about SETs that are gradual, or whose current is held."""
        notes, traces = [], self._kept.traces
        if self.gradual_sets:
            notes.append(
                f"{self.gradual_sets:,} SETs are gradual: their US is where the conductance is half way, and the model "
                "switches there at once"
            )
        if len(traces):
            with np.errstate(invalid="ignore"):
                most = np.nanmin(traces.amperes, axis=1)
                held = np.where(traces.amperes < (1 - _HELD) * most[:, None], -traces.volts, np.nan)
                span = 1 - np.nanmin(held, axis=1) / np.nanmax(held, axis=1)
            if np.median(span) >= _HELD_SPAN and most.std() < -_HELD * most.mean():
                notes.append(
                    f"the current of SETs is held at {si(-float(most.mean()), 'A')}: LRS is that of this compliance, "
                    "and with another it would be another"
                )
        return notes

    def _require_rising_time(self, samples: NDArray[np.void]) -> None:
        seconds = samples["seconds"]
        wrong = (np.diff(seconds) <= 0) & ~_is_start(samples)[1:]
        if wrong.any():
            at = int(np.argmax(wrong)) + 1
            raise InputError(
                f"{self._where}: row {samples['row'][at]}: time {seconds[at]:g} s does not follow "
                f"{seconds[at - 1]:g} s; the samples of a cycle must be in order of time"
            )

    def _extract(self, samples: NDArray[np.void]) -> None:
        samples = samples[np.isfinite(samples["volts"]) & np.isfinite(samples["amperes"])]
        if not len(samples):
            return
        sweeps = Sweeps.of(samples, np.flatnonzero(_is_start(samples)))
        if self._reach is None:
            lows, highs = np.nanmin(sweeps.volts, axis=1), np.nanmax(sweeps.volts, axis=1)
            self._reach = float(np.median(lows)), float(np.median(highs))
            if not self._reach[0] < -self._read_volts < self._read_volts < self._reach[1]:
                raise InputError(
                    f"{self._where}: row {samples['row'][0]}: sweeps reach from {self._reach[0]:g} to "
                    f"{self._reach[1]:g} V; expected 0 -> Vneg -> 0 -> Vpos -> 0 with both beyond the read voltage of "
                    f"{self._read_volts:g} V"
                )
        is_complete = sweeps.reaches(*self._reach)
        self._require_shape(sweeps, is_complete)
        values, is_set, is_reset, is_gradual = features_of(sweeps, self._read_volts)
        values[:, ~is_complete] = np.nan
        for outcome, of_cycles in {
            "incomplete": ~is_complete,
            "failed SET": is_complete & ~is_set,
            "failed RESET": is_complete & is_set & ~is_reset,
            "complete": is_complete & is_set & is_reset,
        }.items():
            self._outcomes[outcome] += int(of_cycles.sum())
        self.gradual_sets += int((is_complete & is_gradual).sum())
        self.rows.add(sweeps.device, sweeps.cycle, values, sweeps.row)
        self._kept.offer(sweeps, is_complete & is_set & is_reset, self._rng)

    def _require_shape(self, sweeps: Sweeps, is_complete: Bools) -> None:
        backwards = is_complete & (sweeps.lowest > sweeps.highest)
        if backwards.any():
            at = int(np.argmax(backwards))
            raise InputError(
                f"{self._where}: row {sweeps.row[at]}: this sweep goes to {np.nanmax(sweeps.volts[at]):g} V before "
                f"{np.nanmin(sweeps.volts[at]):g} V; all must be 0 -> Vneg -> 0 -> Vpos -> 0 (for devices that SET at "
                "positive voltage: --polarity positive)"
            )
        turn = sweeps.first_turn(_UNEVEN)
        if (turned := is_complete & (turn >= 0)).any():
            at = int(np.argmax(turned))
            raise InputError(
                f"{self._where}: row {sweeps.row[at] + turn[at]}: the voltage turns back to "
                f"{sweeps.volts[at, turn[at]]:g} V; expected one sweep 0 -> Vneg -> 0 -> Vpos -> 0 per cycle"
            )


def _is_start(samples: NDArray[np.void]) -> Bools:
    """Return whether each sample [n] is the first of its cycle."""
    changes = (np.diff(samples["device"]) != 0) | (np.diff(samples["cycle"]) != 0)
    return np.concatenate([[True], changes])


def _hrs(at_start: Floats, at_end: Floats) -> Floats:
    """Return the HRS [devices, cycles] in log10 ohm at the end of the cycle before, or else at the start of the cycle.

    At the start it is read at -U0. The envelopes are not odd functions of the voltage, so these values are shifted by
    the median difference of the two.
    """
    from_before = np.full_like(at_start, np.nan)
    from_before[:, 1:] = at_end[:, :-1]
    both = from_before - at_start
    shift = np.nanmedian(both) if np.isfinite(both).any() else np.float32(0)
    return np.where(np.isfinite(from_before), from_before, at_start + shift)


class _Reservoir:
    """A random sample of the cycles in a stream of unknown length; all cycles have the same probability."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._keys = np.empty(0)
        self.traces = Traces(*np.empty((2, 0), np.int64), *np.empty((2, 0, 0)))

    def offer(self, sweeps: Sweeps, wanted: Bools, rng: np.random.Generator) -> None:
        keys = rng.random(len(wanted))
        bar = np.partition(self._keys, self._size - 1)[self._size - 1] if len(self._keys) >= self._size else 1.0
        chosen = wanted & (keys < bar)
        if not chosen.any():
            return
        offered = (sweeps.device, sweeps.cycle, sweeps.volts, sweeps.amperes)
        all_keys = np.concatenate([self._keys, keys[chosen]])
        kept = np.sort(np.argsort(all_keys, kind="stable")[: self._size])
        self._keys = all_keys[kept]
        parts = zip(vars(self.traces).values(), offered, strict=True)
        self.traces = Traces(*(_stacked(old, new[chosen])[kept] for old, new in parts))


def _stacked(first: Floats, second: Floats) -> Floats:
    """Stack two arrays; rows of unequal lengths are padded with NaN."""
    if first.ndim == 2:
        width = max(first.shape[1], second.shape[1])
        first, second = (
            np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=np.nan) for part in (first, second)
        )
    return np.concatenate([first, second])
