"""Programming of a checkpoint: the plan of its layers on arrays, and the contents of the mapped file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from memsim.chip.architecture import embedded_chip
from memsim.crossbar.matrix import MappedMatrix
from memsim.crossbar.programming_report import ProgrammingReport
from memsim.crossbar.statistics import PREFIX, InputStatistics, statistics_from_tensors
from memsim.device.file import embedded, embedded_laws
from memsim.errors import InputError, naming
from memsim.hardware import HardwareSpec, load_hardware
from memsim.networks.mapped_file import MATRIX
from memsim.networks.opened_network import OpenedNetwork
from memsim.networks.stored_network import StoredNetwork
from memsim.nn.calibration import CalibrationData
from memsim.nn.deviation import Deviation
from memsim.nn.mapping import allot, program, report_of
from memsim.nn.plan import MappedLayer, Plan, Selection, chosen_bits, plan_tensors
from memsim.nn.quantisers import quantiser_tensors, taken_over, trained_scales
from memsim.nn.rounding import TrainedScale
from memsim.nn.sources import WeightSource
from memsim.post_training.allotment import Allotment
from memsim.post_training.fitting import LayerFit, MappingReport
from memsim.post_training.recipe import NEAREST, MappingRecipe
from memsim.storage.checkpoint import Checkpoint


@dataclass(frozen=True)
class MappedTensors:
    """The contents of a mapped file, and the measurements of its programming."""

    tensors: dict[str, Tensor]
    """The tensors of the file by name; none where they went to `keep` of `program_checkpoint`."""
    metadata: dict[str, str]
    plan: Plan
    programming_errors: dict[str, float]
    """The relative programming error of each layer, ||programmed - intended|| / ||intended|| (Frobenius)."""
    programming: dict[str, ProgrammingReport]
    """The programming of each layer; layers on ideal cells have none."""
    uncalibrated: tuple[str, ...]
    """The layers whose converter ranges are not set."""
    deviations: dict[str, Deviation]
    """The deviation of each layer's product, for layers whose inputs are known."""
    report: MappingReport
    """The record of what the mapping recipe did."""


def plan_checkpoint(checkpoint: Checkpoint | OpenedNetwork, spec: HardwareSpec, selection: Selection) -> Plan:
    """Plan what `program_checkpoint` puts on arrays. Raises InputError for a file that is mapped already.

    The layers are those of the network where it is known; otherwise they are found by names and shapes.
    """
    network = checkpoint if isinstance(checkpoint, OpenedNetwork) else OpenedNetwork(checkpoint)
    checkpoint = network.checkpoint
    if checkpoint.kind not in ("model", "foreign"):
        raise InputError(f"{checkpoint.path}: a {checkpoint.kind} file; map takes an unmapped model")
    if network.stored is not None:
        plan = network.stored.plan(spec, selection)
    else:
        trained = {layer: found.bits for layer, found in trained_scales_of(checkpoint).items()}
        shapes = checkpoint.shapes | {name: checkpoint.shapes[kept] for name, kept in _second_names(checkpoint).items()}
        plan = plan_tensors(shapes, spec, selection, checkpoint.integers, trained)
        plan = _of_stored_tensors(plan, checkpoint)
    return plan if network.remark is None else replace(plan, remarks=(network.remark, *plan.remarks))


