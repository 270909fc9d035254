"""A checkpoint onto arrays, in one call, and the result of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text
from torch import Tensor

from memsim.arguments import require_types
from memsim.asr.data import FeatureSource
from memsim.asr.running import STATISTICS_UTTERANCES, calibration_data, corpus_for_calibration
from memsim.chip.architecture import Chip
from memsim.crossbar.matrix import MappedMatrix
from memsim.crossbar.programming_report import total
from memsim.crossbar.statistics import InputStatistics
from memsim.errors import InputError
from memsim.hardware import HardwareSpec
from memsim.hardware.facts import hardware_dict, unfitted, unfitted_note
from memsim.hardware.options import Hardware, choose_hardware
from memsim.listener import Listener
from memsim.networks.open_checkpoint import open_checkpoint
from memsim.networks.opened_network import OpenedNetwork
from memsim.networks.plan_warnings import plan_warnings, rounding_warnings
from memsim.networks.programming import (
    MappedTensors,
    allot_checkpoint,
    is_full_precision,
    plan_checkpoint,
    program_checkpoint,
    stored_statistics,
)
from memsim.networks.whole_chip import chip_of, whole_chip
from memsim.nn.budget import Budget, LayerBudget, layer_budget, require_samples
from memsim.nn.calibration import CalibrationData, silent_inputs
from memsim.nn.deviation import deviating
from memsim.nn.layer_cost import Cost, LayerCost, stored_cost
from memsim.nn.mapping_table import mapping_parts, summary_lines
from memsim.nn.plan import MappedLayer, Plan, Selection, chosen_bits
from memsim.nn.sample_run import SampleRun
from memsim.post_training.recipe import MappingRecipe, default_mapping, load_mapping, measurements
from memsim.report.tables import budget_parts, cost_parts
from memsim.report.text import as_html, as_text
from memsim.storage.checkpoint import Checkpoint, shown_name, writing_checkpoint
from memsim.storage.outputs import (
    held_output,
    require_new,
    require_outputs,
    require_page,
    require_safetensors,
    write_text,
)
from memsim.units import counted


@dataclass(frozen=True, repr=False)
class MapResult:
    """The result of `map_checkpoint`. `print` shows it as `memsim map` does, and so does a notebook.

    >>> result = memsim.map_checkpoint("demo", "best", dry_run=True)
    >>> result
    MapResult(demo.safetensors on best: 60 layers on 7,471,104 cells in 456 arrays, dry run)
    >>> result.to_dict()["weights"]["fraction_on_arrays"] > 0.9
    True
    """

    checkpoint: Checkpoint
    """The file that was mapped."""
    spec: HardwareSpec
    """The hardware, with its weight bits chosen."""
    plan: Plan
    """The layers on arrays, and what stays digital and why."""
    seed: int
    """The seed of the chip."""
    mapped: MappedTensors | None = None
    """The contents of the mapped file and of the programming; None after a dry run.

    Tensors that were written to `out` are in that file alone.
    """
    out: Path | None = None
    """The file that was written, or None."""
    budget: Budget | None = None
    """The error that each non-ideality adds to the products; None where it was not asked for."""
    cost: Cost | None = None
    """Energy, time and area; None where they were not asked for."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, as `memsim map --json` writes them."""
        plan, mapped = self.plan, self.mapped
        result = {
            "checkpoint": {
                "path": str(self.checkpoint.path),
                "kind": self.checkpoint.kind,
                "sha256": self.checkpoint.sha256,
            },
            "hardware": hardware_dict(self.spec),
            "out": None if self.out is None else str(self.out),
            "weights": {
                "on_arrays": plan.weights_on_arrays,
                "total": plan.weights,
                "fraction_on_arrays": plan.fraction_on_arrays,
            },
            "cells": plan.cells,
            "conversions": plan.conversions,
            "programming": [report.to_dict() for report in total(mapped.programming.values() if mapped else ())],
            "layers": [_layer_dict(layer, mapped) for layer in plan.mapped],
            "remarks": list(plan.remarks),
            "digital": [
                {"name": d.name, "shape": list(d.shape), "reason": d.reason, "weights": d.weights} for d in plan.digital
            ],
            "seed": self.seed,
        }
        result |= {"mapping": mapped.report.to_dict() | {"seconds": mapped.report.seconds}} if mapped else {}
        result |= {"budget": self.budget.to_dict()} if self.budget else {}
        return result | ({"cost": self.cost.to_dict()} if self.cost else {})

    def write_report(self, path: str | Path, command: str | None = None) -> None:
        """Write a self-contained page (.html) with tables and figures, as `memsim map --report` does.

        It has the error budget and the cost where the result has them. `command` is what repeats the mapping.
        Raises InputError for a dry run, which programs nothing, and where no page can be written to `path`.
        """
        from memsim.report.mapping_page import (
            mapping_page,  # imported here, as it imports this module
        )

        path = Path(path)
        require_page(path, force=True)
        if self.mapped is None:
            raise InputError("--report --dry-run: the report needs programmed arrays; leave out one of the two")
        write_text(path, mapping_page(self.to_dict(), command))

    def __repr__(self) -> str:
        plan, out = self.plan, "dry run" if self.mapped is None else self.out or "not written"
        return (
            f"MapResult({self.title}: {counted(len(plan.mapped), 'layer')} on {counted(plan.cells, 'cell')} in "
            f"{counted(plan.arrays, 'array')}, {out})"
        )

    def __str__(self) -> str:
        return as_text(*self.parts())

    def _repr_html_(self) -> str:
        return as_html(*self.parts())

    @property
    def title(self) -> str:
        """The name of the file and of the hardware."""
        return f"{shown_name(self.checkpoint.path)} on {self.spec.title}"

    def parts(self, *, verbose: bool = False) -> list[RenderableType]:
        """Return the tables and lines that show the result, one below the other; with `verbose`, of every layer."""
        mapped = self.mapped
        parts: list[RenderableType] = [Text(self.title, style="bold", no_wrap=True)]
        if mapped is None:
            parts += mapping_parts(self.plan, {}, {}, {}, verbose=verbose)
        else:
            parts += mapping_parts(
                self.plan, mapped.programming_errors, mapped.programming, mapped.deviations, verbose=verbose
            )
        if self.budget:
            parts += budget_parts(self.budget, verbose=verbose)
        if self.cost:
            parts += cost_parts(self.cost, verbose=verbose)
        parts += summary_lines(self.plan, verbose=verbose)
        if mapped is not None:
            parts.append(str(mapped.report))
        if keys := unfitted(self.spec):
            parts.append(unfitted_note(keys))
        parts += self.plan.remarks
        if self.out is not None:
            parts.append(f"wrote {self.out}")
        elif mapped is None:
            parts.append("dry run: nothing was programmed or written")
        return parts


