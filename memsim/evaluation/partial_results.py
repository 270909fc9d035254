"""Results of one network on some of the batches: plain values that can be written, sent, and merged.

Everything in a part adds up exactly (outcomes by item, whole numbers by layer), so an evaluation does not depend on how
it was divided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import NonNegativeInt, TypeAdapter

from memsim.config.changes import Changes
from memsim.crossbar.read import ClipCounts, add_clips
from memsim.errors import InputError
from memsim.evaluation.task import Network, Task
from memsim.hardware import HardwareSpec, load_hardware
from memsim.nn.chip import ChipMapping


@dataclass(frozen=True)
class ChipFacts:
    """One simulated chip: its seed, its hardware, and how much of the network lies on how many arrays."""

    seed: int
    spec: HardwareSpec
    layers: int
    arrays: int
    bits: tuple[int, ...]
    cells_per_weight: float | None = None
    """The mean number of cells that hold a weight; None in results of memsim 0.1."""

    @classmethod
    def of(cls, mapping: ChipMapping) -> ChipFacts:
        """Take the facts of the chip that `mapping` describes."""
        tilings = [layer.tiling for layer in mapping.mapped]
        bits = tuple(sorted({tiling.bits for tiling in tilings}))
        arrays, weights = sum(tiling.tiles for tiling in tilings), sum(tiling.weights for tiling in tilings)
        cells = sum(tiling.weights * 2 * tiling.slices * tiling.copies for tiling in tilings)
        return cls(mapping.seed, mapping.spec, len(tilings), arrays, bits, cells / weights if weights else None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, that `from_dict` reads back."""
        return {
            "seed": self.seed,
            "layers": self.layers,
            "arrays": self.arrays,
            "bits": list(self.bits),
            "cells_per_weight": self.cells_per_weight,
            "spec": self.spec.to_dict(),
            "changes": self.spec.changes.to_dict(),
        }

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> ChipFacts:
        """Make the facts that `to_dict` wrote. Raises InputError or ValueError where they are damaged."""
        facts = dict(facts)
        spec, changes = load_hardware(facts["spec"]), facts.pop("changes", None)
        if changes is not None:  # older files lack it
            spec = spec.with_changes(Changes.from_dict(changes))
        return _CHIP.validate_python({**facts, "spec": spec})


_CHIP = TypeAdapter(ChipFacts)


@dataclass(frozen=True)
class PartialResult:
    """The outcomes that a network gave for some items, by the items' numbers."""

    outcomes: Mapping[int, Any]
    """Values of the task's own type, whose errors are counted already."""
    compute_seconds: float
    clips: Mapping[str, ClipCounts] = field(default_factory=dict)
    """Clipped conversions of each layer on arrays."""
    chip: ChipFacts | None = None
    """The chip; None for a network that is on none."""

    @classmethod
    def joined(cls, parts: Iterable[PartialResult]) -> PartialResult:
        """Join parts of the same network. Raises InputError where they are of different chips."""
        parts = list(parts)
        first = parts[0]
        if any(part.clips.keys() != first.clips.keys() or part.chip != first.chip for part in parts):
            raise InputError("the results of one network are of different chips or layers; evaluate it anew (--force)")
        outcomes: dict[int, Any] = {}
        for part in parts:
            outcomes |= part.outcomes
        clips = {layer: add_clips(part.clips[layer] for part in parts) for layer in first.clips}
        return cls(outcomes, math.fsum(part.compute_seconds for part in parts), clips, first.chip)

    def to_dict(self, task: Task) -> dict[str, Any]:
        """Plain values for JSON, that `from_dict` reads back."""
        return {
            "compute_seconds": self.compute_seconds,
            "chip": None if self.chip is None else self.chip.to_dict(),
            "clips": {layer: asdict(clips) for layer, clips in self.clips.items()},
            **task.outcomes_to_dict(self.outcomes),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], task: Task) -> PartialResult:
        """Make the part that `to_dict` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        part = _WRITTEN.validate_python(values)
        chip = None if part.chip is None else ChipFacts.from_dict(part.chip)
        clips = {layer: ClipCounts(**counts) for layer, counts in part.clips.items()}
        return cls(task.outcomes_from_dict(values), part.compute_seconds, clips, chip)


@dataclass(frozen=True)
class _WrittenResult:
    """The entries of `PartialResult.to_dict` that every task has."""

    compute_seconds: float
    chip: dict[str, Any] | None
    clips: dict[str, dict[Literal["dac_clipped", "dac_total", "adc_clipped", "adc_total"], NonNegativeInt]]


_WRITTEN = TypeAdapter(_WrittenResult)

OnBatch = Callable[[Mapping[int, Any]], bool]
"""A function that takes the outcomes of a batch and returns whether to stop after it."""


def run_network(
    task: Task, network: Network, groups: Iterable[Sequence[int]], device: str, on_batch: OnBatch
) -> PartialResult:
    """Run `network` on the batches `groups` of `task`, or on those before `on_batch` says to stop."""
    network.model.to(device)
    mapping = getattr(network.model, "mapping", None)
    mapping = mapping if isinstance(mapping, ChipMapping) else None
    if mapping is not None:
        mapping.count_clips()
    outcomes: dict[int, Any] = {}
    seconds = 0.0
    for group in groups:
        found, taken = task.run_batch(network, group, device)
        outcomes |= found
        seconds += taken
        if on_batch(found):
            break
    if mapping is None:
        return PartialResult(outcomes, seconds)
    part = PartialResult(outcomes, seconds, mapping.clips(), ChipFacts.of(mapping))
    mapping.release()
    return part
