"""The conversion of rows (device, cycle, values) in file order into a dense array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from memsim.errors import InputError
from memsim.fit.arrays import Floats, Ints
from memsim.units import counted

MOST_PLACES = 20
"""Largest number of places in the dense array for each row; cycle numbers with larger gaps are refused."""


@dataclass(frozen=True)
class CycleGrid:
    """Values by device and cycle."""

    devices: tuple[str, ...]
    first_cycles: Ints  # [devices] number of the cycle at index 0
    values: Floats  # [channels, devices, cycles], NaN in gaps


class CycleRows:
    """Collects one row for each device and cycle; the cycle numbers of a device must rise from row to row."""

    def __init__(self, where: str, channels: int) -> None:
        self._where = where
        self._channels = channels
        self._index: dict[str, int] = {}
        self._last: Ints = np.empty(0, dtype=np.int64)  # [devices] last cycle of each device
        self._parts: list[tuple[Ints, Ints, Floats]] = []

    def device_indices(self, labels: Sequence[str], codes: Ints) -> Ints:
        """Return the index [n] of each row's device, in order of appearance; `codes` [n] are indices into `labels`."""
        places = np.array([self._index.setdefault(label, len(self._index)) for label in labels], dtype=np.int64)
        fresh = np.full(len(self._index) - len(self._last), np.iinfo(np.int64).min)
        self._last = np.concatenate([self._last, fresh])
        return places[codes]

    def add(self, devices: Ints, cycles: Ints, values: Floats, rows: Ints) -> None:
        """Add rows.

        Args:
            devices: [n] indices of devices.
            cycles: [n] cycle numbers.
            values: [channels, n] values.
            rows: [n] row numbers in the file, for messages.

        Raises:
            InputError: for a cycle that does not follow the last one of its device.
        """
        order = np.argsort(devices, kind="stable")
        device, cycle = devices[order], cycles[order]
        starts = np.flatnonzero(np.diff(device, prepend=-1))
        previous = np.concatenate([[0], cycle[:-1]])
        previous[starts] = self._last[device[starts]]
        if (wrong := cycle <= previous).any():
            at = np.flatnonzero(wrong)[np.argmin(order[wrong])]
            name = list(self._index)[device[at]]
            what = "is given twice" if cycle[at] == previous[at] else f"comes after cycle {previous[at]}"
            raise InputError(
                f"{self._where}: row {rows[order[at]]}: device {name}: cycle {cycle[at]} {what}; "
                "the cycles of a device must rise from row to row (--column device=DIE+DEVICE joins columns)"
            )
        ends = np.append(starts[1:], len(device)) - 1
        self._last[device[starts]] = cycle[ends]
        self._parts.append((devices.astype(np.int32), cycles, values.astype(np.float32)))

    def grid(self, *, is_ranked: bool = False) -> CycleGrid:
        """Return all rows as a dense array, with `is_ranked` one after the other whatever the numbers of their cycles.

        Raises:
            InputError: if there are no rows, or if cycle numbers leave too many places empty.
        """
        if not self._parts:
            raise InputError(f"{self._where}: holds no rows")
        devices = np.concatenate([part[0] for part in self._parts])
        cycles = np.concatenate([part[1] for part in self._parts])
        if is_ranked:
            order = np.argsort(devices, kind="stable")
            starts = np.flatnonzero(np.diff(devices[order], prepend=-1))
            cycles = np.empty_like(cycles)
            cycles[order] = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
        first = np.full(len(self._index), np.iinfo(np.int64).max)
        np.minimum.at(first, devices, cycles)
        length = int((cycles - first[devices]).max()) + 1
        if length * len(first) > MOST_PLACES * len(cycles) + 10_000:
            raise InputError(
                f"{self._where}: {counted(len(cycles), 'row')} for {counted(len(first), 'device')} with "
                f"cycle numbers over a range of up to {length:,}; number the measured cycles one after the other, or "
                "take the changes from cycle to cycle from the base model (--from-base cycles)"
            )
        values = np.full((self._channels, len(first), length), np.nan, dtype=np.float32)
        start = 0
        for _, _, part in self._parts:
            rows = slice(start, start + part.shape[1])
            start = rows.stop
            values[:, devices[rows], cycles[rows] - first[devices[rows]]] = part
        return CycleGrid(tuple(self._index), first, values)