def _second_names(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the names that safetensors' `save_model` left out, with the tensors that have their values."""
    names = set(checkpoint.names)
    return {name: kept for name, kept in checkpoint.metadata.items() if name not in names and kept in names}


def _of_stored_tensors(plan: Plan, checkpoint: Checkpoint) -> Plan:
    """Return `plan` with the tensors of the file in place of the names that `save_model` left out."""
    second = _second_names(checkpoint)
    mapped = [
        replace(layer, source=replace(layer.source, tensor=second.get(layer.source.tensor, layer.source.tensor)))
        for layer in plan.mapped
    ]
    on_arrays = {layer.source.tensor for layer in mapped}
    digital = [
        replace(layer, weights=0) if layer.name in on_arrays else layer
        for layer in plan.digital
        if layer.name not in second
    ]
    return replace(plan, mapped=tuple(mapped), digital=tuple(digital))


def is_full_precision(checkpoint: Checkpoint) -> bool:
    """Return whether the network of an unmapped file was trained without quantisers."""
    return not quantiser_tensors(checkpoint.names)


def trained_scales_of(checkpoint: Checkpoint) -> dict[str, TrainedScale]:
    """Return the bits that each layer's weight was trained for and its scale, by layer.

    Raises InputError, with the path, where the tensors are damaged.
    """
    with naming(checkpoint.path):
        return trained_scales(checkpoint.tensors(quantiser_tensors(checkpoint.names)))


def stored_statistics(checkpoint: Checkpoint) -> dict[str, InputStatistics]:
    """Return the input statistics in a file, by layer."""
    return statistics_from_tensors(checkpoint.tensors(n for n in checkpoint.names if n.startswith(PREFIX)))


def allot_checkpoint(
    network: OpenedNetwork,
    spec: HardwareSpec,
    selection: Selection,
    recipe: MappingRecipe,
    statistics: Mapping[str, InputStatistics],
    seed: int = 0,
    progress: Callable[[float], None] = lambda done: None,
) -> tuple[HardwareSpec, Plan, Allotment]:
    """Return `spec` with the bits, copies and digital layers that `recipe` allots, the plan on it, and the choice.

    `statistics` are the layers' inputs, by which errors are measured on the chip of `seed`. Raises InputError as
    `memsim.nn.allotment.allotted` and `plan_checkpoint` do.
    """
    source = network.checkpoint.one_by_one()
    weight_of = _weights_of(network, source)
    plan_on = partial(plan_checkpoint, network, selection=selection)
    return allot(spec, plan_on, recipe, weight_of, trained_scales(source), seed, statistics, progress)


def _weights_of(network: OpenedNetwork, source: Mapping[str, Tensor]) -> Callable[[MappedLayer], Tensor]:
    """Return what reads the weight of a layer from `source`, the tensors of the network's file.

    It raises InputError for a tensor of another shape than the network has.
    """
    values = _Values(network.stored, source)

    def weight_of(layer: MappedLayer) -> Tensor:
        stored = values[layer.source.tensor]
        if not layer.source.fits(tuple(stored.shape)):
            raise InputError(
                f"{network.checkpoint.path}: {layer.source.tensor} is {list(stored.shape)}, but the architecture that "
                f"the file names has a matrix of {list(layer.source.shape)} there"
            )
        return layer.source.matrix(stored)

    return weight_of


def program_checkpoint(
    checkpoint: Checkpoint | OpenedNetwork,
    spec: HardwareSpec,
    plan: Plan,
    *,
    seed: int = 0,
    statistics: Mapping[str, InputStatistics] | None = None,
    data: CalibrationData | None = None,
    recipe: MappingRecipe = NEAREST,
    allotment: Allotment | None = None,
    progress: Callable[[float], None] = lambda done: None,
    on_layer: Callable[[Tensor, MappedMatrix], None] = lambda weight, matrix: None,
    keep: Callable[[str, Tensor], None] | None = None,
) -> MappedTensors:
    """Program every layer of `plan` and carry every other tensor over as it is.

    With `keep`, memory holds no more than one layer at a time, its weight and its cells, except as `program` says of
    `data`. These also need the whole network in memory.

    Args:
        checkpoint: the file that `plan` was made for.
        spec: the hardware.
        plan: the layers, by `plan_checkpoint`.
        seed: the seed of the chip.
        statistics: the layers' inputs, which set the ranges of the converters; None takes those in the file.
        data: the data that `statistics` were measured on, where the ranges are to be set by all inputs.
        recipe: the way in which weights become levels.
        allotment: the choice by which `spec` was made, for the report.
        progress: is called with the fraction of the cells that is programmed.
        on_layer: is called with the weight of each layer [out, in] and its matrix on arrays.
        keep: is called with the name and the values of each tensor of the mapped file as soon as it is known, so that
            it need not stay in memory; of several with one name, the last is meant. None collects them in the result.

    Raises:
        InputError: when there is nothing to map, for weights that hold NaN or Inf, and where `recipe` needs inputs
            of which nothing is known.
    """
    network = checkpoint if isinstance(checkpoint, OpenedNetwork) else OpenedNetwork(checkpoint)
    checkpoint = network.checkpoint
    if not plan.mapped:
        raise InputError(
            f"{checkpoint.path}: nothing to map: none of its {len(checkpoint.names)} tensors is the weight of a layer "
            "that can be mapped and is wanted on arrays; --dry-run lists them with the reasons"
        )
    spec = chosen_bits(spec, plan)
    source = checkpoint.one_by_one()
    for name in source:
        _ = source[name]  # raises InputError for NaN and Inf before the long work
    trained = trained_scales_of(checkpoint)
    for layer in plan.mapped:
        own_training = trained.get(layer.name)
        if own_training is not None and own_training.transform is not None:
            with naming(checkpoint.path):
                own_training.transform.require_fit(layer.name, *layer.source.shape)
    values = _Values(network.stored, source)
    weight_of = _weights_of(network, source)
    statistics = plan.completed(stored_statistics(checkpoint) if statistics is None else statistics)
    tensors: dict[str, Tensor] = {}
    keep = keep or tensors.__setitem__
    for layer_name, measured in statistics.items():
        for key, value in measured.to_tensors(layer_name).items():
            keep(key, value)
    errors, reports, uncalibrated, deviations = {}, {}, [], {}
    fits: dict[str, tuple[LayerFit, float]] = {}
    for programmed in program(plan, weight_of, trained, seed, statistics, data, progress, recipe):
        name, matrix = programmed.name, programmed.matrix
        fits[name] = programmed.fit, programmed.fit_seconds
        for key, value in matrix.state_dict().items():
            keep(f"{name}{MATRIX}{key}", value)
        errors[name] = matrix.programming_error()
        if matrix.programming is not None:
            reports[name] = matrix.programming
        if not matrix.is_calibrated:
            uncalibrated.append(name)
        if programmed.deviation is not None:
            deviations[name] = programmed.deviation
        on_layer(weight_of(programmed.layer), matrix)
        del programmed, matrix, value  # the next layer is about to be programmed
    report = report_of(recipe, fits, seed, allotment)
    own: dict[str, str] = {}
    if network.is_recogniser and network.stored is not None:  # which is loaded by the names of its own tensors
        own = {stored: name for name, stored in network.stored.renamed.items()}
    for name, read in _carried_over(plan, network.stored, source, values).items():
        keep(own.get(name, name), read())
    device_metadata: dict[str, str] = {}
    if spec.cell != "ideal":
        cell, device, device_metadata = embedded(spec.cell)
        for name, value in device.items():
            keep(name, value)
        spec = spec.with_settings({"cell": json.dumps(cell)}).with_changes(spec.changes)  # the same cell
    spec, laws_metadata = _with_laws(spec)
    chip_metadata: dict[str, str] = {}
    if spec.chip is not None:
        name, chip_metadata = embedded_chip(spec.chip)
        spec = spec.with_settings({"chip": json.dumps(name)}).with_changes(spec.changes)
    carried = {key: value for key, value in checkpoint.metadata.items() if key not in ("format", "memsim_version")}
    metadata = carried | {
        "kind": "mapped",
        "hardware": spec.to_json(),
        "hardware_changes": json.dumps(spec.changes.to_dict()),
        "layers": json.dumps({layer.name: layer.tiling.bits for layer in plan.mapped}),
        "seed": str(seed),
        "source_sha256": checkpoint.sha256,
        "deviations": json.dumps({name: found.to_dict() for name, found in deviations.items()}),
        "mapping": json.dumps(report.to_dict()),
        **device_metadata,
        **laws_metadata,
        **chip_metadata,
    }
    return MappedTensors(tensors, metadata, plan, errors, reports, tuple(uncalibrated), deviations, report)


def _with_laws(spec: HardwareSpec) -> tuple[HardwareSpec, dict[str, str]]:
    """Return `spec` with names for its laws of relaxation that are files, and the metadata that embed these."""
    values = spec.to_dict()
    sections = [section.get("programming") or {} for section in (values, *values["overrides"])]
    having = [section for section in sections if isinstance(section.get("relaxation"), str)]
    if not having:
        return spec, {}
    laws, metadata = embedded_laws(section["relaxation"] for section in having)
    for section in having:
        section["relaxation"] = laws[section["relaxation"]]
    return load_hardware(values).with_changes(spec.changes), metadata


def _carried_over(
    plan: Plan, network: StoredNetwork | None, source: Mapping[str, Tensor], values: _Values
) -> dict[str, Callable[[], Tensor]]:
    """Return readers of the tensors of a mapped file that are not on arrays, from `source` of the unmapped file."""
    split = {layer.source.tensor for layer in plan.mapped}
    on_arrays = {layer.name for layer in plan.mapped}
    left_out = split | set(taken_over(source, on_arrays))
    left_out -= {layer.name for layer in plan.digital if layer.source is None}  # a table that an output layer shares
    tensors: dict[str, Callable[[], Tensor]] = {}
    if network is not None:
        made = [tensor for tensor in split if tensor in network.converted or tensor not in source]
        taken, kept = network.shared_with(on_arrays)
        left_out |= {*taken, *(part for tensor in made for part in network.parts(tensor))}
        tensors |= {name: partial(source.__getitem__, stored) for name, stored in kept.items()}
    left = [name for name in source if not name.startswith(PREFIX) and name not in left_out]
    tensors |= {name: partial(source.__getitem__, name) for name in left}
    for layer in plan.digital:
        if layer.source is None:
            continue
        tensor = layer.source.tensor
        if layer.source.is_part and tensor in split:  # of a tensor of several matrices, some of which are mapped
            tensors[f"{layer.name}_weight"] = partial(_matrix_of, layer.source, values)
        elif network is not None and not left_out.isdisjoint(network.converted.get(tensor, ())):
            tensors[tensor] = partial(values.__getitem__, tensor)
    return tensors


def _matrix_of(source: WeightSource, values: _Values) -> Tensor:
    return source.matrix(values[source.tensor])


class _Values:
    """The tensors of a file, and those that its network computes from them, by name; the last computed one is kept."""

    def __init__(self, network: StoredNetwork | None, source: Mapping[str, Tensor]) -> None:
        self._network = network
        self._source = source
        self._last: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if self._network is None or (name in self._source and name not in self._network.converted):
            return self._source[name]
        if name not in self._last:
            self._last = {name: self._network.value(name, self._source)}
        return self._last[name]
