"""Programming: from levels to the states that cells take, and what that took.

Cells are programmed in chunks of a fixed size, one after the other from one generator: memory is bounded whatever the
size of the matrix, and a result depends on the generator alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Generator, Tensor

from memsim import rng
from memsim.crossbar.disturb import settle
from memsim.crossbar.memory import keep_freed_memory
from memsim.crossbar.programming_report import ProgrammingReport, Tally
from memsim.crossbar.tiling import Tiling
from memsim.device import DeviceModel, draw_cycling_volts, pulse_cells, state_means
from memsim.device.features import chunks
from memsim.device.programming import Outcome, SinglePulseProgrammer, make_programmer
from memsim.errors import InputError
from memsim.spec import Scheme, SinglePulse

STATE_DTYPE = torch.float16
"""Cell states are kept in 16 bits: rounded by 1.4e-4 (rms) of a state, 2e-4 of the full-scale current, where the least
spread that closed-loop programming leaves is 1.2e-3."""

FULL_SET_VOLTS = -2.0
"""A SET pulse that switches all but one in some 10^6 cells."""

POPULATION_CELLS = 1 << 15
"""Cells of each level whose mean stands for the population's: to 3e-4 of full scale and better."""


def program(
    levels: Tensor,
    tiling: Tiling,
    config: Scheme,
    device: DeviceModel,
    generator: Generator,
    read_volts: Sequence[float] = (),
) -> tuple[Tensor, ProgrammingReport]:
    """States [slices, 2, copies, in, out] (float16) of fresh cells programmed to `levels` [out, in], and what it took.

    `read_volts` are those of reads afterwards that disturb: see `settle`. Raises InputError where a closed loop is to
    work with pulses that do not switch every cell.
    """
    keep_freed_memory()
    if isinstance(config, SinglePulse):
        if not config.exact and (config.cycling is not None or read_volts or not _switches_fully(config, device)):
            return _program_by_pulse(levels, tiling, config, device, generator, read_volts)
    elif not _switches_fully(config, device):
        raise InputError(
            f"programming: closed loops need pulses that switch every cell: set_volts at most {FULL_SET_VOLTS} (it is"
            f" {config.set_volts}), reset_volts at least {device.reset_full_volts} (it is {config.reset_volts})"
        )
    programmer = make_programmer(config, device, 1 << tiling.cell_bits)
    means = torch.tensor(mean_states(config, device, tiling.cell_bits), device=device.device) if config.exact else None
    tally = Tally(config, programmer)
    states = torch.empty(tiling.shape, dtype=STATE_DTYPE, device=levels.device)
    flat = states.view(-1)
    for part in chunks(flat.numel(), levels.device):
        digits = tiling.digits(levels, part)
        outcome = programmer(digits, generator) if means is None else Outcome.in_states(means[digits.long()])
        tally.add(digits, outcome)
        flat[part] = settle(outcome.r, digits, config, device, read_volts, generator) if read_volts else outcome.r
    return states, tally.report()


def _switches_fully(config: Scheme, device: DeviceModel) -> bool:
    """Whether the pulses are strong enough to switch every cell, so that only the drawn state matters."""
    return config.set_volts <= FULL_SET_VOLTS and config.reset_volts >= device.reset_full_volts


def _program_by_pulse(
    levels: Tensor,
    tiling: Tiling,
    config: SinglePulse,
    device: DeviceModel,
    generator: Generator,
    read_volts: Sequence[float],
) -> tuple[Tensor, ProgrammingReport]:
    """`program` for cells whose past or thresholds matter: every pulse on every cell of a tile, used or not."""
    programmer = SinglePulseProgrammer(config, device)
    tally = Tally(config, programmer)
    states = torch.empty(tiling.shape, dtype=STATE_DTYPE, device=levels.device)
    flat = states.view(-1)
    cycling = draw_cycling_volts(config.cycling, tiling.tiles, generator) if config.cycling else ()
    for part in chunks(tiling.cells, levels.device):
        tile, place = tiling.tile_cells(part, levels.device)
        used = (place >= 0).nonzero().squeeze(1)
        place = place.index_select(0, used)
        digits = torch.zeros_like(tile, dtype=torch.int32)
        digits.index_copy_(0, used, tiling.digits_at(levels, place))
        r = pulse_cells(
            device,
            digits > 0,
            generator,
            history=config.history,
            cycling_volts=(volts.index_select(0, tile) for volts in cycling),
            set_volts=config.set_volts,
            reset_volts=config.reset_volts,
            read_volts=read_volts,
        )
        digits, r = digits.index_select(0, used), r.index_select(0, used)
        flat.index_copy_(0, place, r.to(flat.dtype))
        tally.add(digits, programmer.outcome(digits, r))
    return states, tally.report()


def relax(states: Tensor, fraction: float, device: DeviceModel, generator: Generator) -> None:
    """Change the conductance of each of `states` (any shape), in place, by a Gaussian `fraction` of itself.

    The conductance is that at the device's reference voltage; it does not become negative. Real cells relax so after
    programming; the data that the device was fitted to do not contain it.
    """
    llrs, hhrs = device.reference_conductances_siemens
    dark = llrs / (llrs - hhrs)  # the state that conducts nothing
    flat = states.view(-1)
    for part in chunks(flat.numel(), states.device):
        r = flat[part].float()
        normal = torch.randn(r.shape, generator=generator, device=states.device)
        flat[part] = dark + (r - dark) * (1 + fraction * normal).clamp_(min=0)


def mean_window(config: Scheme, device: DeviceModel, cell_bits: int = 1) -> float:
    """What a digit more changes of a cell's state (negative), on average over chips.

    That is the difference of the means that programming achieves; of several levels, the least-squares step through
    them. It is the population's, so that it does not depend on the chip that is drawn: a constant of the design, which
    the mean of a large array's own verify reads would give too.
    """
    means = mean_states(config, device, cell_bits)
    digits = torch.arange(len(means), dtype=torch.float64)
    rise = torch.tensor(means, dtype=torch.float64) - means[0]
    return float((digits * rise).sum() / digits.square().sum())


@lru_cache(maxsize=64)
def mean_states(config: Scheme, device: DeviceModel, cell_bits: int = 1) -> tuple[float, ...]:
    """The mean state that each digit gets: exact for single pulses, else over POPULATION_CELLS cells of a fixed key."""
    if isinstance(config, SinglePulse):
        lrs, hrs = state_means(device, config.history)
        return hrs, lrs
    there = device.to("cpu")
    config = config.model_copy(update={"exact": False})
    programmer = make_programmer(config, there, 1 << cell_bits)

    def mean(digit: int) -> float:
        digits = torch.full((POPULATION_CELLS,), digit, dtype=torch.int32)
        return programmer(digits, rng.generator("population", digit)).r.double().mean().item()

    return tuple(mean(digit) for digit in range(1 << cell_bits))
