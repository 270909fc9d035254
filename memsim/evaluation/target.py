"""Networks on one hardware spec, ready to run, and how those of a checkpoint are made."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import nn

from memsim.asr.data import FeatureSource
from memsim.asr.recogniser import Decoder, Recogniser
from memsim.asr.running import Progress, calibration_data, corpus_for_calibration
from memsim.crossbar.ranges import needs_calibration
from memsim.crossbar.statistics import InputStatistics
from memsim.device import load_device
from memsim.errors import InputError
from memsim.evaluation.task import CheckpointFacts, System
from memsim.hardware import HardwareSpec
from memsim.networks.mapped_file import load_chip, stored_seed, stored_spec
from memsim.networks.opened_network import OpenedNetwork
from memsim.networks.programming import is_full_precision, stored_statistics
from memsim.nn.budget import require_samples
from memsim.nn.chip import mapping_of, remap, require_cells
from memsim.nn.mapping import allot_model, map_model
from memsim.nn.plan import chosen_bits
from memsim.post_training.recipe import NEAREST, MappingRecipe, measurements
from memsim.storage.checkpoint import Checkpoint
from memsim.units import counted


@dataclass(frozen=True)
class Target:
    """Networks on one hardware spec: the quantised digital one, and the chips that are made from it."""

    path: Path
    """The origin of the weights, for messages."""
    spec: HardwareSpec
    seed: int
    """The seed of the first chip."""
    statistics: Mapping[str, InputStatistics]
    """The statistics of the inputs of layers, from which converters take their ranges."""
    digital: nn.Module
    template: Any
    """A network as the task runs it, such as a recogniser; those of this target differ from it in their `model`."""
    full_precision: Any | None
    """The network in full precision, as the task runs it; None where it is not known."""
    remedy: str
    """How inputs of layers that were not measured can be, for a message."""
    programmed: nn.Module | None = None
    """The chip of a mapped file, where it is to run as it is."""
    fit_chip: Callable[..., nn.Module] | None = None
    """Maps the unmapped network on the chip of `seed` and `trial`, where the recipe fits each chip for itself."""

    def require_samples(self) -> None:
        """Raise InputError unless the inputs of all layers on arrays were measured, which an error budget needs."""
        names = (layer.name for layer in mapping_of(self.digital).mapped)
        require_samples(self.path, names, self.statistics, self.remedy)

    def require_chips(self, trials: int) -> None:
        """Raise InputError where levels correct the cells of a chip that is not among that many `trials`."""
        if self.fit_chip is None:
            require_cells(self.digital, self.spec, self.seed + trials - 1)

    def chip(self, trial: int) -> nn.Module:
        """Program the chip of seed `seed` + `trial`."""
        if trial == 0 and self.programmed is not None:
            return self.programmed
        if self.fit_chip is not None:
            with _without_doubts():
                return self.fit_chip(seed=self.seed + trial, trial=trial)
        return remap(self.digital, self.spec, seed=self.seed + trial, trial=trial, statistics=self.statistics)

    def network(self, system: System) -> Any:
        """Return the network of that role; chips are programmed when they are asked for.

        Raises ValueError for full precision where there is none.
        """
        if system.role == "full_precision":
            if self.full_precision is None:
                raise ValueError("the study has no full-precision weights")
            return self.full_precision
        return self.running(self.chip(system.trial) if system.role == "chip" else self.digital)

    def running(self, model: nn.Module) -> Any:
        """Return `model`, a network of this target or one made of it, as the task runs it."""
        return replace(self.template, model=model)


@dataclass(frozen=True)
class CheckpointNetworks:
    """The recogniser of a checkpoint on hardware. The network of a file is built once; every target is made of it."""

    checkpoint: Checkpoint
    reference: Checkpoint | None = None
    """Another checkpoint, which full precision is taken from."""
    decoder: Decoder | None = None
    """The beam search; None for greedy decoding."""
    measured: Mapping[str, InputStatistics] | None = None
    """The statistics of the inputs of layers, where they were measured; None takes those in the file."""
    recipe: MappingRecipe = NEAREST
    """The way in which weights become levels."""
    swept: tuple[MappingRecipe, ...] = ()
    """All recipes of a sweep over recipes, for which calibration measures, too."""

    def with_recipe(self, recipe: MappingRecipe) -> CheckpointNetworks:
        """See `Networks`."""
        networks = replace(self, recipe=recipe)
        networks.__dict__["_unmapped"] = self._unmapped  # built once
        return networks

    def calibrated(self, data: str, root: str | Path | None, utterances: int, progress: Progress) -> CheckpointNetworks:
        """Return the same networks with statistics measured on that many `utterances` of `data`.

        Raises InputError for a mapped file, whose ranges are set, and where the data cannot be read.
        """
        if self.checkpoint.kind == "mapped":
            raise InputError(
                f"--calibrate {data}: {self.checkpoint.path} is mapped, and its converter ranges are set; calibrate "
                "when it is mapped (memsim map --calibrate)"
            )
        recogniser = self._unmapped
        corpus = corpus_for_calibration(recogniser, data, None if root is None else Path(root))
        source = FeatureSource(recogniser.features)
        calibration = calibration_data(recogniser, corpus.utterances, source, progress, utterances)
        measured = calibration.statistics(**measurements([self.recipe, *self.swept]))
        networks = replace(self, measured=measured)
        networks.__dict__["_unmapped"] = recogniser  # built once
        return networks

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}

    @property
    def facts(self) -> CheckpointFacts:
        """See `Networks`."""
        return CheckpointFacts(self.checkpoint.path, self.checkpoint.kind, self.checkpoint.sha256)

    @property
    def reference_sha256(self) -> str | None:
        """See `Networks`."""
        return None if self.reference is None else self.reference.sha256

    @property
    def has_full_precision(self) -> bool:
        """See `Networks`."""
        return self.reference is not None or self._is_full_precision

    @property
    def stored_spec(self) -> HardwareSpec:
        """See `Networks`."""
        return stored_spec(self.checkpoint)[0]

    @property
    def stored_seed(self) -> int:
        """See `Networks`."""
        return stored_seed(self.checkpoint)

    @property
    def _is_full_precision(self) -> bool:
        return self.checkpoint.kind != "mapped" and is_full_precision(self.checkpoint)

    @cached_property
    def _unmapped(self) -> Recogniser:
        return OpenedNetwork(self.checkpoint).recogniser

    @cached_property
    def _mapped(self) -> tuple[Recogniser, Mapping[str, InputStatistics]]:
        return load_chip(self.checkpoint)

    @cached_property
    def _reference(self) -> Recogniser | None:
        return None if self.reference is None else OpenedNetwork(self.reference).recogniser

    def target(self, spec: HardwareSpec | None = None, seed: int | None = None) -> Target:
        """Load the checkpoint for evaluation on chips with the seeds `seed` (default 0), `seed` + 1, ...

        An unmapped checkpoint needs a `spec`, on which it is mapped. A mapped one runs as it is where `spec` and `seed`
        are None, and later chips program its levels again; otherwise its levels are mapped under `spec` (default: its
        own). Raises InputError when the checkpoint cannot be run or lacks the statistics that the spec's converters
        need.
        """
        for loaded in (self.__dict__.get("_unmapped"), self.__dict__.get("_reference")):
            if loaded is not None:
                loaded.model.to("cpu")  # from where it has run: networks are made on the CPU
        programmed: nn.Module | None = None
        full_precision: Recogniser | None = None
        fit_chip: Callable[..., nn.Module] | None = None
        statistics: Mapping[str, InputStatistics]
        if spec is not None and spec.cell != "ideal":
            load_device(spec.cell)  # a broken device file is reported before anything runs
        if self.checkpoint.kind == "mapped":
            recogniser, statistics = self._mapped
            mapping = mapping_of(recogniser.model)
            if spec is None and seed is None:
                programmed = recogniser.model
            seed = mapping.seed if seed is None else seed
            spec = spec or mapping.spec
            require_cells(recogniser.model, spec, seed)
            digital = remap(recogniser.model, spec.digital_twin(), seed=seed, statistics=statistics)
            remedy = "map the unmapped checkpoint again with `memsim map --calibrate DATA`"
        else:
            if spec is None:
                raise ValueError("an unmapped checkpoint needs a hardware spec")
            recogniser, seed = self._unmapped, seed or 0
            statistics = stored_statistics(self.checkpoint) if self.measured is None else self.measured
            if self._is_full_precision:
                full_precision = recogniser
            spec, recipe = allotted_hardware(recogniser.model, spec, statistics, seed, self.recipe)
            digital, spec, statistics = digital_twin(recogniser.model, spec, statistics, seed, recipe)
            remedy = "add --calibrate DATA, which measures them"
            fit_chip = chip_fitter(recogniser.model, spec, statistics, recipe)
        path = self.checkpoint.path
        networks = (digital, recogniser, full_precision, remedy, programmed, fit_chip)
        target = Target(path, spec, seed, statistics, *networks)
        _require_statistics(target)
        if self.reference is not None:
            target = replace(target, full_precision=self._reference)
        return target if self.decoder is None else with_decoder(target, self.decoder)


def allotted_hardware(
    model: nn.Module,
    spec: HardwareSpec,
    statistics: Mapping[str, InputStatistics],
    seed: int,
    recipe: MappingRecipe,
) -> tuple[HardwareSpec, MappingRecipe]:
    """Return `spec` with the bits, copies and digital layers that `recipe` allots, and the rest of the recipe.

    All chips have them; the errors by which they are chosen are those of the chip of `seed`.
    """
    if recipe.allot is None:
        return spec, recipe
    with _without_doubts():
        return allot_model(model, spec, recipe, statistics, seed), recipe.without_allotment


def digital_twin(
    model: nn.Module,
    spec: HardwareSpec,
    statistics: Mapping[str, InputStatistics],
    seed: int,
    recipe: MappingRecipe = NEAREST,
) -> tuple[nn.Module, HardwareSpec, dict[str, InputStatistics]]:
    """Return `model` as quantised digital layers, from which `memsim.nn.mapping.remap` programs chips.

    It holds the levels that every chip of `spec` is programmed with, as `recipe` chooses them; where it fits each
    chip for itself, those for cells without errors. The other values are
    `spec` with its weight bits chosen, and `statistics` with those of embeddings.
    """
    with _without_doubts():
        digital = map_model(model, spec.digital_twin(), calibration=statistics, mapping=recipe, seed=seed)
    plan = mapping_of(digital).plan
    return digital, chosen_bits(spec, plan), plan.completed(statistics)


def chip_fitter(
    model: nn.Module, spec: HardwareSpec, statistics: Mapping[str, InputStatistics], recipe: MappingRecipe
) -> Callable[..., nn.Module] | None:
    """Return what maps `model` on the chip of a `seed` and `trial`, where `recipe` fits each chip for itself."""
    if not recipe.needs_chip:
        return None
    return partial(map_model, model, spec, calibration=statistics, mapping=recipe)


@contextmanager
def _without_doubts() -> Iterator[None]:
    """Leave out the warnings of `map_model`: `plan_warnings` has them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def with_decoder(target: Target, search: Decoder) -> Target:
    """Return the `target` of a recogniser with `search` as the decoder of all its networks, on chips or not.

    Raises InputError when its full-precision reference has other tokens.
    """
    full_precision = target.full_precision
    if full_precision is not None:
        if full_precision.tokens != target.template.tokens:
            raise InputError("beam search: the full-precision reference has other tokens than the checkpoint")
        full_precision = replace(full_precision, decoder=search)
    return replace(target, template=replace(target.template, decoder=search), full_precision=full_precision)


def _require_statistics(target: Target) -> None:
    """Raise InputError where converters or cells lack the input statistics that their ranges are taken from."""
    missing = [
        layer.name
        for layer in mapping_of(target.digital).mapped
        if layer.name not in target.statistics and needs_calibration(target.spec.for_layer(layer.name))
    ]
    if missing:
        more = f" and {counted(len(missing) - 1, 'more layer')}" if len(missing) > 1 else ""
        raise InputError(
            f"{target.path}: holds no input statistics for {missing[0]}{more}, so converter ranges are open; "
            f"{target.remedy}"
        )
