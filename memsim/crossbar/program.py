"""Programming: from the cells that are to be SET to the states that they take."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from memsim.crossbar.encode import set_mask
from memsim.crossbar.tiling import Tiling
from memsim.device import DeviceModel, RandomCycling, draw_states, program_cells, state_means
from memsim.spec import Programming

STATE_DTYPE = torch.float16
"""Cell states are kept in 16 bits: a rounding of at most 2.5e-4 of a state, against a programming spread of 5e-2."""


def program(levels: Tensor, tiling: Tiling, config: Programming, device: DeviceModel, generator: Generator) -> Tensor:
    """States [planes, 2, in, out] (float16) of fresh cells programmed to `levels` [out, in] by a single pulse."""
    mask = set_mask(levels, tiling.bits)
    if config.cycling is None and _single_draw_suffices(config, device):
        states = draw_states(device, mask, generator, config.history)
    else:
        cycling = RandomCycling(**config.cycling.model_dump()) if config.cycling else None
        states = tiling.join(
            program_cells(
                device,
                tiling.cut(mask),
                generator,
                history=config.history,
                cycling=cycling,
                set_volts=config.set_volts,
                reset_volts=config.reset_volts,
            )
        )
    return states.to(STATE_DTYPE)


def mean_window(config: Programming, device: DeviceModel) -> float:
    """The mean state of set minus unset cells (negative): what a weight of 1 changes, on average over chips."""
    lrs, hrs = state_means(device, config.history)
    return lrs - hrs


def _single_draw_suffices(config: Programming, device: DeviceModel) -> bool:
    """Whether the pulses are strong enough to switch every cell fully, so that only the drawn state matters."""
    return config.set_volts <= -2.0 and config.reset_volts >= device.reset_full_volts
