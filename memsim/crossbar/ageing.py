"""Changes of the states of programmed cells: relaxation after programming, and drift until the reads."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from memsim.device import DeviceModel
from memsim.hardware import Retention
from memsim.portable import elementwise
from memsim.portable.chunks import of_chunks


def relax(states: Tensor, fraction: float, device: DeviceModel, key: int) -> None:
    """Change the conductance of each of `states` (any shape), in place, by a Gaussian fraction of itself.

    `fraction` is the standard deviation. The conductance is taken at the device's reference voltage and does not become
    negative. Real cells relax in this way after programming; the data that the device was fitted to do not contain it.
    """
    llrs, hhrs = device.reference_conductances_siemens
    open_state = llrs / (llrs - hhrs)  # without conductance
    flat = states.view(-1)

    def relax_part(part: slice) -> None:
        change = (_normals(flat, part, key) * fraction + 1.0).clamp_(min=0)
        flat[part] = (flat[part].float() - open_state) * change + open_state

    of_chunks(relax_part, flat.numel(), flat.device)


def age(states: Tensor, retention: Retention, key: int) -> None:
    """Age `states` (any shape), in place, by `age_seconds`: 1 - r falls as (1 + age / reference)^-exponent.

    Each cell has its own exponent. Drift of conductances is commonly described by this power law; the exponent is not
    fitted to the shipped devices.
    """
    log2_of_age = math.log2(1 + retention.age_seconds / retention.reference_seconds)
    slope, offset = retention.exponent_std * log2_of_age, retention.exponent * log2_of_age
    flat = states.view(-1)

    def age_part(part: slice) -> None:
        r = flat[part].float()
        left = elementwise.exp2(_normals(flat, part, key) * -slope - offset)
        flat[part] = (1.0 - r) * (1.0 - left) + r

    of_chunks(age_part, flat.numel(), flat.device)


def _normals(flat: Tensor, part: slice, key: int) -> Tensor:
    cells = torch.arange(part.start, part.stop, device=flat.device)
    radius_words, angle_words, _, _ = elementwise.random_words(key, cells)
    return elementwise.normal_pair(radius_words, angle_words)[0]
