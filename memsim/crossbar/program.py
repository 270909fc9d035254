"""Programming: from levels to the states of cells, with a report of the pulses and reads.

Cells are programmed in chunks of a fixed size, so memory is bounded for a matrix of any size. A cell is drawn from a
key and its counter, which is its place in the flat `Tiling.shape`, so its state depends on neither chunks nor threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import torch
from torch import Tensor

from memsim import rng
from memsim.crossbar.ageing import age, relax
from memsim.crossbar.disturb import read_pulses, settle
from memsim.crossbar.faults import apply_faults
from memsim.crossbar.memory import keep_freed_memory
from memsim.crossbar.programming_report import ProgrammingReport, Tally
from memsim.crossbar.tiling import Tiling, by_input, tiling_for
from memsim.device import DeviceModel, draw_cycling_volts, load_device_on, pulse_cells, state_means
from memsim.device.programming import Outcome, Programmer, SinglePulseProgrammer, make_programmer
from memsim.errors import InputError
from memsim.hardware import HardwareSpec, Scheme, SinglePulse
from memsim.portable.chunks import for_chunks

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
    config, device = spec.programming, load_device_on(spec.cell, levels.device)
    tiling = tiling_for(levels.shape, spec, groups)
    key = rng.derive_seed(seed, name, "programming")
    states, report = program(tiling.spread(levels), tiling, config, device, key, read_pulses(spec))
    if config.relaxation is not None:
        relax(states, config.relaxation, device, rng.derive_seed(seed, name, "relaxation"))
    if spec.retention is not None:
        age(states, spec.retention, rng.derive_seed(seed, name, "retention"))
    if spec.faults is not None:
        apply_faults(states, spec.faults, tiling, device, rng.derive_seed(seed, name, "faults"))
    return states, report


def settings_of_states(spec: HardwareSpec) -> tuple[object, ...]:
    """Return the settings of a layer's resolved spec that the states of its cells depend on."""
    return spec.cell, spec.tile, spec.weights, spec.programming, read_pulses(spec), spec.retention, spec.faults


def program(
    levels: Tensor,
    tiling: Tiling,
    config: Scheme,
    device: DeviceModel,
    key: int,
    read_volts: Sequence[float] = (),
) -> tuple[Tensor, ProgrammingReport]:
    """Program fresh cells, drawn with `key`, to `levels` [out, in].

    `read_volts` are the pulses of disturbing reads that follow: see `settle`. Returns the states [slices, 2, copies,
    in, out], float16, and a report. Raises InputError where the pulses of a closed loop do not switch every cell.
    """
    keep_freed_memory()
    programmer = make_programmer(config, device, 1 << tiling.cell_bits)
    act, disturb = _acting(programmer, tiling, config, device, key, read_volts)
    states = torch.empty(tiling.shape, dtype=STATE_DTYPE, device=levels.device)
    flat, levels = states.view(-1), by_input(levels)
    tally = Tally(config, programmer, flat.numel())

    def program_part(part: slice) -> None:
        digits, cells = tiling.digits(levels, part), torch.arange(part.start, part.stop, device=levels.device)
        outcome = act(digits, cells)
        flat[part] = disturb(outcome.r, digits, cells)
        tally.add(part.start, digits, outcome)

    for_chunks(program_part, flat.numel(), levels.device)
    return states, tally.report()