def _layer_dict(layer: MappedLayer, mapped: MappedTensors | None) -> dict[str, Any]:
    deviation = mapped.deviations.get(layer.name) if mapped else None
    programming = mapped.programming.get(layer.name) if mapped else None
    return {
        "name": layer.name,
        "out_features": layer.tiling.out_features,
        "in_features": layer.tiling.groups * layer.tiling.block_inputs,
        "groups": layer.tiling.groups,
        "bits": layer.tiling.bits,
        "cell_bits": layer.tiling.cell_bits,
        "slices": layer.tiling.slices,
        "copies": layer.tiling.copies,
        "tiles": layer.tiling.tiles,
        "cells": layer.tiling.cells,
        "conversions": layer.conversions,
        "utilisation": layer.tiling.utilisation,
        "programming_error": mapped.programming_errors[layer.name] if mapped else None,
        "deviation": deviation.to_dict() if deviation else None,
        "programming": programming.to_dict() if programming else None,
    }


def map_checkpoint(
    checkpoint: str | Path | Checkpoint,
    hardware: Hardware = "physical",
    *,
    bits: int | None = None,
    cell: str | Path | None = None,
    set: Sequence[str] = (),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    calibrate: str | Path | None = None,
    calibration_utterances: int = STATISTICS_UTTERANCES,
    data_root: str | Path | None = None,
    mapping: MappingRecipe | str | Path | Mapping[str, Any] | None = None,
    architecture: str | None = None,
    architecture_config: str | Path | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    budget: bool | None = False,
    cost: bool | None = False,
    dry_run: bool = False,
    force: bool = False,
    listener: Listener | None = None,
) -> MapResult:
    """Program the layers of a checkpoint onto memristor arrays, as `memsim map` does.

    >>> result = memsim.map_checkpoint("demo", "ideal", bits=4, out="demo.mapped.safetensors")
    >>> len(result.plan.mapped), result.plan.cells
    (60, 11206656)
    >>> memsim.load_checkpoint("demo.mapped.safetensors").kind
    'mapped'

    Args:
        checkpoint: a safetensors file, the name of a bundled one (`demo`, `demo-float`), or an opened checkpoint.
        hardware: the spec, or what `load_hardware` takes: a name, a file or a mapping.
        bits: weight bits, in place of the spec's (where neither says, those a layer was trained for, else 8).
        cell: the device model of the cells, a name or a file, in place of the spec's.
        set: changes of single keys of the spec, such as `["adc.bits=6"]`.
        include: globs; only layers that match one of them are mapped.
        exclude: globs; layers that match one of them stay digital.
        calibrate: data to run the recogniser on to set converter ranges: `demo`, the name of a corpus (NAME:SPLIT, by
            default its dev split), or a manifest. Without it the input statistics in the checkpoint set them.
        calibration_utterances: the largest number of utterances of it that are run, evenly spaced.
        data_root: the root of that corpus; otherwise `$MEMSIM_DATA/NAME`.
        mapping: the recipe by which weights become levels: a name, a file or a mapping (see configs/mapping). None is
            `feedback` where `calibrate` gives data for weights in full precision, else `nearest`.
        architecture: the network of a file that does not say which it is; see `memsim map --help`.
        architecture_config: a YAML file with its features, characters and options.
        seed: the seed of the chip.
        out: the file to write, whole or not at all; None writes none.
        budget: find the error that each non-ideality adds to the products; None does so where the inputs of every layer
            are known.
        cost: estimate energy, time and area, of a `dry_run` without the energy of cells and of programming; None does
            so unless this is a `dry_run`.
        dry_run: plan, and program and write nothing.
        force: overwrite `out` where it exists.
        listener: follows progress and warnings; without one, warnings are Python's.

    Raises:
        InputError: in one line that says what is wrong, where, and the remedy.
    """
    require_types(map_checkpoint, locals())
    seed = int(seed)  # of numpy's numbers
    listener = listener or Listener()
    if budget and dry_run:
        raise InputError("--budget --dry-run: the budget needs programmed arrays; leave out one of the two")
    if data_root is not None and calibrate is None:
        raise InputError(f"--data-root {data_root}: only used by --calibrate; add --calibrate DATA")
    recipe = None if mapping is None else load_mapping(mapping)
    network = OpenedNetwork(open_checkpoint(checkpoint, architecture, architecture_config)[0])
    opened = network.checkpoint
    if out is not None:
        out = Path(out)
        require_safetensors(out)
        require_outputs([None if dry_run else out], force, inputs=opened.files)
    spec = choose_hardware(hardware, bits, cell, set)
    if recipe is None:
        calibrates = calibrate is not None and is_full_precision(opened)
        recipe = default_mapping(spec, set, is_calibrated=calibrates)
    if recipe.allot is not None and dry_run:
        raise InputError(
            f"--mapping {recipe.name} --dry-run: bits are allotted by measured errors; leave out one of the two"
        )
    spec = recipe.on(spec, set, bits)
    selection = Selection(include, exclude)
    plan = plan_checkpoint(network, spec, selection)
    spec = chosen_bits(spec, plan)
    if (wrapped := opened.wrapped_by) is not None:
        listener.say(f"{opened.path.name}: names of its tensors have the prefix {wrapped}, which is left out")
    rounded = rounding_warnings(plan, opened) if mapping is None and calibrate is None else []
    for warning in [*plan_warnings(plan, spec, opened), *rounded]:
        listener.warn(warning)
    cost = cost or (cost is None and not dry_run)
    chip = chip_of(spec)
    sample = network.sample if cost else None
    vectors = None if sample is None else sample.vectors()
    if dry_run:
        if not cost:
            return MapResult(opened, spec, plan, seed)
        reads = [1.0 if vectors is None else vectors.get(layer.name, 0.0) for layer in plan.mapped]
        planned = [LayerCost.planned(*each) for each in zip(plan.mapped, reads, strict=True)]
        return MapResult(opened, spec, plan, seed, cost=_cost(sample, spec, plan, chip, planned, vectors))
    with listener.working(), ExitStack() as stack:
        file = None
        if out is not None:
            stack.enter_context(held_output(out, "mapping"))
            require_new(out, force)  # again: another mapping may have written it since
            file = stack.enter_context(writing_checkpoint(out))
        data = None
        if calibrate is not None:
            data = _calibration_data(network, calibrate, data_root, calibration_utterances, listener)
        if data is None:
            measured = stored_statistics(opened)
        else:
            measured = data.statistics({layer.name for layer in plan.mapped}, **measurements([recipe]))
        statistics = plan.completed(measured)
        allotment = None
        if recipe.allot is not None:
            on_part = partial(listener.progress, "allotment")
            spec, plan, allotment = allot_checkpoint(network, spec, selection, recipe, statistics, seed, on_part)
        if budget:
            _require_samples(opened, plan, statistics)
        steps = spec.steps() if budget or (budget is None and _are_known(plan, statistics)) else {}
        exact = is_full_precision(opened)
        budgets: list[LayerBudget] = []
        costs: list[LayerCost] = []

        def count(weight: Tensor, matrix: MappedMatrix) -> None:
            if steps:
                measured = statistics[matrix.name]
                budgets.append(layer_budget(matrix, steps, seed, measured, weight if exact else None))
            if cost:
                costs.append(stored_cost(matrix, statistics, vectors))

        mapped = program_checkpoint(
            network,
            spec,
            plan,
            seed=seed,
            statistics=statistics,
            data=data,
            recipe=recipe,
            allotment=allotment,
            progress=lambda done: listener.progress("programming", done, total=plan.cells, unit="cells"),
            on_layer=count,
            keep=None if file is None else file.add,
        )
        if file is not None:
            file.metadata = mapped.metadata
    for doubt in (silent_inputs(plan, statistics), deviating(mapped.deviations, for_command=True)):
        if doubt is not None:
            listener.warn(doubt)
    if mapped.uncalibrated:
        listener.warn(_uncalibrated(mapped.uncalibrated, network))
    found = Budget(tuple(budgets), exact) if steps else None
    taken = _cost(sample, spec, plan, chip, costs, vectors) if cost else None
    return MapResult(opened, spec, plan, seed, mapped, out, found, taken)


