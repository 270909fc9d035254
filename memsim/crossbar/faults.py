"""Faults of programmed cells and of the lines of arrays."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from memsim import rng
from memsim.crossbar.cell import zero_current_state
from memsim.crossbar.tiling import Tiling
from memsim.device import Device
from memsim.hardware import Faults
from memsim.portable.chunks import for_chunks
from memsim.portable.constants import WORDS
from memsim.portable.draws import random_words


def apply_faults(states: Tensor, faults: Faults, tiling: Tiling, device: Device, key: int) -> None:
    """Change states [..., in, out] in place by faults, which are drawn for every array of the leading axes by itself.

    A stuck cell has the state of a fresh cell in LRS or HRS, whatever was written to it. The cells of a dead row or
    column conduct nothing.
    """
    if faults.stuck_lrs or faults.stuck_hrs:
        _stick(states.view(-1), faults, device, key)
    *arrays, in_features, out_features = states.shape
    conducts_nothing = float(zero_current_state(device))
    outputs = torch.arange(out_features, device=states.device)
    if faults.dead_rows:
        shape = (*arrays, in_features, tiling.col_tiles)
        rows = _happens(faults.dead_rows, shape, rng.derive_seed(key, "rows"), states.device)
        states.masked_fill_(rows[..., tiling.col_tile_of(outputs)], conducts_nothing)
    if faults.dead_cols:
        shape = (*arrays, tiling.row_tiles, out_features)
        columns = _happens(faults.dead_cols, shape, rng.derive_seed(key, "columns"), states.device)
        columns = columns.repeat_interleave(tiling.rows, dim=-2)[..., :in_features, :]
        states.masked_fill_(columns, conducts_nothing)


def _stick(flat: Tensor, faults: Faults, device: Device, key: int) -> None:
    """Give the stuck cells among the states `flat` [n], whose counters are their places, the state that they keep."""
    lrs_words, words = (round(share * WORDS) for share in (faults.stuck_lrs, faults.stuck_lrs + faults.stuck_hrs))
    own_key = rng.derive_seed(key, "stuck")

    def stick_part(part: slice) -> None:
        cells = torch.arange(part.start, part.stop, device=flat.device)
        (word,) = random_words(key, cells, 1)
        stuck = (word < words).nonzero().squeeze(1)
        is_lrs = word.index_select(0, stuck) < lrs_words
        drawn = device.stuck_states(is_lrs, cells.index_select(0, stuck), own_key)
        flat[part].index_copy_(0, stuck, drawn.to(flat.dtype))

    for_chunks(stick_part, flat.numel(), flat.device)


def _happens(fraction: float, shape: tuple[int, ...], key: int, device: torch.device) -> Tensor:
    """Return what happens with probability `fraction` in each place of `shape`, whose counter is its flat place."""
    (word,) = random_words(key, torch.arange(math.prod(shape), device=device), 1)
    return (word < round(fraction * WORDS)).view(shape)
