"""Programming: from levels to the states of cells, with a report of the pulses and reads.

Cells are programmed in chunks of a fixed size, one after the other, from one generator. Memory is therefore bounded for
a matrix of any size, and the result depends on the generator alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Generator, Tensor

from memsim import rng
from memsim.crossbar.disturb import read_pulses, settle
from memsim.crossbar.faults import age, apply_faults
from memsim.crossbar.memory import keep_freed_memory
from memsim.crossbar.programming_report import ProgrammingReport, Tally
from memsim.crossbar.tiling import Tiling, tiling_for
from memsim.device import DeviceModel, draw_cycling_volts, load_device_on, pulse_cells, state_means
from memsim.device.features import chunks
from memsim.device.programming import Outcome, SinglePulseProgrammer, make_programmer
from memsim.errors import InputError
from memsim.hardware import HardwareSpec, Scheme, SinglePulse

STATE_DTYPE = torch.float16
"""The type of stored states. It rounds a state by 1.4e-4 (rms), 2e-4 of the full-scale current, where the least spread
that closed-loop programming leaves is 1.2e-3."""

FULL_SET_VOLTS = -2.0
"""The voltage of a SET pulse that switches all but about one in 10^6 cells."""

POPULATION_CELLS = 1 << 15
"""Cells of each level whose mean is taken for the population's, accurate to 3e-4 of full scale or better."""


def program_matrix(
    name: str, levels: Tensor, spec: HardwareSpec, seed: int, groups: int = 1
) -> tuple[Tensor | None, ProgrammingReport | None]:
    """Program `levels` [out, in / groups] on fresh cells, drawn by (seed, name), as `spec` says.

    Returns the states of the cells when they are read, after relaxation, drift and faults, and the report of the
    programming; None for ideal cells. Raises InputError as `program` does.
    """
    if spec.cell == "ideal":
        return None, None
    config, device, where = spec.programming, load_device_on(spec.cell, levels.device), levels.device
    tiling = tiling_for(levels.shape, spec, groups)
    generator = rng.generator(seed, name, "programming", device=where)
    states, report = program(tiling.spread(levels), tiling, config, device, generator, read_pulses(spec))
    if config.relaxation is not None:
        relax(states, config.relaxation, device, rng.generator(seed, name, "relaxation", device=where))
    if spec.retention is not None:
        states = age(states, spec.retention, rng.generator(seed, name, "retention", device=where))
    if spec.faults is not None:
        states = apply_faults(states, spec.faults, tiling, device, rng.generator(seed, name, "faults", device=where))
    return states, report


def settings_of_states(spec: HardwareSpec) -> tuple[object, ...]:
    """Return the settings of a layer's resolved spec that the states of its cells depend on."""
    return spec.cell, spec.tile, spec.weights, spec.programming, read_pulses(spec), spec.retention, spec.faults


def program(
    levels: Tensor,
    tiling: Tiling,
    config: Scheme,
    device: DeviceModel,
    generator: Generator,
    read_volts: Sequence[float] = (),
) -> tuple[Tensor, ProgrammingReport]:
    """Program fresh cells to `levels` [out, in].

    `read_volts` are the pulses of disturbing reads that follow: see `settle`. Returns the states [slices, 2, copies,
    in, out], float16, and a report. Raises InputError where the pulses of a closed loop do not switch every cell.
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
    """Whether the pulses are strong enough to switch every cell, whatever its thresholds and its past."""
    return config.set_volts <= FULL_SET_VOLTS and config.reset_volts >= device.reset_full_volts


def _program_by_pulse(
    levels: Tensor,
    tiling: Tiling,
    config: SinglePulse,
    device: DeviceModel,
    generator: Generator,
    read_volts: Sequence[float],
) -> tuple[Tensor, ProgrammingReport]:
    """Program cells whose past or thresholds matter: every pulse acts on every cell of a tile, used or not."""
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
    """Change the conductance of each of `states` (any shape), in place, by a Gaussian fraction of itself.

    `fraction` is the standard deviation. The conductance is taken at the device's reference voltage and does not become
    negative. Real cells relax in this way after programming; the data that the device was fitted to do not contain it.
    """
    llrs, hhrs = device.reference_conductances_siemens
    zero_current = llrs / (llrs - hhrs)  # the state without conductance
    flat = states.view(-1)
    for part in chunks(flat.numel(), states.device):
        r = flat[part].float()
        normal = torch.randn(r.shape, generator=generator, device=states.device)
        flat[part] = zero_current + (r - zero_current) * (1 + fraction * normal).clamp_(min=0)


def mean_window(config: Scheme, device: DeviceModel, cell_bits: int = 1) -> float:
    """Return the mean change of a cell's state from one digit to the next (negative), on average over chips.

    It is the difference of the mean states that programming achieves; with several levels, the least-squares step
    through them. It is a constant of the design, which does not depend on the chip; the mean of a large array's own
    verify reads would give it too.
    """
    means = mean_states(config, device, cell_bits)
    digits = torch.arange(len(means), dtype=torch.float64)
    rise = torch.tensor(means, dtype=torch.float64) - means[0]
    return float((digits * rise).sum() / digits.square().sum())


@lru_cache(maxsize=64)
def mean_states(config: Scheme, device: DeviceModel, cell_bits: int = 1) -> tuple[float, ...]:
    """Return the mean state of each digit: exact for single pulses, else over POPULATION_CELLS cells of a fixed key."""
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
