"""What one network made of some of a corpus's batches: plain values that can be written, sent, and put together.

Everything in a part adds up exactly (texts by utterance, whole numbers by layer), so that an evaluation does not depend
on how it was divided.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import NonNegativeInt, TypeAdapter

from memsim.config.changes import Changes
from memsim.crossbar.read import ClipCounts, add_clips
from memsim.errors import InputError
from memsim.nn.mapping import ChipMapping
from memsim.spec import HardwareSpec, load_hardware


@dataclass(frozen=True)
class ChipFacts:
    """One simulated chip: its seed, its hardware, and how much of the network lies on how many arrays."""

    seed: int
    spec: HardwareSpec
    layers: int
    arrays: int
    bits: tuple[int, ...]

    @classmethod
    def of(cls, mapping: ChipMapping) -> ChipFacts:
        tilings = [layer.tiling for layer in mapping.mapped]
        bits = tuple(sorted({tiling.bits for tiling in tilings}))
        return cls(mapping.seed, mapping.spec, len(tilings), sum(tiling.tiles for tiling in tilings), bits)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, that `from_dict` reads back."""
        return {
            "seed": self.seed,
            "layers": self.layers,
            "arrays": self.arrays,
            "bits": list(self.bits),
            "spec": self.spec.to_dict(),
            "changes": self.spec.changes.to_dict(),
        }

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> ChipFacts:
        facts = dict(facts)
        spec, changes = load_hardware(facts["spec"]), facts.pop("changes", None)
        if changes is not None:  # older files lack it
            spec = spec.with_changes(Changes.from_dict(changes))
        return _CHIP.validate_python({**facts, "spec": spec})


_CHIP = TypeAdapter(ChipFacts)


@dataclass(frozen=True)
class PartialResult:
    """What a network made of some utterances: a transcript by each one's number in the corpus."""

    texts: Mapping[int, str]
    compute_seconds: float
    clips: Mapping[str, ClipCounts] = field(default_factory=dict)
    """By layer on arrays."""
    chip: ChipFacts | None = None
    """None of a network that is on no chip."""
    losses: Mapping[int, float] = field(default_factory=dict)
    """The recogniser's own, a token, of each utterance; empty where they were not computed."""

    @classmethod
    def joined(cls, parts: Iterable[PartialResult]) -> PartialResult:
        """Several parts of the same network as one. Raises InputError where they cannot be."""
        parts = list(parts)
        first = parts[0]
        if any(part.clips.keys() != first.clips.keys() or part.chip != first.chip for part in parts):
            raise InputError("the results of one network are of different chips or layers; evaluate it anew (--force)")
        texts: dict[int, str] = {}
        losses: dict[int, float] = {}
        for part in parts:
            texts |= part.texts
            losses |= part.losses
        clips = {layer: add_clips(part.clips[layer] for part in parts) for layer in first.clips}
        return cls(texts, math.fsum(part.compute_seconds for part in parts), clips, first.chip, losses)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, that `from_dict` reads back."""
        return {
            "compute_seconds": self.compute_seconds,
            "chip": None if self.chip is None else self.chip.to_dict(),
            "clips": {layer: asdict(clips) for layer, clips in self.clips.items()},
            "utterances": list(self.texts),
            "texts": list(self.texts.values()),
            **({"losses": [self.losses[i] for i in self.texts]} if self.losses else {}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PartialResult:
        """Raises KeyError, TypeError or ValueError for anything that `to_dict` cannot have written."""
        part = _WRITTEN.validate_python(values)
        chip = None if part.chip is None else ChipFacts.from_dict(part.chip)
        clips = {layer: ClipCounts(**counts) for layer, counts in part.clips.items()}
        texts = dict(zip(part.utterances, part.texts, strict=True))
        losses = {} if part.losses is None else dict(zip(part.utterances, part.losses, strict=True))
        return cls(texts, part.compute_seconds, clips, chip, losses)


@dataclass(frozen=True)
class _WrittenResult:
    """What `PartialResult.to_dict` gives."""

    compute_seconds: float
    chip: dict[str, Any] | None
    clips: dict[str, dict[Literal["dac_clipped", "dac_total", "adc_clipped", "adc_total"], NonNegativeInt]]
    utterances: list[int]
    texts: list[str]
    losses: list[float] | None = None


_WRITTEN = TypeAdapter(_WrittenResult)
