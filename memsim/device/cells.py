"""Cells with their full state: what one voltage pulse after another does to them.

The switching rules are those of Hennen et al., Front. Neurosci. 16:941753 (2022), and arXiv 2404.06344.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from memsim.device.features import History, chunks, draw_history, draw_offsets_and_scales
from memsim.device.model import HRS, LRS, UR, US, DeviceModel


class Cells:
    """`n` independent cells, fresh (in HRS) when made. Everything is float32 on the model's device.

    - `r` [n]: the state, which gives the current;
    - `features` [4, n] of the present cycle: HRS (ohm), US (V), LRS (ohm), UR (V);
    - `set_volts` [n]: a pulse at or below it SETs; -inf in a cell that is in LRS;
    - `reset_volts` [n]: a pulse above it RESETs; +inf in a cell that is in HRS.

    A cell takes some 240 bytes, for it remembers its last 10 cycles: draw large arrays with `program_cells`, in chunks.
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
            current = self._transition.index_select(0, partial) * self._distance(at) + self._end_amperes(partial)
            r = (current - self.device.llrs_current_amperes(at)) / self.device.window_amperes(at)
            self.r.index_copy_(0, partial, r)
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
        self._transition.index_copy_(0, cells, fall / self._distance(start_volts))

    def _distance(self, volts: Tensor) -> Tensor:
        """|Umax - U| ^ eta, for the transition I_tr(U) = a |Umax - U|^eta + c from the LRS at UR to the HRS at Umax."""
        return (self.device.reset_full_volts - volts).abs().pow_(self.device.reset_exponent)

    def _end_amperes(self, cells: Tensor) -> Tensor:
        """c: the current at Umax of the HRS of the present cycle."""
        end_volts = torch.tensor(self.device.reset_full_volts, device=cells.device)
        return self.device.current_amperes(end_volts, self._hrs_state(cells))

    def _hrs_state(self, cells: Tensor) -> Tensor:
        return self.device.state_of_resistance(self.features[HRS].index_select(0, cells))


@dataclass(frozen=True)
class RandomCycling:
    """Pulses before programming, each one voltage from U(-vmax, vmax) for a whole tile (the paper: N rounds of 50)."""

    rounds: int
    pulses_per_round: int = 50
    vmax_volts: float = 2.0

    @property
    def pulses(self) -> int:
        return self.rounds * self.pulses_per_round


def program_cells(
    device: DeviceModel,
    set_mask: Tensor,
    generator: Generator,
    *,
    history: History = "stationary",
    order: int | None = None,
    cycling: RandomCycling | None = None,
    set_volts: float = -2.0,
    reset_volts: float = 2.0,
) -> Tensor:
    """States r [tiles, cells] (float32) of fresh cells after random cycling, one RESET of all, one SET of `set_mask`.

    `set_mask` is [tiles, cells] (bool); all cells of a tile share the voltages of the cycling. Cells are simulated in
    chunks of a fixed size, pulse by pulse. Without cycling, `draw_states` draws the same states far faster.
    """
    tiles, cells_per_tile = set_mask.shape
    flat_mask = set_mask.reshape(-1)
    pulses = cycling.pulses if cycling else 0
    vmax_volts = cycling.vmax_volts if cycling else 0.0
    voltages = (2.0 * torch.rand(pulses, tiles, generator=generator, device=device.device) - 1.0) * vmax_volts
    r = torch.empty(flat_mask.shape, device=device.device)
    for part in chunks(flat_mask.numel(), device.device):
        cells = Cells(device, part.stop - part.start, generator, history, order)
        tile = torch.arange(part.start, part.stop, device=device.device) // cells_per_tile
        for volts in voltages:
            cells.apply(volts[tile])
        cells.apply(reset_volts)
        cells.apply(flat_mask[part] * set_volts)
        r[part] = cells.r
    return r.view(tiles, cells_per_tile)
