"""Energy and area of a network on a chip and on a digital accelerator, by circuit and by layer, at given prices.

The energy of every part of the work is a sum of counts times prices, so that an estimate at other prices costs little.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from memsim.chip.architecture import WEIGHT_BYTES, Chip, Prices
from memsim.chip.placement import Placement
from memsim.chip.schedule import Schedule
from memsim.chip.workload import DigitalWork, MatrixWork, Workload
from memsim.crossbar.drive import driven_bits

CIRCUITS = (
    "dac", "adc", "cells", "sums", "buffers", "network", "links", "products", "operations", "memory", "dram", "leakage",
)  # fmt: skip
"""The parts of the energy of a chip: products, operations, memory and DRAM are those of its digital part."""

WHOLE_CHIP = "whole chip"
"""The name under which the leakage stands among the layers."""


@dataclass(frozen=True)
class Energies:
    """Joules for a workload, by layer and circuit, and the amount of its unit (a second of audio, or an example)."""

    by_layer: Mapping[str, Mapping[str, float]]
    amount: float

    @property
    def by_circuit(self) -> dict[str, float]:
        """Joules for a unit of each circuit."""
        found: dict[str, float] = {}
        for parts in self.by_layer.values():
            for circuit, joules in parts.items():
                found[circuit] = found.get(circuit, 0.0) + joules / self.amount
        return found

    @property
    def layers(self) -> dict[str, float]:
        """Joules for a unit of each layer."""
        return {name: math.fsum(parts.values()) / self.amount for name, parts in self.by_layer.items()}

    @property
    def joules(self) -> float:
        """Joules for a unit."""
        return math.fsum(math.fsum(parts.values()) for parts in self.by_layer.values()) / self.amount


def chip_energies(workload: Workload, placement: Placement, found: Schedule, prices: Prices) -> Energies:
    """Return the energy of `workload` on the chip of its `placement`."""
    chip, layers = placement.chip, dict[str, dict[str, float]]()
    weight_bytes, size = WEIGHT_BYTES[chip.digital.precision], chip.accelerator.rows
    sram_share = chip.sram_share(workload.digital_weights, weight_bytes)
    for work in workload.works:
        own = layers.setdefault(work.name, {})
        if isinstance(work, MatrixWork):
            parts = _matrix(work, placement, prices)
        else:
            parts = digital_joules(work, prices, chip.digital.precision, size, sram_share)
        for circuit, joules in parts.items():
            own[circuit] = own.get(circuit, 0.0) + joules
    seconds = workload.powered_seconds(chip.powered, found.latency_seconds)
    watts = prices["leakage_watts_per_square_millimetre"] * _leaking_area(workload, placement, prices)
    layers[WHOLE_CHIP] = {"leakage": watts * seconds}
    return Energies(layers, workload.amount)


def chip_areas(workload: Workload, placement: Placement, prices: Prices) -> dict[str, float]:
    """Return the area in square millimetres of the cores in use, of links and of the digital part."""
    chip = placement.chip
    areas = dict.fromkeys(("cells", "dac", "adc", "cores", "links", "digital", "memory"), 0.0)
    for placed in placement.matrices:
        work, arrays = placed.work, placed.arrays
        tile, dac = work.tiling, work.spec.dac
        bits = 1 if dac is None or dac.bits is None else driven_bits(dac)
        steps = 0 if bits == 1 else 1 << bits
        adcs = arrays / (2 * tile.copies if chip.core.pairs == "subtracted" else 1)
        adcs *= math.ceil(tile.cols / chip.core.columns_per_adc)
        row = prices["core.row_square_micrometres"] + steps * prices["core.dac_square_micrometres_per_step"]
        areas["cells"] += 1e-6 * arrays * tile.rows * tile.cols * prices["core.cell_square_micrometres"]
        areas["dac"] += 1e-6 * arrays * tile.rows * row
        areas["adc"] += 1e-6 * (0 if work.spec.adc is None else adcs) * prices["core.adc_square_micrometres"]
    areas["cores"] = placement.cores * prices["core.square_millimetres"]
    if placement.chips > 1:
        areas["links"] = placement.chips * prices["links.square_millimetres"]
    areas["digital"] = placement.chips * prices["digital.square_millimetres"]
    areas["memory"] = _megabytes(workload, chip) * prices["digital.memory_square_millimetres_per_megabyte"]
    return areas


def _leaking_area(workload: Workload, placement: Placement, prices: Prices) -> float:
    """Return the area of digital circuits and memories in use."""
    areas = chip_areas(workload, placement, prices)
    return areas["cores"] + areas["digital"] + areas["memory"]


def _megabytes(workload: Workload, chip: Chip) -> float:
    """Return the memory for the weights that stay digital, as far as it reaches."""
    stored = workload.digital_weights * WEIGHT_BYTES[chip.digital.precision]
    return min(stored, chip.accelerator.sram_bytes) / 2**20


def conversions(work: MatrixWork, chip: Chip) -> float:
    """Return the ADC conversions of an input vector."""
    apart = 1 if chip.core.pairs == "subtracted" else 2 * work.tiling.copies
    return 0.0 if work.spec.adc is None else work.phases * work.tiling.conversions * apart


def _matrix(work: MatrixWork, placement: Placement, prices: Prices) -> dict[str, float]:
    """Return the joules of a matrix for the whole workload, by circuit."""
    chip, tiling, spec, phases = placement.chip, work.tiling, work.spec, work.phases
    placed = placement.by_name[work.name]
    way = placement.traffic(placed)
    rows = sum((inputs.stop - inputs.start) * -(-(outputs.stop - outputs.start) // tiling.cols)
               for _, inputs, outputs in tiling.all_packs())  # fmt: skip
    driven_rows = rows * tiling.slices * 2 * tiling.copies
    # the arrays that share ADCs have one input register
    read_rows = rows * tiling.slices if chip.core.pairs == "subtracted" else driven_rows
    bits = 1 if spec.dac is None or spec.dac.bits is None else driven_bits(spec.dac)
    steps = 0 if bits == 1 else 1 << bits
    converted = conversions(work, chip)
    adc_steps = 0.0 if spec.adc is None else 2.0**spec.adc.bits
    key = "core.cell_joules"
    if key in prices:
        cells = phases * 2 * tiling.copies * tiling.slices * work.weights * prices[key]
    else:
        cells = (work.cell_joules or 0.0) * chip.core.read_seconds / spec.cost.cell.read_seconds
    buffered = read_rows + 2 * work.inputs + work.outputs  # read by arrays; written and read for the core; results
    one = {
        "dac": phases * driven_rows * (prices["core.driver_joules"] + steps * prices["core.dac_joules_per_step"]),
        "adc": converted * adc_steps * prices["core.adc_joules_per_step"],
        "cells": cells,
        "sums": converted * prices["core.accumulate_joules"] + work.outputs * prices["core.output_joules"],
        "buffers": buffered * work.input_bytes * prices["core.buffer_joules_per_byte"],
        "network": way.byte_hops * prices["network.joules_per_byte_hop"],
        "links": placement.link_bytes(placed) * prices["links.joules_per_byte"],
    }
    return {circuit: work.vectors * joules for circuit, joules in one.items()}


def digital_joules(work: DigitalWork, prices: Prices, precision: str, size: int, sram_share: float) -> dict[str, float]:
    """Return the joules of digital work, by circuit.

    Args:
        work: the work.
        prices: the prices of the chip.
        precision: that of products and weights.
        size: the rows and columns of multipliers.
        sram_share: the fraction of the weights that SRAM holds.
    """
    weight_bytes = WEIGHT_BYTES[precision]
    others = work.elementwise * prices["digital.elementwise_joules"] + work.special * prices["digital.special_joules"]
    return {
        "products": work.macs * prices[f"digital.{precision}_joules_per_mac"],
        "operations": others,
        "memory": memory_bytes(work, size, weight_bytes) * prices["digital.memory_joules_per_byte"],
        "dram": work.dram_bytes(weight_bytes, sram_share) * prices["accelerator.dram_joules_per_byte"],
    }


def memory_bytes(work: DigitalWork, size: int, weight_bytes: float) -> float:
    """Return the bytes that digital work reads and writes in a memory beside `size` x `size` multipliers.

    A value that is read serves `size` multipliers. Element-wise operations read and write one byte each.
    """
    if work.kind == "product":
        per_round = max(1.0, work.vectors / max(1.0, work.rounds))
        weights = work.weights * weight_bytes * work.rounds * math.ceil(per_round / size)
        inputs = work.vectors * work.inputs * math.ceil(work.outputs / max(1, size))
        return weights + inputs + work.vectors * work.outputs
    return 2 * work.macs / size + 2 * (work.elementwise + work.special)


def conversion_share(workload: Workload, chip: Chip) -> float:
    """Return the multiplications that one ADC conversion serves, the mean over the workload."""
    total = math.fsum(work.vectors * conversions(work, chip) for work in workload.matrices)
    return math.fsum(work.macs for work in workload.matrices) / total if total else math.inf