def outcome_states(
    name: str, shape: Sequence[int], spec: HardwareSpec, seed: int, groups: int, on: torch.device
) -> Tensor:
    """Return what every cell of a matrix of `shape` (out, in / groups) becomes at each digit it may be programmed to.

    These are the states [digits, slices, 2, copies, in, out], float16, right after programming, with faults and read
    disturb, but before relaxation and drift; cells are those that `program_matrix` draws by (seed, name). A cell's
    outcome depends on its own digit alone. Not for ideal cells. Raises InputError as `program` does.
    """
    config, device = spec.programming, load_device_on(spec.cell, on)
    tiling = tiling_for(shape, spec, groups)
    key = rng.derive_seed(seed, name, "programming")
    keep_freed_memory()
    programmer = make_programmer(config, device, 1 << tiling.cell_bits)
    act, disturb = _acting(programmer, tiling, config, device, key, read_pulses(spec))
    states = torch.empty(1 << tiling.cell_bits, *tiling.shape, dtype=STATE_DTYPE, device=on)
    for digit, at_digit in enumerate(states):
        flat = at_digit.view(-1)

        def program_part(part: slice, digit: int = digit, flat: Tensor = flat) -> None:
            cells = torch.arange(part.start, part.stop, device=on)
            digits = torch.full_like(cells, digit, dtype=torch.int32)
            flat[part] = disturb(act(digits, cells).r, digits, cells)

        for_chunks(program_part, flat.numel(), on)
        if spec.faults is not None:
            apply_faults(at_digit, spec.faults, tiling, device, rng.derive_seed(seed, name, "faults"))
    return states


def _acting(
    programmer: Programmer,
    tiling: Tiling,
    config: Scheme,
    device: DeviceModel,
    key: int,
    read_volts: Sequence[float],
) -> tuple[Callable[[Tensor, Tensor], Outcome], Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """Return functions of cells [n] and their digits [n]: one that programs them, and one of the reads that follow.

    The second takes the states of cells, and returns those after disturbing reads. Raises InputError as `program` does.
    """
    if not isinstance(config, SinglePulse) and not _switches_fully(config, device):
        raise InputError(
            f"programming: closed loops need pulses that switch every cell: set_volts at most {FULL_SET_VOLTS} (it is"
            f" {config.set_volts}), reset_volts at least {device.reset_full_volts} (it is {config.reset_volts})"
        )
    act: Callable[[Tensor, Tensor], Outcome] = partial(programmer, key=key)
    if config.exact:
        means = torch.tensor(mean_states(config, device, tiling.cell_bits), device=device.device)
        act = partial(_in_mean_states, means)
    elif isinstance(config, SinglePulse) and (
        config.cycling is not None or read_volts or not _switches_fully(config, device)
    ):
        act, read_volts = _by_pulse(tiling, config, device, key, read_volts), ()

    def disturb(r: Tensor, digits: Tensor, cells: Tensor) -> Tensor:
        return settle(r, digits, cells, config, device, read_volts, key) if read_volts else r

    return act, disturb


def _in_mean_states(means: Tensor, digits: Tensor, _: Tensor) -> Outcome:
    return Outcome.in_states(means.index_select(0, digits))


def _switches_fully(config: Scheme, device: DeviceModel) -> bool:
    """Whether the pulses are strong enough to switch every cell, whatever its thresholds and its past."""
    return config.set_volts <= FULL_SET_VOLTS and config.reset_volts >= device.reset_full_volts


def _by_pulse(
    tiling: Tiling, config: SinglePulse, device: DeviceModel, key: int, read_volts: Sequence[float]
) -> Callable[[Tensor, Tensor], Outcome]:
    """Return a programmer of cells whose past or thresholds matter: every pulse acts on every cell of a tile."""
    programmer = SinglePulseProgrammer(config, device)
    # two sequences of pulses a tile: for cells of digit 0 and of digit 1
    last = [[config.reset_volts, volts, *read_volts] for volts in (0.0, config.set_volts)]
    volts = torch.tensor(last, device=device.device).repeat(tiling.tiles, 1)
    if config.cycling is not None:
        cycling = draw_cycling_volts(config.cycling, tiling.tiles, rng.derive_seed(key, "cycling"), device.device)
        volts = torch.cat([cycling.repeat_interleave(2, dim=0), volts], dim=1)

    def act(digits: Tensor, cells: Tensor) -> Outcome:
        r = pulse_cells(device, cells, key, volts, 2 * tiling.tile_of(cells) + digits, config.history)
        return programmer.outcome(digits, r)

    return act


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
        cells = torch.arange(POPULATION_CELLS)
        return programmer(digits, cells, rng.derive_seed("population", digit)).r.double().mean().item()

    return tuple(mean(digit) for digit in range(1 << cell_bits))
