"""Cells with their full state: what one voltage pulse after another does to them.

The switching rules are those of Hennen et al., Front. Neurosci. 16:941753 (2022), and arXiv 2404.06344.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Generator, Tensor

from memsim.device.features import History, draw_history, draw_offsets_and_scales
from memsim.device.model import HRS, LRS, UR, US, DeviceModel
from memsim.spec import Cycling


class Cells:
    """`n` independent cells, fresh (in HRS) when made. Everything is float32 on the model's device.

    - `r` [n]: the state, which gives the current;
    - `features` [4, n] of the present cycle: HRS (ohm), US (V), LRS (ohm), UR (V);
    - `set_volts` [n]: a pulse at or below it SETs; -inf in a cell that is in LRS;
    - `reset_volts` [n]: a pulse above it RESETs; +inf in a cell that is in HRS.

    A cell takes some 240 bytes, for it remembers its last 10 cycles: simulate large arrays in `chunks`.
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
        self._transition = torch.full_like(self.r, math.nan)  # a of the RESET transition; none before the first SET

    @property
    def in_lrs(self) -> Tensor:
        """[n] bool: cells that a SET pulse no longer changes."""
        return self.set_volts == -math.inf

    @property
    def in_hrs(self) -> Tensor:
        """[n] bool: cells that a RESET pulse no longer changes. A partially RESET cell is in neither state."""
        return self.reset_volts == math.inf

    @property
    def resistance_ohms(self) -> Tensor:
        """[n] the resistance U0 / I(U0)."""
        return self.device.resistance_of_state(self.r)

    def current_amperes(self, volts: float | Tensor) -> Tensor:
        """[n] noiseless current at `volts` (scalar or [n]), which does not disturb the cells."""
        return self.device.current_amperes(torch.as_tensor(volts, dtype=self.r.dtype, device=self.r.device), self.r)

    def apply(self, volts: float | Tensor) -> None:
        """One voltage pulse of `volts` (scalar or [n]) on every cell.

        SET: a cell not in LRS at U <= US takes its LRS. RESET: a cell not in HRS at U > UR takes its HRS if U >= Umax,
        else it moves along its transition, and then only a higher U moves it on. A cell that leaves LRS starts its
        next cycle first, so that the HRS it goes to, and the SET after that, are the next cycle's.
        """
        volts = torch.as_tensor(volts, dtype=self.r.dtype, device=self.r.device).expand_as(self.r)
        sets = (volts <= self.set_volts).nonzero().squeeze(1)
        resets = (volts > self.reset_volts).nonzero().squeeze(1)
        if sets.numel():
            self._set(sets)
        if resets.numel():
            self._reset(resets, volts.index_select(0, resets))

    def _set(self, cells: Tensor) -> None:
        """Take `cells` (indices [m]) to the LRS of their present cycle."""
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
        """Draw x_{n+1} = B eps + sum_l A_l x_{n+1-l} and its features, and fix the transition from LRS to its HRS."""
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
        """c: the current at Umax of the HRS of the present cycle."""
        end_volts = torch.tensor(self.device.reset_full_volts, device=cells.device)
        return self.device.current_amperes(end_volts, self._hrs_state(cells))

    def _hrs_state(self, cells: Tensor) -> Tensor:
        return self.device.state_of_resistance(self.features[HRS].index_select(0, cells))


def draw_cycling_volts(cycling: Cycling, tiles: int, generator: Generator) -> Tensor:
    """[pulses, tiles] the voltages of random switching: one for all cells of a tile, from U(-vmax, vmax)."""
    uniform = torch.rand(cycling.rounds * cycling.pulses_per_round, tiles, generator=generator, device=generator.device)
    return (2.0 * uniform - 1.0) * cycling.vmax_volts


def pulse_cells(
    device: DeviceModel,
    set_mask: Tensor,
    generator: Generator,
    *,
    history: History = "stationary",
    order: int | None = None,
    cycling_volts: Iterable[Tensor] = (),
    set_volts: float = -2.0,
    reset_volts: float = 2.0,
    read_volts: Iterable[float] = (),
) -> Tensor:
    """States r [n] (float32) of fresh cells after pulses of `cycling_volts`, a RESET of all, a SET of those to be set.

    Reads at `read_volts`, which may disturb, come last.

    `set_mask` is [n] (bool), and so is each of the pulses (V). Cells are simulated pulse by pulse and all at once: give
    large arrays in `chunks`. Without cycling, `draw_states` draws the same states far faster.
    """
    cells = Cells(device, set_mask.numel(), generator, history, order)
    for volts in cycling_volts:
        cells.apply(volts)
    cells.apply(reset_volts)
    cells.apply(set_mask * set_volts)
    for read in read_volts:
        cells.apply(read)
    return cells.r
