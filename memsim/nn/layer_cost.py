"""The energy, time and area of layers on arrays, and of a network of them.

The price of each circuit is the hardware spec's (`cost`); how often each is used is in `memsim.crossbar.cost`. The
energy of the cells is that of their simulated currents.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from rich.console import RenderableType

from memsim.crossbar.cost import ArrayCost, programming_joules
from memsim.crossbar.matrix import MappedMatrix
from memsim.crossbar.statistics import InputStatistics
from memsim.nn.plan import MappedLayer
from memsim.report.text import as_html, as_text
from memsim.units import counted, si


class WholeChip(Protocol):
    """An estimate of the whole chip around the arrays: see `memsim.chip.chip_cost.ChipCost`."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""


ASSUMPTIONS = (
    "all arrays of a layer work at once; phases, input vectors and layers follow each other without overlap",
    "columns of pairs and copies are subtracted and added up as currents, before the ADC that they share",
    "not counted: digital circuits (sums over tiles and planes, scales, transforms of inputs, biases, activations, "
    "attention, layers that stay digital), memories, data movement, control, charging of lines, leakage",
)
"""The assumptions that the numbers rest on."""


@dataclass(frozen=True)
class Energy:
    """The energy in joules of converters (DACs with the drivers of their rows) and of cells.

    The energy of cells is None where it is unknown: ideal cells have no currents, and the inputs of a layer may not be
    known.
    """

    dac: float
    adc: float
    cells: float | None

    @property
    def total(self) -> float:
        """The sum of the known parts."""
        return self.dac + self.adc + (self.cells or 0.0)

    def to_dict(self) -> dict[str, float | None]:
        """Return plain values for JSON."""
        return {"dac": self.dac, "adc": self.adc, "cells": self.cells, "total": self.total}


@dataclass(frozen=True)
class LayerCost:
    """The cost of one matrix, which reads `vectors` input vectors in the unit that `Cost.per` names.

    `cell_joules` is for a mean vector; None where it is unknown. `programming_joules` and `programming_seconds` are for
    the whole matrix, once; None for a matrix that was not programmed here. `transform_operations` are the digital
    multiplications and additions for one vector of an `InputTransform`, whose energy is not counted. `trim_vectors` are
    the input vectors that were read once to fit the trims of the matrix, such as those of drift compensation.
    """

    name: str
    arrays: ArrayCost
    vectors: float
    cell_joules: float | None
    programming_joules: float | None
    programming_seconds: float | None
    transform_operations: int = 0
    trim_vectors: int = 0

    @classmethod
    def of(cls, matrix: MappedMatrix, vectors: float, watts: float | None) -> LayerCost:
        """Return the cost of `matrix`.

        `watts` is the power of all cells for a mean vector, summed over its phases; None where it is unknown.
        """
        arrays, report = ArrayCost.of(matrix.tiling, matrix.spec), matrix.programming
        return cls(
            matrix.name,
            arrays,
            vectors,
            arrays.cell_joules(watts, matrix.spec),
            None if report is None else programming_joules(report, matrix.spec),
            None if report is None else report.seconds,
            0 if matrix.input_transform is None else matrix.input_transform.operations,
            matrix.trim_vectors,
        )

    @classmethod
    def planned(cls, layer: MappedLayer, vectors: float) -> LayerCost:
        """Return the cost of a matrix that is not programmed: without the energy of its cells and of programming."""
        return cls(layer.name, ArrayCost.of(layer.tiling, layer.spec), vectors, None, None, None)

    @property
    def energy(self) -> Energy:
        """The energy of reading."""
        cells = None if self.cell_joules is None else self.vectors * self.cell_joules
        return Energy(self.vectors * self.arrays.dac_joules, self.vectors * self.arrays.adc_joules, cells)

    @property
    def trim_joules(self) -> float:
        """The energy of the reads, once, to which the trims were fitted; without that of cells where it is unknown."""
        arrays = self.arrays
        return self.trim_vectors * (arrays.dac_joules + arrays.adc_joules + (self.cell_joules or 0.0))

    @property
    def seconds(self) -> float:
        """The time of reading."""
        return self.vectors * self.arrays.seconds

    @property
    def operations(self) -> float:
        """The operations of reading: a multiplication and an addition for each weight."""
        return 2 * self.vectors * self.arrays.macs

    @property
    def tops_per_watt(self) -> float | None:
        """The efficiency of reading, in 10^12 operations a joule; None where it is unknown."""
        return _tops_per_watt(self.operations, self.energy)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        arrays = self.arrays
        return {
            "name": self.name,
            "arrays": arrays.arrays,
            "dacs": arrays.dacs,
            "adcs": arrays.adcs,
            "square_millimetres": arrays.square_millimetres["total"],
            "vectors": self.vectors,
            "dac_conversions": self.vectors * arrays.dac_conversions,
            "adc_conversions": self.vectors * arrays.adc_conversions,
            "joules": self.energy.to_dict(),
            "seconds": self.seconds,
            "tops_per_watt": self.tops_per_watt,
            "programming_joules": self.programming_joules,
            "input_transform_operations": self.vectors * self.transform_operations,
            "trim_joules": self.trim_joules,
        }


