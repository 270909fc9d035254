"""Matrices of plain weights, rounded to the nearest levels."""

from __future__ import annotations

from torch import Tensor

from memsim.crossbar import encode
from memsim.crossbar.input_transform import InputTransform
from memsim.crossbar.matrix import MappedMatrix
from memsim.crossbar.statistics import InputStatistics
from memsim.hardware import HardwareSpec


def from_weight(
    name: str,
    weight: Tensor,
    spec: HardwareSpec,
    seed: int,
    statistics: InputStatistics | None = None,
    groups: int = 1,
    input_transform: InputTransform | None = None,
) -> MappedMatrix:
    """Round the plain `weight` [out, in / groups] to the bits of `spec`, and program it."""
    bits, rows = encode.bits_of(spec), spec.tile.rows
    if input_transform is not None:
        weight = input_transform.weight(weight)
    scale = encode.fit_scale(weight, bits, spec.weights, rows)
    levels = encode.quantise(weight, scale, bits, rows)
    used = encode.without_idle_channels(scale, levels, rows)
    return MappedMatrix.from_levels(name, levels, used, spec, seed, statistics, groups, input_transform)
