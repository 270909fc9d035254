"""What a network on arrays takes: energy, time and area, layer by layer.

The price of each circuit is the hardware spec's (`cost`); how often each is used is in `memsim.crossbar.cost`. The
energy of the cells is that of their simulated currents.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from memsim import rng
from memsim.asr.audio import duration_seconds
from memsim.asr.corpora import Corpus
from memsim.asr.data import Batch, FeatureSource, evaluation_batches
from memsim.asr.features import FeatureConfig, LogMel
from memsim.asr.recogniser import Recogniser
from memsim.asr.running import Progress, transcribe
from memsim.asr.utterances import Utterance
from memsim.crossbar.cost import ArrayCost, programming_joules
from memsim.crossbar.matrix import MappedMatrix
from memsim.crossbar.statistics import InputStatistics
from memsim.evaluation.target import EvaluationTarget
from memsim.nn.collect import RowCounter, collecting
from memsim.nn.layer_adapters import mappable_layers, matrix_sources
from memsim.nn.mapping import mapping_of
from memsim.spec import HardwareSpec

COST_UTTERANCES = 24
"""A chip's cost is measured on about so many utterances, evenly taken."""

RATE_SECONDS = 10.0
"""Where there is no data, the inputs of layers are counted in an utterance of this length."""

ASSUMPTIONS = (
    "all arrays of a layer work at once; phases, input vectors and layers follow each other without overlap",
    "columns of pairs and copies are subtracted and added up as currents, before the ADC that they share",
    "not counted: digital circuits (sums over tiles and slices, scales, biases, activations, attention, layers that "
    "stay digital), memories, data movement, control, charging of lines, leakage",
)
"""What the numbers rest on."""


@dataclass(frozen=True)
class Energy:
    """Joules of converters (DACs with the drivers of their rows) and of cells.

    Those of cells are None where nobody knows: ideal ones have no currents, and layers may have no known inputs.
    """

    dac: float
    adc: float
    cells: float | None

    @property
    def total(self) -> float:
        """Of what is known."""
        return self.dac + self.adc + (self.cells or 0.0)

    def to_dict(self) -> dict[str, float | None]:
        """Plain values for JSON."""
        return {"dac": self.dac, "adc": self.adc, "cells": self.cells, "total": self.total}


@dataclass(frozen=True)
class LayerCost:
    """Of one matrix, which reads `vectors` input vectors in what `Cost.per` names.

    `cell_joules` is for a mean vector, None where nobody knows. `programming_joules` and `_seconds` are for
    the whole matrix, once; None for one that was not programmed here.
    """

    name: str
    arrays: ArrayCost
    vectors: float
    cell_joules: float | None
    programming_joules: float | None
    programming_seconds: float | None

    @classmethod
    def of(cls, matrix: MappedMatrix, vectors: float, watts: float | None) -> LayerCost:
        """`watts` is the power of all cells for a mean vector, summed over its phases; None where it is unknown."""
        arrays, report = ArrayCost.of(matrix.tiling, matrix.spec), matrix.programming
        return cls(
            matrix.name,
            arrays,
            vectors,
            arrays.cell_joules(watts, matrix.spec),
            None if report is None else programming_joules(report, matrix.spec),
            None if report is None else report.seconds,
        )

    @property
    def energy(self) -> Energy:
        """Of reading."""
        cells = None if self.cell_joules is None else self.vectors * self.cell_joules
        return Energy(self.vectors * self.arrays.dac_joules, self.vectors * self.arrays.adc_joules, cells)

    @property
    def seconds(self) -> float:
        return self.vectors * self.arrays.seconds

    @property
    def operations(self) -> float:
        """A multiplication and an addition for each weight."""
        return 2 * self.vectors * self.arrays.macs

    @property
    def tops_per_watt(self) -> float | None:
        """10^12 operations a joule of reading; None where that is unknown."""
        return None if self.energy.cells is None else _per(1e-12 * self.operations, self.energy.total)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
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
        }