@dataclass(frozen=True, repr=False)
class Cost:
    """The cost of all layers on arrays, for a unit: `per` a second of audio, an example, or a vector of each layer.

    `print` shows it as `--cost` does, and so does a notebook.

    It is for one input vector of each layer where memsim cannot run the network. `audio_seconds` is the length of the
    speech, and `examples` the number of examples, that were measured; None where the inputs are those in the
    checkpoint. `batch` has the types and shapes of the batch of examples whose work was counted. `chip` is the estimate
    of the whole chip; None where the network cannot be run.
    """

    layers: tuple[LayerCost, ...]
    per: Literal["audio_second", "example", "vector"]
    audio_seconds_per_programming: float
    audio_seconds: float | None = None
    examples: int | None = None
    batch: str | None = None
    chip: WholeChip | None = None

    def __repr__(self) -> str:
        return f"Cost({counted(len(self.layers), 'layer')}, {si(self.energy.total, 'J')} of reading per {self.per})"

    def __str__(self) -> str:
        return as_text(*self._parts())

    def _repr_html_(self) -> str:
        return as_html(*self._parts())

    def _parts(self) -> list[RenderableType]:
        from memsim.report.tables import cost_parts  # imported here, as it imports this module

        return cost_parts(self)

    @property
    def energy(self) -> Energy:
        """The energy of reading."""
        energies = [layer.energy for layer in self.layers]
        cells = _known(energy.cells for energy in energies)
        return Energy(math.fsum(e.dac for e in energies), math.fsum(e.adc for e in energies), cells)

    @property
    def seconds(self) -> float:
        """The time of reading, of one layer after the other."""
        return math.fsum(layer.seconds for layer in self.layers)

    @property
    def programming_joules(self) -> float | None:
        """The energy of programming the whole chip once; None where it is unknown."""
        return _known(layer.programming_joules for layer in self.layers)

    @property
    def tops_per_watt(self) -> float | None:
        """The efficiency of reading, in 10^12 operations a joule; None where it is unknown.

        A multiplication and an addition are two operations.
        """
        return _tops_per_watt(math.fsum(layer.operations for layer in self.layers), self.energy)

    @property
    def joules(self) -> dict[str, float | None]:
        """The energy by circuit and the total, in joules.

        The energy of programming is the part that the spec spreads over a second of audio.
        """
        reading, programming = self.energy.to_dict(), self.programming_joules
        if programming is not None and self.per == "audio_second":
            programming /= self.audio_seconds_per_programming
        else:
            programming = None
        total = self.energy.total + (programming or 0.0)
        return reading | {"programming": programming, "total": total}

    @property
    def shares(self) -> dict[str, float | None]:
        """The fraction of each circuit in the total energy; None where it is unknown, or the total is 0."""
        joules = self.joules
        total = joules.pop("total") or 0.0
        return {circuit: None if own is None else _per(own, total) for circuit, own in joules.items()}

    @property
    def square_millimetres(self) -> dict[str, float]:
        """The area of cells, DACs and ADCs, and the total."""
        areas = [layer.arrays.square_millimetres for layer in self.layers]
        return {part: math.fsum(area[part] for area in areas) for part in ("cells", "dacs", "adcs", "total")}

    def sorted_layers(self) -> list[LayerCost]:
        """Return the layers, the one that takes most energy for reading first."""
        return sorted(self.layers, key=lambda layer: -layer.energy.total)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, the layer with the largest energy first."""
        joules, reading = self.programming_joules, self.energy.total
        programming = {
            "joules": joules,
            "spread_over_audio_seconds": self.audio_seconds_per_programming,
            "seconds": _known(layer.programming_seconds for layer in self.layers),
            "audio_seconds_of_as_much_reading": None
            if joules is None or self.per != "audio_second"
            else _per(joules, reading),
        }
        return {
            "per": self.per,
            "audio_seconds": self.audio_seconds,
            **({} if self.batch is None else {"examples": self.examples, "batch": self.batch}),
            "joules": self.joules,
            "shares": self.shares,
            "seconds": self.seconds,
            "tops_per_watt": self.tops_per_watt,
            "arrays": sum(layer.arrays.arrays for layer in self.layers),
            "cells": sum(layer.arrays.cells for layer in self.layers),
            "dacs": sum(layer.arrays.dacs for layer in self.layers),
            "adcs": sum(layer.arrays.adcs for layer in self.layers),
            "square_millimetres": self.square_millimetres,
            "programming": programming,
            "trims": {
                "vectors": sum(layer.trim_vectors for layer in self.layers),
                "joules": math.fsum(layer.trim_joules for layer in self.layers),
                "seconds": math.fsum(layer.trim_vectors * layer.arrays.seconds for layer in self.layers),
            },
            "assumptions": list(ASSUMPTIONS),
            "layers": [layer.to_dict() for layer in self.sorted_layers()],
            **({} if self.chip is None else {"chip": self.chip.to_dict()}),
        }


def _known(values: Iterable[float | None]) -> float | None:
    """Return the sum of `values`; None where one is unknown."""
    found = list(values)
    return None if None in found else math.fsum(value for value in found if value is not None)


def _per(amount: float, of: float) -> float | None:
    return amount / of if of else None


def _tops_per_watt(operations: float, energy: Energy) -> float | None:
    return None if energy.cells is None else _per(1e-12 * operations, energy.total)


def stored_cost(
    matrix: MappedMatrix, statistics: Mapping[str, InputStatistics], rates: Mapping[str, float] | None
) -> LayerCost:
    """Return the cost of one matrix for inputs like those in `statistics`.

    `rates` are the input vectors for a unit of `Cost`, by matrix; without them, the cost is for one vector.
    """
    watts, known = None, statistics.get(matrix.name)
    if matrix.states is not None and known is not None and matrix.is_calibrated:
        # rows of the sample that stand for as many inputs each
        alike = [(weight, known.sample[known.weights == weight]) for weight in known.weights.unique().tolist()]
        total = math.fsum(weight * matrix.cell_watts(rows.to(matrix.levels.device)) for weight, rows in alike)
        watts = total / float(known.weights.sum())
        matrix.release()
    return LayerCost.of(matrix, 1.0 if rates is None else rates.get(matrix.name, 0.0), watts)
