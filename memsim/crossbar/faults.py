"""Faults and ageing of programmed cells."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from memsim.crossbar.cell import zero_current_state
from memsim.crossbar.tiling import Tiling
from memsim.device import DeviceModel, draw_states
from memsim.hardware import Faults, Retention


def apply_faults(states: Tensor, faults: Faults, tiling: Tiling, device: DeviceModel, generator: Generator) -> Tensor:
    """Return states [..., in, out] with faults, which are drawn independently for every array of the leading axes.

    A stuck cell has the state of a fresh cell in LRS or HRS, whatever was written to it. The cells of a dead row or
    column conduct nothing.
    """
    *arrays, in_features, out_features = states.shape
    where = states.device

    def happens(fraction: float, *shape: int) -> Tensor:
        return torch.rand(*arrays, *shape, generator=generator, device=where) < fraction

    faulty = states.clone()
    if faults.stuck_lrs or faults.stuck_hrs:
        u = torch.rand(states.shape, generator=generator, device=where)
        stuck = u < faults.stuck_lrs + faults.stuck_hrs
        drawn = draw_states(device, (u < faults.stuck_lrs)[stuck], generator)
        faulty[stuck] = drawn.to(states.dtype)
    dead = torch.zeros(states.shape, dtype=torch.bool, device=where)
    if faults.dead_rows:
        rows = happens(faults.dead_rows, in_features, tiling.col_tiles)
        dead |= rows[..., tiling.col_tile_of(torch.arange(out_features, device=rows.device))]
    if faults.dead_cols:
        columns = happens(faults.dead_cols, tiling.row_tiles, out_features)
        dead |= columns.repeat_interleave(tiling.rows, dim=-2)[..., :in_features, :]
    return faulty.masked_fill_(dead, float(zero_current_state(device)))


def age(states: Tensor, retention: Retention, generator: Generator) -> Tensor:
    """Return `states` (any shape) after `age_seconds`, in which 1 - r falls as (1 + age / reference)^-exponent.

    Each cell has its own exponent. Drift of conductances is commonly described by this power law; the exponent is not
    fitted to the shipped devices.
    """
    drawn = torch.randn(states.shape, generator=generator, device=states.device)
    exponent = retention.exponent + retention.exponent_std * drawn
    lost = 1 - (1 + retention.age_seconds / retention.reference_seconds) ** -exponent
    return (states + (1 - states.float()) * lost).to(states.dtype)
