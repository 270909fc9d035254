"""Programming: from levels to the states of cells, with a report of the pulses and reads.

Cells are programmed in chunks of a fixed size, so memory is bounded for a matrix of any size. A cell is drawn from a
key and its counter, which is its place in the flat `Tiling.shape`, so its state depends on neither chunks nor threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from memsim import rng
from memsim.crossbar.ageing import age, apply_ageing, relax, relax_by_law
from memsim.crossbar.disturb import read_pulses
from memsim.crossbar.faults import apply_faults
from memsim.crossbar.memory import keep_freed_memory
from memsim.crossbar.programming_report import ProgrammingReport, Tally
from memsim.crossbar.tiling import Tiling, by_input, tiling_for
from memsim.device import Device, load_device_on
from memsim.device.interface import require_fits
from memsim.hardware import HardwareSpec, Scheme
from memsim.portable.chunks import for_chunks

STATE_DTYPE = torch.float16
"""The type of stored states. It rounds a state by 1.4e-4 (rms), 2e-4 of the full-scale current, where the least spread
that closed-loop programming leaves is 1.2e-3."""


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
    require_fits(device, spec)
    key = rng.derive_seed(seed, name, "programming")
    states, report = program(tiling.spread(levels), tiling, config, device, key, read_pulses(spec))
    if isinstance(config.relaxation, str):
        law = load_device_on(config.relaxation, levels.device).relaxation(
            spec.seconds_until_read, rng.derive_seed(seed, name, "relaxation by law")
        )
        relax_by_law(states, law, device, device.programmer(config, 1 << tiling.cell_bits).scale.full_scale_state)
    elif config.relaxation is not None:
        relax(states, config.relaxation, device, rng.derive_seed(seed, name, "relaxation"))
    ageing = device.ageing(
        spec.seconds_until_read, config, 1 << tiling.cell_bits, rng.derive_seed(seed, name, "ageing")
    )
    if ageing is not None:
        apply_ageing(states, ageing, partial(tiling.digits, by_input(tiling.spread(levels))))
    if spec.retention is not None:
        age(states, spec.retention, spec.seconds_until_read, rng.derive_seed(seed, name, "retention"))
    if spec.faults is not None:
        apply_faults(states, spec.faults, tiling, device, rng.derive_seed(seed, name, "faults"))
    return states, report


def settings_of_states(spec: HardwareSpec) -> tuple[object, ...]:
    """Return the settings of a layer's resolved spec that the states of its cells depend on."""
    time = spec.read_at_seconds, spec.retention, spec.drift_compensation  # which is fitted to the states
    return spec.cell, spec.tile, spec.weights, spec.programming, read_pulses(spec), time, spec.faults


def program(
    levels: Tensor,
    tiling: Tiling,
    config: Scheme,
    device: Device,
    key: int,
    read_volts: Sequence[float] = (),
) -> tuple[Tensor, ProgrammingReport]:
    """Program fresh cells, drawn with `key`, to `levels` [out, in].

    `read_volts` are the pulses of disturbing reads that follow: see `settle`. Returns the states [slices, 2, copies,
    in, out], float16, and a report. Raises InputError where the pulses of a closed loop do not switch every cell.
    """
    keep_freed_memory()
    programmer = device.programmer(config, 1 << tiling.cell_bits)
    act, disturb = programmer.on_tiles(tiling, key, read_volts)
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
    require_fits(device, spec)
    key = rng.derive_seed(seed, name, "programming")
    keep_freed_memory()
    programmer = device.programmer(config, 1 << tiling.cell_bits)
    act, disturb = programmer.on_tiles(tiling, key, read_pulses(spec))
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


def mean_window(config: Scheme, device: Device, cell_bits: int = 1) -> float:
    """Return the mean change of a cell's state from one digit to the next (negative), on average over chips.

    It is the difference of the mean states that programming achieves; with several levels, the least-squares step
    through them. It is a constant of the design, which does not depend on the chip; the mean of a large array's own
    verify reads would give it too.
    """
    means = device.mean_states(config, 1 << cell_bits)
    digits = torch.arange(len(means), dtype=torch.float64)
    rise = torch.tensor(means, dtype=torch.float64) - means[0]
    return float((digits * rise).sum() / digits.square().sum())
