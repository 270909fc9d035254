"""A checkpoint made ready for evaluation: its quantised digital network, and the chips that are made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from memsim.asr.recogniser import Recogniser, load_recogniser
from memsim.crossbar.ranges import needs_calibration
from memsim.crossbar.statistics import InputStatistics
from memsim.device import load_device
from memsim.errors import InputError
from memsim.mapping import digital_twin
from memsim.networks.mapped_file import load_chip
from memsim.networks.programming import is_full_precision, stored_statistics
from memsim.nn.mapping import ChipMapping, mapping_of, remap
from memsim.spec import HardwareSpec
from memsim.storage.checkpoint import Checkpoint
from memsim.units import counted


@dataclass(frozen=True)
class EvaluationTarget:
    """A checkpoint ready to be evaluated: its quantised digital self, and how chips are made of it."""

    checkpoint: Checkpoint
    recogniser: Recogniser
    spec: HardwareSpec
    seed: int
    statistics: Mapping[str, InputStatistics]
    full_precision: Recogniser | None
    digital: nn.Module
    programmed: nn.Module | None  # the chip of a mapped file, where it is to run as it is

    def chip(self, trial: int) -> nn.Module:
        """The chip of seed `seed` + `trial`."""
        if trial == 0 and self.programmed is not None:
            return self.programmed
        return remap(self.digital, self.spec, seed=self.seed + trial, trial=trial, statistics=self.statistics)


def prepare(
    checkpoint: Checkpoint,
    *,
    spec: HardwareSpec | None = None,
    seed: int | None = None,
    reference: Checkpoint | None = None,
) -> EvaluationTarget:
    """Load `checkpoint` for evaluation on chips with the seeds `seed` (default 0), `seed` + 1, ...

    An unmapped checkpoint needs a `spec`, on which it is mapped. A mapped one runs as it is where `spec` and `seed` are
    None, and later chips program its levels again; otherwise its levels are mapped under `spec` (default: its own).
    Raises InputError when the checkpoint cannot be run or lacks the statistics that the spec's converters need.
    """
    programmed: nn.Module | None = None
    full_precision: Recogniser | None = None
    if spec is not None and spec.cell != "ideal":
        load_device(spec.cell)  # a broken device file is said before anything runs
    statistics: Mapping[str, InputStatistics]
    if checkpoint.kind == "mapped":
        recogniser, statistics = load_chip(checkpoint)
        mapping = mapping_of(recogniser.model)
        if spec is None and seed is None:
            programmed = recogniser.model
        seed = mapping.seed if seed is None else seed
        spec = spec or mapping.spec
        digital = remap(recogniser.model, spec.digital_twin(), seed=seed, statistics=statistics)
    else:
        if spec is None:
            raise ValueError("an unmapped checkpoint needs a hardware spec")
        recogniser = load_recogniser(checkpoint)
        if has_full_precision(checkpoint):
            full_precision = recogniser
        seed = seed or 0
        digital, spec, statistics = digital_twin(recogniser.model, spec, stored_statistics(checkpoint), seed)
    _require_statistics(checkpoint, spec, mapping_of(digital), statistics)
    if reference is not None:
        full_precision = load_recogniser(reference)
    return EvaluationTarget(checkpoint, recogniser, spec, seed, statistics, full_precision, digital, programmed)


def has_full_precision(checkpoint: Checkpoint, reference: Checkpoint | None = None) -> bool:
    """Whether there are full-precision weights to compare with: in `checkpoint` itself, or those of a reference."""
    return reference is not None or (checkpoint.kind != "mapped" and is_full_precision(checkpoint))


def _require_statistics(
    checkpoint: Checkpoint, spec: HardwareSpec, mapping: ChipMapping, statistics: Mapping[str, InputStatistics]
) -> None:
    """Converters and cells take their ranges from input statistics; exact hardware needs none."""
    missing = [
        layer.name
        for layer in mapping.mapped
        if layer.name not in statistics and needs_calibration(spec.for_layer(layer.name))
    ]
    if missing:
        more = f" and {counted(len(missing) - 1, 'more layer')}" if len(missing) > 1 else ""
        raise InputError(
            f"{checkpoint.path}: holds no input statistics for {missing[0]}{more}, so converter ranges are open; "
            f"{measuring(checkpoint)}"
        )


def measuring(checkpoint: Checkpoint) -> str:
    """How a file comes by input statistics, for the message that `checkpoint` has none."""
    if checkpoint.kind == "mapped":
        return "map the unmapped checkpoint again with `memsim map --calibrate DATA`"
    return "map it with `memsim map --calibrate DATA` and evaluate the file that this writes"
