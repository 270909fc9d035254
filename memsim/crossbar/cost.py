"""The cost of a matrix on arrays: circuits and area, and the conversions, energy and time of an input vector.

Every array (row tile, column tile, slice, polarity, copy) has a DAC and a driver at each row, unless `arrays_per_dac`
arrays share one. The columns of a pair and of its copies are subtracted and added up as currents. The results are held,
and `columns_per_adc` columns of an array take turns at one ADC. An input vector is read in the phases of its drive, one
after the other, and each phase takes the time of the DACs, of a read pulse and of the ADCs. All arrays of a matrix work
at the same time; phases, vectors and layers do not overlap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from memsim.crossbar.drive import driven_bits, phase_count
from memsim.crossbar.programming_report import ProgrammingReport
from memsim.crossbar.tiling import Tiling
from memsim.hardware import HardwareSpec


@dataclass(frozen=True)
class ArrayCost:
    """The circuits of a matrix and the cost of one input vector, without the energy of the cells."""

    arrays: int
    cells: int
    dacs: int
    adcs: int
    square_millimetres: Mapping[str, float]  # of cells, DACs and ADCs, and the total
    macs: int
    phases: int
    read_pulses: int  # number of cells that hold weights
    dac_conversions: int
    adc_conversions: int
    dac_joules: float
    adc_joules: float
    seconds: float

    @classmethod
    def of(cls, tiling: Tiling, spec: HardwareSpec) -> ArrayCost:
        """Count the circuits of a matrix of that `tiling` under its layer's resolved `spec`."""
        cost, tile = spec.cost, spec.tile
        phases = phase_count(spec.dac)
        same_input = tiling.tiles // (tiling.row_tiles * tiling.packs)
        row_drivers = tiling.row_tiles * tiling.packs * -(-same_input // cost.dac.arrays_per_dac)
        packs = tiling.all_packs()
        driven_rows = sum(inputs.stop - inputs.start for _, inputs, _ in packs)
        dacs = dac_conversions = adcs = adc_conversions = turns = 0
        dac_joules = dac_area = adc_joules = 0.0
        if spec.dac is not None:
            steps = 0 if spec.dac.bits is None else 1 << driven_bits(spec.dac)
            dacs = row_drivers * tile.rows
            dac_conversions = phases * driven_rows * -(-same_input // cost.dac.arrays_per_dac)
            dac_joules = dac_conversions * (steps * cost.dac.joules_per_step + cost.dac.driver_joules)
            dac_area = dacs * steps * cost.dac.square_micrometres_per_step
        if spec.adc is not None:
            bits = spec.adc.bits
            adcs = tiling.tiles // (2 * tiling.copies) * -(-tile.cols // cost.adc.columns_per_adc)
            adc_conversions = phases * tiling.conversions
            adc_joules = adc_conversions * 2.0**bits * cost.adc.joules_per_step
            turns = min(tiling.pack_outputs, tile.cols, cost.adc.columns_per_adc)
        areas = {
            "cells": 1e-6 * (tiling.cells * cost.cell.square_micrometres),
            "dacs": 1e-6 * dac_area,
            "adcs": 1e-6 * (adcs * cost.adc.square_micrometres),
        }
        converting = (cost.dac.seconds if spec.dac is not None else 0.0) + turns * cost.adc.seconds
        weights = sum((inputs.stop - inputs.start) * (own.stop - own.start) for _, inputs, own in packs)
        return cls(
            arrays=tiling.tiles,
            cells=tiling.cells,
            dacs=dacs,
            adcs=adcs,
            square_millimetres=areas | {"total": math.fsum(areas.values())},
            macs=tiling.weights,
            phases=phases,
            read_pulses=phases * weights * math.prod(tiling.shape[:3]),
            dac_conversions=dac_conversions,
            adc_conversions=adc_conversions,
            dac_joules=dac_joules,
            adc_joules=adc_joules,
            seconds=phases * (cost.cell.read_seconds + converting),
        )

    def cell_joules(self, watts: float | None, spec: HardwareSpec) -> float | None:
        """Return the energy of the cells for one input vector of power `watts`, summed over its phases.

        It is None where the power is unknown (None) and the spec has no price for a cell's pulse.
        """
        cell = spec.cost.cell
        if cell.read_joules == "simulated":
            return None if watts is None else watts * cell.read_seconds
        return self.read_pulses * cell.read_joules


def programming_joules(report: ProgrammingReport, spec: HardwareSpec) -> float | None:
    """Return the energy of programming a matrix: its pulses, and the conversions of its verify reads.

    It is None where the device's data say nothing of the energy of a pulse and the spec has no price for it. The
    currents of verify reads are left out: at about 0.3 V for 0.1 us, they take a thousandth of a pulse's energy.
    """
    write = spec.cost.cell.write_joules
    if write == "simulated" and report.pulses and not report.joules:
        return None
    pulses = report.joules if write == "simulated" else report.pulses * write
    verify = spec.programming.verify
    steps = 0.0 if verify is None or verify.adc is None else 2.0**verify.adc.bits
    return pulses + report.verify_reads * steps * spec.cost.adc.joules_per_step
