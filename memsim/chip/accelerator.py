"""The digital alternative: the same network on an accelerator of the same technology node, with weights of few bits.

Its multipliers keep a block of weights while input vectors stream past, so a weight that is read serves as many vectors
as there are in a round, at most one for each row of multipliers; in a decoder that reads token by token it serves one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from memsim.chip.architecture import WEIGHT_BYTES, Chip, Prices
from memsim.chip.estimate import WHOLE_CHIP, Energies, digital_joules
from memsim.chip.workload import DigitalWork, MatrixWork, Work, Workload


@dataclass(frozen=True)
class Accelerated:
    """The energy, time and area of a workload on the accelerator, with weights of `bits` bits."""

    bits: int
    energies: Energies
    seconds: float
    areas: Mapping[str, float]
    sram_share: float
    """The fraction of the weights that the SRAM holds; the others are read from DRAM in every round."""

    @property
    def seconds_per_unit(self) -> float:
        """Seconds of computing for a unit of the workload; of audio: the real-time factor."""
        return self.seconds / self.energies.amount


def accelerated(workload: Workload, chip: Chip, prices: Prices, bits: int) -> Accelerated:
    """Return the estimate for `workload` with weights of 4 or 8 bits; activations have 8."""
    accelerator, layers = chip.accelerator, dict[str, dict[str, float]]()
    precision = f"int{bits}"
    weight_bytes = WEIGHT_BYTES[precision]
    stored = workload.weights * weight_bytes
    sram_share = chip.sram_share(workload.weights, weight_bytes)
    seconds = 0.0
    for work in map(as_digital, workload.works):
        own = layers.setdefault(work.name, {})
        for circuit, joules in digital_joules(work, prices, precision, accelerator.rows, sram_share).items():
            own[circuit] = own.get(circuit, 0.0) + joules
        loading = work.dram_bytes(weight_bytes, sram_share) / accelerator.dram_bytes_per_second
        seconds += max(_computing_seconds(work, chip), loading)
    areas = {
        "digital": prices["accelerator.square_millimetres"],
        "memory": sram_share * stored / 2**20 * prices["digital.memory_square_millimetres_per_megabyte"],
    }
    powered = workload.powered_seconds(chip.powered, seconds)
    watts = prices["leakage_watts_per_square_millimetre"] * math.fsum(areas.values())
    layers[WHOLE_CHIP] = {"leakage": watts * powered}
    return Accelerated(bits, Energies(layers, workload.amount), seconds, areas, sram_share)


def as_digital(work: Work) -> DigitalWork:
    """Return the work of a matrix as a digital product; digital work as it is."""
    if not isinstance(work, MatrixWork):
        return work
    return DigitalWork(
        work.name,
        "product",
        work.rounds,
        work.macs,
        vectors=work.vectors,
        inputs=work.inputs,
        outputs=work.outputs,
        weights=work.weights,
    )


def _computing_seconds(work: DigitalWork, chip: Chip) -> float:
    """Return the time of multipliers and of other operations; a block of weights takes a cycle for each row to load."""
    size, clock = chip.accelerator.rows, chip.accelerator.clock_hz
    others = (work.special + work.elementwise) / chip.digital.operations_per_second
    if work.kind != "product":
        return work.macs / (size * size * clock) + others
    if not work.vectors:
        return 0.0
    per_round = work.vectors / work.rounds
    block_inputs = work.weights / max(1, work.outputs)
    groups = work.inputs / max(1.0, block_inputs)
    blocks = groups * math.ceil(block_inputs / size) * math.ceil(work.outputs / groups / size)
    return work.rounds * blocks * max(per_round, size) / clock + others
