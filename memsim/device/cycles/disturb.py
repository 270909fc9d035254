"""Disturbance of cells by reads, which SET or RESET the cells whose threshold they cross."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from memsim import rng
from memsim.device.cycles.cells import Cells
from memsim.device.cycles.features import History, draw_states, fraction_below
from memsim.device.cycles.model import UR, US, DeviceModel
from memsim.errors import InputError
from memsim.hardware import IncrementalReset, Scheme
from memsim.portable.constants import WORDS
from memsim.portable.draws import random_words


def settle(
    r: Tensor,
    digits: Tensor,
    cells: Tensor,
    config: Scheme,
    device: DeviceModel,
    read_volts: Sequence[float],
    key: int,
) -> Tensor:
    """Return the states [n] after reads at `read_volts` of cells that a closed loop programmed to `digits` [n].

    A cell's draws depend on `key` and its counter, which `cells` [n] (int64) holds.

    The simulated closed loop does not keep the thresholds of its cells. The disturbed cells are therefore drawn at the
    rate of the population, independently of their states, and a cell that a read SETs takes an LRS drawn for a fresh
    cell. (`pulse_cells` reads cells that were programmed by single pulses with their own thresholds.) Raises InputError
    for reads above the first pulse of an incremental RESET, because they would continue the RESET.
    """
    negative, positive = -min(0.0, *read_volts), max(0.0, *read_volts)
    if isinstance(config, IncrementalReset):
        if positive > config.start_volts:
            raise InputError(
                f"read_disturb: reads at {positive:g} V continue the RESET that begins at {config.start_volts:g} V; "
                "lower dac.vmax_volts or raise programming.start_volts"
            )
        may_set, may_move = torch.ones_like(digits, dtype=torch.bool), torch.zeros_like(digits, dtype=torch.bool)
    else:
        may_set, may_move = digits == 0, digits > 0
    happens, choice = random_words(rng.derive_seed(key, "disturb"), cells, 2)
    hrs_set = 1 - fraction_below(device, US, -negative, config.history) if negative else 0.0
    is_set = may_set & (happens < round(hrs_set * WORDS))
    after, set_cells = r.clone(), cells[is_set]
    in_lrs = torch.ones_like(set_cells, dtype=torch.bool)
    after[is_set] = draw_states(device, in_lrs, set_cells, rng.derive_seed(key, "disturb LRS"), config.history)
    moves = may_move & (happens < round(fraction_below(device, UR, positive, config.history) * WORDS))
    if moves.any():
        moved = _moved_states(device, positive, config.history)
        after[moves] = moved[(choice[moves] * len(moved)) >> 32]
    return after


@lru_cache(maxsize=16)
def _moved_states(device: DeviceModel, volts: float, history: History) -> Tensor:
    """Draw LRS cells until a read at `volts` has moved some of them, and return the states of those."""
    key, moved = rng.derive_seed("disturb"), list[Tensor]()
    for batch in torch.arange(1 << 23, device=device.device).split(1 << 15):
        cells = Cells(device, batch, key, history)
        cells.apply(-2.0)
        before = cells.r.clone()
        cells.apply(volts)
        moved.append(cells.r[cells.r != before])
        if sum(map(len, moved)) >= 256:
            break
    found = torch.cat(moved)
    return found if len(found) else before[:1]  # too rare to matter