def _cost(
    sample: SampleRun | None,
    spec: HardwareSpec,
    plan: Plan,
    chip: Chip,
    costs: Sequence[LayerCost],
    vectors: Mapping[str, float] | None,
) -> Cost:
    """Return the cost of the layers, and of the whole chip where the network can be run on a `sample`."""
    spread = spec.cost.audio_seconds_per_programming
    if sample is None:
        return Cost(tuple(costs), "vector", spread)
    whole = whole_chip(sample, chip, plan.mapped, plan.digital, costs, vectors)
    return Cost(tuple(costs), sample.per, spread, batch=sample.batch, chip=whole)


def _calibration_data(
    network: OpenedNetwork, data: str | Path, root: str | Path | None, utterances: int, listener: Listener
) -> CalibrationData:
    recogniser = network.recogniser
    corpus = corpus_for_calibration(recogniser, str(data), None if root is None else Path(root))
    source = FeatureSource(recogniser.features)
    return calibration_data(recogniser, corpus.utterances, source, listener.progress, utterances)


def _are_known(plan: Plan, statistics: Mapping[str, InputStatistics]) -> bool:
    return all(layer.name in statistics for layer in plan.mapped)


def _require_samples(opened: Checkpoint, plan: Plan, statistics: Mapping[str, InputStatistics]) -> None:
    named = "" if "architecture" in opened.metadata else " of the network that --architecture names"
    remedy = f"add --calibrate DATA, which measures them{named}, or leave --budget out"
    require_samples(opened.path, (layer.name for layer in plan.mapped), statistics, remedy)


def _uncalibrated(layers: Sequence[str], network: OpenedNetwork) -> str:
    """Return the warning that the converter ranges of `layers` are not set."""
    in_python = "in Python memsim.map_model(model, calibration=batches) takes any network"
    if "architecture" in network.checkpoint.metadata:
        remedy = "--calibrate DATA sets them"
    elif network.stored is not None:
        remedy = f"the network is no speech recogniser, so memsim has no data to run it on: {in_python}"
    else:
        remedy = (
            "memsim does not know the network that these layers belong to, so it cannot run it to set them: "
            f"--architecture names a recogniser; {in_python}"
        )
    return (
        f"{counted(len(layers), 'layer is', 'layers are')} uncalibrated: the checkpoint holds no "
        f"input statistics, so converter ranges are not set; {remedy}"
    )