@dataclass(frozen=True)
class Cost:
    """Of all layers on arrays, `per` second of audio, or for one input vector of each layer where nobody knows how many
    of them a second of audio gives.

    `audio_seconds` is how much speech was measured; None where inputs are those that the checkpoint keeps.
    """

    layers: tuple[LayerCost, ...]
    per: Literal["audio_second", "vector"]
    audio_seconds_per_programming: float
    audio_seconds: float | None = None

    @classmethod
    def of_stored(cls, layers: Iterable[LayerCost], spec: HardwareSpec, rates: Mapping[str, float] | None) -> Cost:
        """Of what `stored_cost` gives."""
        per: Literal["audio_second", "vector"] = "vector" if rates is None else "audio_second"
        return cls(tuple(layers), per, spec.cost.audio_seconds_per_programming)

    @property
    def energy(self) -> Energy:
        """Of reading."""
        energies = [layer.energy for layer in self.layers]
        cells = _known(energy.cells for energy in energies)
        return Energy(math.fsum(e.dac for e in energies), math.fsum(e.adc for e in energies), cells)

    @property
    def seconds(self) -> float:
        """What the layers take one after the other."""
        return math.fsum(layer.seconds for layer in self.layers)

    @property
    def programming_joules(self) -> float | None:
        """Of the whole chip, once."""
        return _known(layer.programming_joules for layer in self.layers)

    @property
    def tops_per_watt(self) -> float | None:
        """10^12 operations (a multiplication and an addition are two) a joule of reading; None where it is unknown."""
        if self.energy.cells is None:
            return None
        return _per(1e-12 * math.fsum(layer.operations for layer in self.layers), self.energy.total)

    @property
    def joules(self) -> dict[str, float | None]:
        """By circuit, with what the spec spreads of programming over a second of audio, and the total of it all."""
        reading, programming = self.energy.to_dict(), self.programming_joules
        if programming is not None and self.per == "audio_second":
            programming /= self.audio_seconds_per_programming
        else:
            programming = None
        total = self.energy.total + (programming or 0.0)
        return reading | {"programming": programming, "total": total}

    @property
    def shares(self) -> dict[str, float | None]:
        """Of each circuit in the total; None where it is unknown, or there is nothing to share."""
        joules = self.joules
        total = joules.pop("total") or 0.0
        return {circuit: None if own is None else _per(own, total) for circuit, own in joules.items()}

    @property
    def square_millimetres(self) -> dict[str, float]:
        """Of cells, DACs and ADCs, and in total."""
        areas = [layer.arrays.square_millimetres for layer in self.layers]
        return {part: math.fsum(area[part] for area in areas) for part in ("cells", "dacs", "adcs", "total")}

    def sorted_layers(self) -> list[LayerCost]:
        """Those that take most for reading first."""
        return sorted(self.layers, key=lambda layer: -layer.energy.total)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; layers with the largest energy first."""
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
            "assumptions": list(ASSUMPTIONS),
            "layers": [layer.to_dict() for layer in self.sorted_layers()],
        }


def _known(values: Iterable[float | None]) -> float | None:
    """Their sum; None where one is unknown."""
    found = list(values)
    return None if None in found else math.fsum(value for value in found if value is not None)


def _per(amount: float, of: float) -> float | None:
    return amount / of if of else None


def stored_cost(
    matrix: MappedMatrix, statistics: Mapping[str, InputStatistics], rates: Mapping[str, float] | None
) -> LayerCost:
    """The cost of one matrix for inputs like those that `statistics` keep.

    `rates` are the input vectors in a second of audio; without them, the cost is for one vector.
    """
    watts, known = None, statistics.get(matrix.name)
    if matrix.states is not None and known is not None and matrix.is_calibrated:
        # rows of the sample that stand for as many inputs each
        alike = [(weight, known.sample[known.weights == weight]) for weight in known.weights.unique().tolist()]
        total = math.fsum(weight * matrix.cell_watts(rows.to(matrix.levels.device)) for weight, rows in alike)
        watts = total / float(known.weights.sum())
        matrix.release()
    return LayerCost.of(matrix, 1.0 if rates is None else rates.get(matrix.name, 0.0), watts)


def vectors_per_audio_second(recogniser: Recogniser) -> dict[str, float]:
    """The input vectors of every matrix in a second of audio, counted in an utterance of RATE_SECONDS of noise."""
    config = recogniser.features
    noise = torch.randn(round(RATE_SECONDS * config.sample_rate_hz), generator=rng.generator("cost"))
    features = (LogMel(config)(noise) if isinstance(config, FeatureConfig) else noise)[None]
    utterance = Batch("noise", (0,), features, torch.tensor([features.shape[1]]))
    layers = mappable_layers(recogniser.model)
    counters = {name: RowCounter() for name in matrix_sources(layers)}
    with collecting(layers, counters):
        transcribe(recogniser, [utterance])
    return {name: counter.rows / RATE_SECONDS for name, counter in counters.items()}


def chip_cost(
    target: EvaluationTarget, corpus: Corpus, *, device: str = "cpu", progress: Progress = lambda name, done: None
) -> Cost:
    """The cost of the target's first chip, which hears some utterances of `corpus`, one at a time."""
    every = max(1, len(corpus.utterances) // COST_UTTERANCES)
    utterances = corpus.utterances[::every]
    chip = target.chip(0).to(device)
    mapping = mapping_of(chip)
    mapping.reads.count_work = True
    try:
        _hear(replace(target.recogniser, model=chip), utterances, progress)
    finally:
        mapping.reads.count_work = False
        mapping.release()
    seconds = math.fsum(duration_seconds(utterance) for utterance in utterances)
    layers = []
    for matrix in mapping.layers.values():
        work = matrix.work
        watts = float(work.cell_watts) / work.vectors if work.vectors and matrix.states is not None else None
        layers.append(LayerCost.of(matrix, work.vectors / seconds, watts))
    return Cost(tuple(layers), "audio_second", mapping.spec.cost.audio_seconds_per_programming, seconds)


def _hear(recogniser: Recogniser, utterances: Sequence[Utterance], progress: Progress) -> None:
    """Run the network on utterances one at a time: in batches, some would be padded."""
    batches = evaluation_batches(utterances, FeatureSource(recogniser.features), batch_seconds=0.0)
    for done, batch in enumerate(batches, start=1):
        transcribe(recogniser, [batch])
        progress("cost", done / len(utterances))
