"""Changes of the states of programmed cells: relaxation after programming, and drift until the reads.

A device may know what time does to its cells; the laws with numbers of the spec hold for any device.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from memsim.crossbar import compiled_cells
from memsim.device import Device
from memsim.device.interface import Ageing, Relaxation
from memsim.hardware import Retention
from memsim.portable import elementwise
from memsim.portable.chunks import for_chunks
from memsim.portable.draws import standard_normals
from memsim.portable.kernels import is_compiled


def relax(states: Tensor, fraction: float, device: Device, key: int) -> None:
    """Change the conductance of each of `states` (any shape), in place, by a Gaussian fraction of itself.

    `fraction` is the standard deviation. The conductance is taken at the device's reference voltage and does not become
    negative. Real cells relax in this way after programming; the data that the device was fitted to do not contain it.
    """
    llrs, hhrs = device.reference_conductances_siemens
    open_state = llrs / (llrs - hhrs)  # without conductance
    law = compiled_cells.relaxed if is_compiled(states) else relaxed
    _change(states, lambda r, cells: law(r, cells, key, fraction, open_state))


def relaxed(r: Tensor, cells: Tensor, key: int, fraction: float, open_state: float) -> Tensor:
    """Return the states of `cells` (counters) in states `r`, all [n], after relaxation: see `relax`."""
    change = (standard_normals(key, cells)[0] * fraction + 1.0).clamp_(min=0)
    return (r - open_state) * change + open_state


def relax_by_law(states: Tensor, law: Relaxation, device: Device, full_scale_state: float) -> None:
    """Change the conductance of each of `states` (any shape), in place, as `law` says of fractions of full scale.

    `full_scale_state` is the state at full scale. Conductances are taken at the device's reference voltage.
    """
    llrs, hhrs = device.reference_conductances_siemens
    open_state = llrs / (llrs - hhrs)  # without conductance
    window = full_scale_state - open_state
    flat = states.view(-1)

    def relax_part(part: slice) -> None:
        cells = torch.arange(part.start, part.stop, device=flat.device)
        fractions = (flat[part].float() - open_state) * (1.0 / window)
        flat[part] = law(fractions, cells) * window + open_state

    for_chunks(relax_part, flat.numel(), flat.device)


def apply_ageing(states: Tensor, ageing: Ageing, digits: Callable[[slice], Tensor]) -> None:
    """Change `states` (any shape), in place, as the device's own `ageing` says.

    `digits` gives the digits [n] of the cells of a part, places in the flat `states`.
    """
    flat = states.view(-1)

    def age_part(part: slice) -> None:
        cells = torch.arange(part.start, part.stop, device=flat.device)
        flat[part] = ageing(flat[part].float(), digits(part), cells)

    for_chunks(age_part, flat.numel(), flat.device)


def age(states: Tensor, retention: Retention, seconds: float, key: int) -> None:
    """Age `states` (any shape), in place, by `seconds`: 1 - r falls as (1 + age / reference)^-exponent.

    Each cell has its own exponent. Drift of conductances is commonly described by this power law; the exponent is not
    fitted to the shipped devices.
    """
    log2_of_age = math.log2(1 + seconds / retention.reference_seconds)
    exponents = retention.exponent_std * log2_of_age, retention.exponent * log2_of_age
    law = compiled_cells.aged if is_compiled(states) else aged
    _change(states, lambda r, cells: law(r, cells, key, *exponents))


def aged(r: Tensor, cells: Tensor, key: int, exponent_std: float, exponent: float) -> Tensor:
    """Return the states of `cells` (counters) in states `r`, all [n], after drift: see `age`.

    The exponents are those of 2.
    """
    left = elementwise.exp2(standard_normals(key, cells)[0] * -exponent_std - exponent)
    return (1.0 - r) * (1.0 - left) + r


def _change(states: Tensor, law: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Replace `states` by what `law` gives for states and counters; a counter is a state's place."""
    flat = states.view(-1)

    def change_part(part: slice) -> None:
        flat[part] = law(flat[part].float(), torch.arange(part.start, part.stop, device=flat.device))

    for_chunks(change_part, flat.numel(), flat.device)
