"""A checkpoint ready for evaluation: its quantised digital network, and the chips that are made from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from torch import nn

from memsim.asr.recogniser import Decoder, Recogniser, load_recogniser
from memsim.crossbar.ranges import needs_calibration
from memsim.crossbar.statistics import InputStatistics
from memsim.device import load_device
from memsim.errors import InputError
from memsim.evaluation.task import System
from memsim.hardware import HardwareSpec
from memsim.mapping import digital_twin
from memsim.networks.mapped_file import load_chip
from memsim.networks.programming import is_full_precision, stored_statistics
from memsim.nn.budget import require_samples
from memsim.nn.chip import ChipMapping, mapping_of, remap
from memsim.storage.checkpoint import Checkpoint
from memsim.units import counted


@dataclass(frozen=True)
class StoredNetworks:
    """The networks in checkpoint files, each built once, when it is first asked for."""

    checkpoint: Checkpoint
    reference_file: Checkpoint | None = None

    @cached_property
    def recogniser(self) -> Recogniser:
        """The recogniser of an unmapped file."""
        return load_recogniser(self.checkpoint)

    @cached_property
    def chip(self) -> tuple[Recogniser, Mapping[str, InputStatistics]]:
        """The recogniser of a mapped file on its arrays, and the statistics of its layers' inputs."""
        return load_chip(self.checkpoint)

    @cached_property
    def reference(self) -> Recogniser | None:
        """The network to compare with, where another file has it."""
        return None if self.reference_file is None else load_recogniser(self.reference_file)

    def on_cpu(self) -> StoredNetworks:
        """Move what was loaded back from where it has run: networks are made on the CPU."""
        for loaded in (self.__dict__.get("recogniser"), self.__dict__.get("reference")):
            if loaded is not None:
                loaded.model.to("cpu")
        return self


@dataclass(frozen=True)
class EvaluationTarget:
    """A checkpoint ready for evaluation: its quantised digital network, and the chips that are made from it."""

    checkpoint: Checkpoint
    recogniser: Recogniser
    spec: HardwareSpec
    seed: int
    statistics: Mapping[str, InputStatistics]
    full_precision: Recogniser | None
    digital: nn.Module
    programmed: nn.Module | None  # the chip of a mapped file, if it runs unchanged

    def chip(self, trial: int) -> nn.Module:
        """Program the chip of seed `seed` + `trial`."""
        if trial == 0 and self.programmed is not None:
            return self.programmed
        return remap(self.digital, self.spec, seed=self.seed + trial, trial=trial, statistics=self.statistics)

    def require_samples(self) -> None:
        """Raise InputError unless the inputs of all layers on arrays were measured."""
        names = (layer.name for layer in mapping_of(self.digital).mapped)
        require_samples(self.checkpoint.path, names, self.statistics, measuring(self.checkpoint))

    def network(self, system: System) -> Recogniser:
        """Return the recogniser of that role. Raises ValueError for full precision where there is none."""
        if system.role == "full_precision":
            if self.full_precision is None:
                raise ValueError("the study has no full-precision weights")
            return self.full_precision
        return self.running(self.chip(system.trial) if system.role == "chip" else self.digital)

    def running(self, model: nn.Module) -> Recogniser:
        """Return `model` as a recogniser, with this one's tokens and decoder."""
        return replace(self.recogniser, model=model)


def prepare(
    checkpoint: Checkpoint,
    *,
    spec: HardwareSpec | None = None,
    seed: int | None = None,
    reference: Checkpoint | None = None,
    stored: StoredNetworks | None = None,
) -> EvaluationTarget:
    """Load `checkpoint` for evaluation on chips with the seeds `seed` (default 0), `seed` + 1, ...

    An unmapped checkpoint needs a `spec`, on which it is mapped. A mapped one runs as it is where `spec` and `seed` are
    None, and later chips program its levels again; otherwise its levels are mapped under `spec` (default: its own).
    `stored` has the networks of the files where several targets share them.
    Raises InputError when the checkpoint cannot be run or lacks the statistics that the spec's converters need.
    """
    stored = stored or StoredNetworks(checkpoint, reference)
    programmed: nn.Module | None = None
    full_precision: Recogniser | None = None
    if spec is not None and spec.cell != "ideal":
        load_device(spec.cell)  # a broken device file is reported before anything runs
    statistics: Mapping[str, InputStatistics]
    if checkpoint.kind == "mapped":
        recogniser, statistics = stored.chip
        mapping = mapping_of(recogniser.model)
        if spec is None and seed is None:
            programmed = recogniser.model
        seed = mapping.seed if seed is None else seed
        spec = spec or mapping.spec
        digital = remap(recogniser.model, spec.digital_twin(), seed=seed, statistics=statistics)
    else:
        if spec is None:
            raise ValueError("an unmapped checkpoint needs a hardware spec")
        recogniser = stored.recogniser
        if has_full_precision(checkpoint):
            full_precision = recogniser
        seed = seed or 0
        digital, spec, statistics = digital_twin(recogniser.model, spec, stored_statistics(checkpoint), seed)
    _require_statistics(checkpoint, spec, mapping_of(digital), statistics)
    if reference is not None:
        full_precision = stored.reference
    return EvaluationTarget(checkpoint, recogniser, spec, seed, statistics, full_precision, digital, programmed)


def with_decoder(target: EvaluationTarget, search: Decoder) -> EvaluationTarget:
    """Return `target` with `search` as the decoder of all its networks, on chips or not.

    Raises InputError when its full-precision reference has other tokens.
    """
    full_precision = target.full_precision
    if full_precision is not None:
        if full_precision.tokens != target.recogniser.tokens:
            raise InputError("beam search: the full-precision reference has other tokens than the checkpoint")
        full_precision = replace(full_precision, decoder=search)
    return replace(target, recogniser=replace(target.recogniser, decoder=search), full_precision=full_precision)


def has_full_precision(checkpoint: Checkpoint, reference: Checkpoint | None = None) -> bool:
    """Whether there are full-precision weights to compare with, in `checkpoint` itself or in a reference."""
    return reference is not None or (checkpoint.kind != "mapped" and is_full_precision(checkpoint))


def _require_statistics(
    checkpoint: Checkpoint, spec: HardwareSpec, mapping: ChipMapping, statistics: Mapping[str, InputStatistics]
) -> None:
    """Raise InputError where converters or cells lack the input statistics that their ranges are taken from."""
    missing = [
        layer.name
        for layer in mapping.mapped
        if layer.name not in statistics and needs_calibration(spec.for_layer(layer.name))
    ]
    if missing:
        more = f" and {counted(len(missing) - 1, 'more layer')}" if len(missing) > 1 else ""
        raise InputError(
            f"{checkpoint.path}: holds no input statistics for {missing[0]}{more}, so converter ranges are not set; "
            f"{measuring(checkpoint)}"
        )


def measuring(checkpoint: Checkpoint) -> str:
    """Return the remedy for a `checkpoint` without input statistics, for a message."""
    if checkpoint.kind == "mapped":
        return "map the unmapped checkpoint again with `memsim map --calibrate DATA`"
    return "map it with `memsim map --calibrate DATA` and evaluate the file that this writes"
