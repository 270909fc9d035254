"""Cells with their full state, which voltage pulses change one after the other.

The switching rules are those of Hennen et al., Front. Neurosci. 16:941753 (2022), and arXiv 2404.06344.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from memsim.device.cycles import compiled_cells
from memsim.device.cycles.features import (
    History,
    draw_history,
    draw_normals,
    draw_offsets_and_scales,
    sum_of_products,
    with_failures,
)
from memsim.device.cycles.model import HRS, LRS, UR, US, DeviceModel
from memsim.hardware import Cycling
from memsim.portable.elementwise import random_words, uniform
from memsim.portable.kernels import is_compiled


class Cells:
    """`n` independent cells, which are fresh (in HRS) when made. All tensors are float32 on the model's device.

    A cell's draws depend on `key` and its counter, which `cells` [n] (int64) holds, and on nothing else. A cell takes
    about 240 bytes, because it remembers its last 10 cycles: simulate large arrays in chunks.

    Attributes:
        r: [n], the state, which gives the current.
        features: [4, n], the features of the present cycle: HRS (ohm), US (V), LRS (ohm), UR (V).
        cycle: [n], int64, the number of the present cycle, from 0.
        set_volts: [n], the SET threshold: a pulse at or below it SETs the cell. It is -inf for a cell in LRS.
        reset_volts: [n], the RESET threshold: a pulse above it RESETs the cell. It is +inf for a cell in HRS.
    """

    def __init__(
        self, device: DeviceModel, cells: Tensor, key: int, history: History = "stationary", order: int | None = None
    ) -> None:
        self.device = device
        self._cells, self._key = cells, key
        self._var = device.var_matrix(order).float()  # [B | A_p ... A_1]
        self._mu, self._sigma = draw_offsets_and_scales(device, cells, key)  # (4, n) each
        self._history = draw_history(device, cells, key, history, order)  # (4p, n)
        self.features = self._with_failures(device.denormalise(self._history[-4:], self._mu, self._sigma), cells, 0)
        self.cycle = torch.zeros_like(cells)
        self.r = device.state_of_resistance(self.features[HRS])
        self.set_volts = self.features[US].clone()
        self.reset_volts = torch.full_like(self.r, math.inf)
        self._transition = torch.full_like(self.r, math.nan)  # a of the RESET transition; NaN before the first SET

    def current_amperes(self, volts: float | Tensor) -> Tensor:
        """Return the noiseless currents [n] at `volts` (scalar or [n]), without changing the cells."""
        return self.device.current_amperes(torch.as_tensor(volts, dtype=self.r.dtype, device=self.r.device), self.r)

    def apply(self, volts: float | Tensor) -> None:
        """Apply one voltage pulse of `volts` (scalar or [n]) to every cell.

        SET: a cell that is not in LRS takes its LRS at U <= US. RESET: a cell that is not in HRS takes its HRS at
        U >= Umax; at UR < U < Umax it moves along its transition, and from then on only a higher U moves it further. A
        cell that leaves LRS starts its next cycle first, so its new HRS and its next SET are those of the next cycle. A
        pulse that SETs a cell does not RESET it.
        """
        volts = torch.as_tensor(volts, dtype=self.r.dtype, device=self.r.device).expand_as(self.r)
        is_set = volts <= self.set_volts
        sets = is_set.nonzero().squeeze(1)
        resets = ((volts > self.reset_volts) & ~is_set).nonzero().squeeze(1)
        if sets.numel():
            self._set(sets)
        if resets.numel():
            self._reset(resets, volts.index_select(0, resets))

    def _set(self, cells: Tensor) -> None:
        """SET `cells` (indices [m]) to the LRS of their present cycle."""
        self.r.index_copy_(0, cells, self.device.state_of_resistance(self.features[LRS].index_select(0, cells)))
        self.reset_volts.index_copy_(0, cells, self.features[UR].index_select(0, cells))
        self.set_volts.index_fill_(0, cells, -math.inf)

    def _reset(self, cells: Tensor, volts: Tensor) -> None:
        """RESET `cells` (indices [m]) at `volts` [m], each above its threshold."""
        leaving = cells.masked_select(self.set_volts.index_select(0, cells) == -math.inf)
        if leaving.numel():
            self._next_cycle(leaving)
        is_full = volts >= self.device.reset_full_volts
        full = cells.masked_select(is_full)
        if full.numel():
            self.r.index_copy_(0, full, self._hrs_state(full))
            self.reset_volts.index_fill_(0, full, math.inf)
        if full.numel() < cells.numel():
            partial, at = cells.masked_select(~is_full), volts.masked_select(~is_full)
            distance = self.device.reset_distance(at)
            current = self._transition.index_select(0, partial) * distance + self._end_amperes(partial)
            self.r.index_copy_(0, partial, self.device.state_of_current(at, current))
            self.reset_volts.index_copy_(0, partial, at)

    def _next_cycle(self, cells: Tensor) -> None:
        """Draw the variates of the next cycle and its features, and fit the transition from LRS to its HRS."""
        cycle = self.cycle.index_select(0, cells) + 1
        past = self._history.index_select(1, cells)  # (4p, m)
        x = _next_variates(self._var, past, self._cells.index_select(0, cells), self._key, cycle)
        self.cycle.index_copy_(0, cells, cycle)
        self._history.index_copy_(1, cells, torch.cat([past[4:], x]))
        mu, sigma = self._mu.index_select(1, cells), self._sigma.index_select(1, cells)
        features = self.device.denormalise(x, mu, sigma)
        self.features.index_copy_(1, cells, self._with_failures(features, self._cells.index_select(0, cells), cycle))
        self.set_volts.index_copy_(0, cells, self.features[US].index_select(0, cells))

        start_volts, start_r = self.reset_volts.index_select(0, cells), self.r.index_select(0, cells)
        fall = self.device.current_amperes(start_volts, start_r) - self._end_amperes(cells)
        self._transition.index_copy_(0, cells, fall / self.device.reset_distance(start_volts))

    def _with_failures(self, features: Tensor, counters: Tensor, cycle: Tensor | int) -> Tensor:
        """Return `features` [4, m] of a cycle, with the resistances of those SETs and RESETs that fail."""
        for feature in (HRS, LRS):
            features[feature] = with_failures(self.device, feature, features[feature], counters, self._key, cycle)
        return features

    def _end_amperes(self, cells: Tensor) -> Tensor:
        """Return c, the current [m] at Umax in the HRS of the present cycle."""
        end_volts = torch.tensor(self.device.reset_full_volts, device=cells.device)
        return self.device.current_amperes(end_volts, self._hrs_state(cells))

    def _hrs_state(self, cells: Tensor) -> Tensor:
        return self.device.state_of_resistance(self.features[HRS].index_select(0, cells))


def draw_variates(
    device: DeviceModel,
    cells: Tensor,
    key: int,
    cycles: int,
    history: History = "stationary",
    order: int | None = None,
) -> Tensor:
    """Draw normal variates [4, n, cycles] of fresh `cells` [n] over their first `cycles` cycles."""
    if is_compiled(cells):
        return compiled_cells.draw_variates(device, cells, key, cycles, history, order)
    var, past = device.var_matrix(order).float(), draw_history(device, cells, key, history, order)
    drawn = torch.empty(4, len(cells), cycles, device=device.device)
    for cycle in range(cycles):
        if cycle:
            past = torch.cat([past[4:], _next_variates(var, past, cells, key, cycle)])
        drawn[:, :, cycle] = past[-4:]
    return drawn


def _next_variates(var: Tensor, past: Tensor, cells: Tensor, key: int, cycle: Tensor | int) -> Tensor:
    """Draw x_c = B eps + sum_l A_l x_{c - l}, [4, n], of `cycle` c of `cells` [n] with the history `past` [4p, n]."""
    rows = [*draw_normals(4, cells, key, stream=cycle), *past]
    return torch.stack([sum_of_products(factors, rows) for factors in var.tolist()])


def draw_cycles(device: DeviceModel, cells: Tensor, key: int, cycles: int) -> Tensor:
    """Draw features [4, n, cycles] of fresh `cells` [n] over their cycles: HRS (ohm), US (V), LRS (ohm), UR (V)."""
    mu, sigma = draw_offsets_and_scales(device, cells, key)  # (4, n) each
    x = draw_variates(device, cells, key, cycles)
    return device.denormalise(x, mu[..., None], sigma[..., None])


def draw_cycling_volts(cycling: Cycling, tiles: int, key: int, device: torch.device | str = "cpu") -> Tensor:
    """Draw the voltages [tiles, pulses] of random switching from U(-vmax, vmax), each for all cells of a tile."""
    pulse = torch.arange(cycling.rounds * cycling.pulses_per_round, device=device)
    tile = torch.arange(tiles, device=device)[:, None]
    return (uniform(random_words(key, tile, pulse)[0]) * 2.0 - 1.0) * cycling.vmax_volts


def pulse_cells(
    device: DeviceModel, cells: Tensor, key: int, volts: Tensor, sequence: Tensor, history: History = "stationary"
) -> Tensor:
    """Apply pulses to fresh `cells` [n], and return their states r [n], float32.

    `volts` [sequences, pulses] are the pulses of each sequence, and `sequence` [n] (int64) is the index of each cell's.
    The states are those of `Cells` after the same pulses. For cells that one SET pulse programs, `draw_states` draws
    from the same distribution far faster.
    """
    if is_compiled(cells) and not (device.lrs_is_log10 or device.limits is not None or device.failures is not None):
        return compiled_cells.pulse_cells(device, cells, key, volts, sequence, history)
    fresh = Cells(device, cells, key, history)
    for pulse in volts.T:
        fresh.apply(pulse.index_select(0, sequence))
    return fresh.r
