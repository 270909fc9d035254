"""Cells with their full state, which voltage pulses change one after the other.

The switching rules are those of Hennen et al., Front. Neurosci. 16:941753 (2022), and arXiv 2404.06344.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Generator, Tensor

from memsim.device.features import History, draw_history, draw_offsets_and_scales
from memsim.device.model import HRS, LRS, UR, US, DeviceModel
from memsim.hardware import Cycling


class Cells:
    """`n` independent cells, which are fresh (in HRS) when made. All tensors are float32 on the model's device.

    A cell takes about 240 bytes, because it remembers its last 10 cycles: simulate large arrays in `chunks`.

    Attributes:
        r: [n], the state, which gives the current.
        features: [4, n], the features of the present cycle: HRS (ohm), US (V), LRS (ohm), UR (V).
        set_volts: [n], the SET threshold: a pulse at or below it SETs the cell. It is -inf for a cell in LRS.
        reset_volts: [n], the RESET threshold: a pulse above it RESETs the cell. It is +inf for a cell in HRS.
    """

    def __init__(
        self,
        device: DeviceModel,
        n: int,
        generator: Generator,
        history: History = "stationary",
        order: int | None = None,
    ) -> None:
        self.device = device
        self.generator = generator
        self._var = device.var_matrix(order).float()  # [B | A_p ... A_1]
        self._mu, self._sigma = draw_offsets_and_scales(device, n, generator)  # (4, n) each
        self._history = draw_history(device, n, generator, history, order)  # (n, 4p)
        self.features = device.denormalise(self._history[:, -4:].T, self._mu, self._sigma)
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
        cell that leaves LRS starts its next cycle first, so its new HRS and its next SET are those of the next cycle.
        """
        volts = torch.as_tensor(volts, dtype=self.r.dtype, device=self.r.device).expand_as(self.r)
        sets = (volts <= self.set_volts).nonzero().squeeze(1)
        resets = (volts > self.reset_volts).nonzero().squeeze(1)
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
        """Draw x_{n+1} = B eps + sum_l A_l x_{n+1-l} and its features, and fit the transition from LRS to its HRS."""
        past = self._history.index_select(0, cells)  # (m, 4p)
        eps = torch.randn(4, cells.numel(), generator=self.generator, device=past.device)
        x = torch.addmm(self._var[:, :4] @ eps, self._var[:, 4:], past.T)  # (4, m)
        self._history.index_copy_(0, cells, torch.cat([past[:, 4:], x.T], dim=1))
        mu, sigma = self._mu.index_select(1, cells), self._sigma.index_select(1, cells)
        self.features.index_copy_(1, cells, self.device.denormalise(x, mu, sigma))
        self.set_volts.index_copy_(0, cells, self.features[US].index_select(0, cells))

        start_volts, start_r = self.reset_volts.index_select(0, cells), self.r.index_select(0, cells)
        fall = self.device.current_amperes(start_volts, start_r) - self._end_amperes(cells)
        self._transition.index_copy_(0, cells, fall / self.device.reset_distance(start_volts))

    def _end_amperes(self, cells: Tensor) -> Tensor:
        """Return c, the current [m] at Umax in the HRS of the present cycle."""
        end_volts = torch.tensor(self.device.reset_full_volts, device=cells.device)
        return self.device.current_amperes(end_volts, self._hrs_state(cells))

    def _hrs_state(self, cells: Tensor) -> Tensor:
        return self.device.state_of_resistance(self.features[HRS].index_select(0, cells))


def draw_cycling_volts(cycling: Cycling, tiles: int, generator: Generator) -> Tensor:
    """Draw the voltages [pulses, tiles] of random switching from U(-vmax, vmax), each for all cells of a tile."""
    uniform = torch.rand(cycling.rounds * cycling.pulses_per_round, tiles, generator=generator, device=generator.device)
    return (2.0 * uniform - 1.0) * cycling.vmax_volts


def pulse_cells(
    device: DeviceModel,
    set_mask: Tensor,
    generator: Generator,
    *,
    history: History = "stationary",
    cycling_volts: Iterable[Tensor] = (),
    set_volts: float = -2.0,
    reset_volts: float = 2.0,
    read_volts: Iterable[float] = (),
) -> Tensor:
    """Program fresh cells pulse by pulse, and return their states r [n], float32.

    The pulses are those of `cycling_volts` (each [n], in volts), a RESET of all cells, a SET of the cells in `set_mask`
    [n] (bool), and reads at `read_volts`, which may disturb. All cells are simulated together: give large arrays in
    `chunks`. Without cycling and reads, `draw_states` draws the same states far faster.
    """
    cells = Cells(device, set_mask.numel(), generator, history)
    for volts in cycling_volts:
        cells.apply(volts)
    cells.apply(reset_volts)
    cells.apply(set_mask * set_volts)
    for read in read_volts:
        cells.apply(read)
    return cells.r
