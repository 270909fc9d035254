"""Checkpoints on arrays: mapping the tensors of any safetensors file, and reading a mapped file back as a network."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from pydantic import TypeAdapter
from torch import Tensor

from memsim.asr.recogniser import Recogniser, assign_state, skeleton
from memsim.config.changes import Changes
from memsim.config.json_input import parse_json_object
from memsim.crossbar.matrix import MappedMatrix
from memsim.crossbar.programming_report import ProgrammingReport
from memsim.crossbar.read_context import ReadContext
from memsim.crossbar.statistics import PREFIX, InputStatistics, statistics_from_tensors
from memsim.device.file import EMBEDDED, adopt, embedded
from memsim.errors import InputError
from memsim.networks.stored_network import StoredNetwork, known_network
from memsim.nn.calibration import CalibrationData, calibrate
from memsim.nn.deviation import Deviation, deviation
from memsim.nn.layer_adapters import mappable_layers, matrix_sources
from memsim.nn.mapping import ChipMapping, install, with_mapping
from memsim.nn.plan import (
    DigitalLayer,
    MappedLayer,
    Plan,
    Selection,
    chosen_bits,
    plan_modules,
    plan_tensors,
    usable_scale,
)
from memsim.nn.quantisers import quantiser_tensors, restore_quantisers, taken_over, trained_scales
from memsim.nn.sources import WeightSource
from memsim.spec import HardwareSpec, load_hardware
from memsim.storage.checkpoint import Checkpoint

_MATRIX = ".matrix."
_STATES = f"{_MATRIX}states"
_NOT_STATE = (PREFIX, EMBEDDED)


@dataclass(frozen=True)
class MappedTensors:
    """What a mapped checkpoint holds, and what the mapping did."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    plan: Plan
    programming_errors: dict[str, float]
    programming: dict[str, ProgrammingReport]  # of the layers that lie on real cells
    uncalibrated: tuple[str, ...]
    deviations: dict[str, Deviation]  # of the layers with statistics


def plan_checkpoint(checkpoint: Checkpoint, spec: HardwareSpec, selection: Selection) -> Plan:
    """What `map_checkpoint` would put on arrays. Raises InputError for a file that is mapped already.

    Where the network that the file belongs to is known, its layers tell; names and shapes otherwise.
    """
    if checkpoint.kind not in ("model", "foreign"):
        raise InputError(f"{checkpoint.path}: a {checkpoint.kind} file; map takes an unmapped model")
    network, said = known_network(checkpoint)
    if network is not None:
        plan = network.plan(spec, selection)
    else:
        trained = {layer: bits for layer, (bits, _) in trained_scales_of(checkpoint).items()}
        shapes = checkpoint.shapes | {name: checkpoint.shapes[kept] for name, kept in _second_names(checkpoint).items()}
        plan = plan_tensors(shapes, spec, selection, checkpoint.integers, trained)
        plan = _of_stored_tensors(plan, checkpoint)
    return plan if said is None else replace(plan, remarks=(said, *plan.remarks))


def _second_names(checkpoint: Checkpoint) -> dict[str, str]:
    """Names that safetensors' `save_model` left out, by the metadata: another tensor of the file has the values."""
    names = set(checkpoint.names)
    return {name: kept for name, kept in checkpoint.metadata.items() if name not in names and kept in names}


def _of_stored_tensors(plan: Plan, checkpoint: Checkpoint) -> Plan:
    """`plan` with the tensors that the file holds in the place of those that it has under another name only."""
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
    """Whether the network of an unmapped file was trained without quantisers."""
    return not quantiser_tensors(checkpoint.names)


def trained_scales_of(checkpoint: Checkpoint) -> dict[str, tuple[int, Tensor]]:
    """By layer: the bits that its weight was trained for, and its scale."""
    return trained_scales(checkpoint.tensors(quantiser_tensors(checkpoint.names)))


def stored_statistics(checkpoint: Checkpoint) -> dict[str, InputStatistics]:
    """The input statistics that a file holds, by layer."""
    return statistics_from_tensors(checkpoint.tensors(n for n in checkpoint.names if n.startswith(PREFIX)))


def map_checkpoint(
    checkpoint: Checkpoint,
    spec: HardwareSpec,
    plan: Plan,
    *,
    seed: int = 0,
    statistics: Mapping[str, InputStatistics] | None = None,
    data: CalibrationData | None = None,
    progress: Callable[[float], None] = lambda done: None,
    on_layer: Callable[[Tensor, MappedMatrix], None] = lambda weight, matrix: None,
) -> MappedTensors:
    """Program every layer of `plan`, one at a time; every other tensor is carried over as it is.

    `statistics` (default: those in the file) set the converters' ranges, with the `data` that they are of where these
    are at hand. `progress` is told the fraction of the cells that is programmed; `on_layer` is called
    with each layer's weight [out, in] and what it has become. Raises InputError when there is nothing to map and for
    weights that hold NaN or Inf.
    """
    if not plan.mapped:
        raise InputError(
            f"{checkpoint.path}: nothing to map: none of its {len(checkpoint.names)} tensors is the weight of a layer "
            "that can be mapped and is wanted on arrays; --dry-run lists them with the reasons"
        )
    spec = chosen_bits(spec, plan)
    tensors: dict[str, Tensor] = {}
    source = checkpoint.tensors()
    network, _ = known_network(checkpoint)
    stored_values = _Values(network, source)
    trained = trained_scales(source)
    statistics = plan.completed(stored_statistics(checkpoint) if statistics is None else statistics)
    for layer_name, measured in statistics.items():
        tensors |= measured.to_tensors(layer_name)
    matrices: dict[str, MappedMatrix] = {}
    done = 0
    for layer in plan.mapped:
        stored = stored_values[layer.source.tensor]
        if not layer.source.fits(tuple(stored.shape)):
            raise InputError(
                f"{checkpoint.path}: {layer.source.tensor} is {list(stored.shape)}, but the architecture that the file "
                f"names has a matrix of {list(layer.source.shape)} there"
            )
        weight = layer.source.matrix(stored)
        scale = usable_scale(layer, trained.get(layer.name))
        groups = layer.source.groups
        matrices[layer.name] = MappedMatrix.from_weight(layer.name, weight, layer.spec, seed, None, groups, scale)
        done += layer.tiling.cells
        progress(done / plan.cells)
    calibrate(matrices, statistics, data)
    errors, reports, uncalibrated, deviations = {}, {}, [], {}
    for layer in plan.mapped:
        name, matrix = layer.name, matrices[layer.name]
        weight = layer.source.matrix(stored_values[layer.source.tensor])
        tensors |= {f"{name}{_MATRIX}{key}": value for key, value in matrix.state_dict().items()}
        errors[name] = matrix.programming_error()
        if matrix.programming is not None:
            reports[name] = matrix.programming
        if not matrix.is_calibrated:
            uncalibrated.append(name)
        if name in statistics:
            deviations[name] = deviation(matrix, statistics[name], None if name in trained else weight, seed)
        on_layer(weight, matrix)
    split = {layer.source.tensor for layer in plan.mapped}
    on_arrays = {layer.name for layer in plan.mapped}
    left_out = split | set(taken_over(source, on_arrays))
    left_out -= {layer.name for layer in plan.digital if layer.source is None}  # a table that an output layer shares
    if network is not None:
        made = [tensor for tensor in split if tensor in network.converted or tensor not in source]
        taken, kept = network.shared_with(on_arrays)
        left_out |= {*taken, *(part for tensor in made for part in network.parts(tensor))}
        tensors |= {name: source[stored] for name, stored in kept.items()}
    tensors |= {name: tensor for name, tensor in source.items() if not name.startswith(PREFIX) and name not in left_out}
    for left in plan.digital:
        if left.source is None:
            continue
        tensor = left.source.tensor
        if left.source.is_part and tensor in split:  # of a tensor of several matrices, some of which are mapped
            tensors[f"{left.name}_weight"] = left.source.matrix(stored_values[tensor])
        elif network is not None and not left_out.isdisjoint(network.converted.get(tensor, ())):
            tensors[tensor] = stored_values[tensor]
    device_metadata: dict[str, str] = {}
    if spec.cell != "ideal":
        cell, device, device_metadata = embedded(spec.cell)
        tensors |= device
        spec = spec.with_settings({"cell": json.dumps(cell)}).with_changes(spec.changes)  # the same cell
    carried = {key: value for key, value in checkpoint.metadata.items() if key not in ("format", "memsim_version")}
    metadata = carried | {
        "kind": "mapped",
        "hardware": spec.to_json(),
        "hardware_changes": json.dumps(spec.changes.to_dict()),
        "layers": json.dumps({layer.name: layer.tiling.bits for layer in plan.mapped}),
        "seed": str(seed),
        "source_sha256": checkpoint.sha256,
        "deviations": json.dumps({name: found.to_dict() for name, found in deviations.items()}),
        **device_metadata,
    }
    return MappedTensors(tensors, metadata, plan, errors, reports, tuple(uncalibrated), deviations)


class _Values:
    """The tensors of a file by name, and those that its network makes of them; the last of the latter is kept."""

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


def load_chip(checkpoint: Checkpoint) -> tuple[Recogniser, Mapping[str, InputStatistics]]:
    """A mapped checkpoint as a recogniser whose layers run on its arrays, and the statistics it carries.

    Levels and cell states stay views of the file until their layer is read, which then checks them.
    Raises InputError when the file is not a mapped recogniser or its tensors do not fit together.
    """
    recogniser = skeleton(checkpoint)
    spec, bits = stored_spec(checkpoint)
    on_arrays: dict[str, dict[str, Tensor]] = {name: {} for name in bits}
    digital: dict[str, Tensor] = {}
    for key, tensor in checkpoint.views().items():
        if not key.endswith(_STATES):
            checkpoint.require_finite(key, tensor)
        name, _, part = key.rpartition(_MATRIX)
        if name in on_arrays:
            on_arrays[name][part] = tensor
        else:
            digital[key] = tensor
    statistics = statistics_from_tensors(digital)
    restore_quantisers(recogniser.model, digital)
    plan, matrices = [], {}
    planned = plan_modules(recogniser.model, spec, Selection())
    layers = mappable_layers(recogniser.model)
    sources = matrix_sources(layers)
    for name, tensors in on_arrays.items():
        try:
            _require_known(name, tensors.get("levels"), sources.get(name))
            layer = MappedLayer.make(name, sources[name], spec, bits[name])
            matrices[name] = MappedMatrix.from_tensors(name, layer.spec, tensors, layer.source.groups)
        except InputError as error:
            raise InputError(f"{checkpoint.path}: {error}") from None
        plan.append(layer)
    install(recogniser.model, layers, matrices)
    state = {n: t.float() if t.is_floating_point() else t for n, t in digital.items() if not n.startswith(_NOT_STATE)}
    modules = recogniser.model.named_modules(remove_duplicate=False)
    on_chip = [(name, module) for name, module in modules if isinstance(module, MappedMatrix)]
    mapped = {f"{name}.{key}": tensor for name, module in on_chip for key, tensor in module.state_dict().items()}
    assign_state(recogniser.model, state | mapped, str(checkpoint.path))
    seed = stored_seed(checkpoint)
    left = [
        DigitalLayer(layer.name, layer.source.shape, "not mapped", layer.source, math.prod(layer.source.shape))
        for layer in planned.mapped
        if layer.name not in matrices
    ]
    # what the spec keeps digital now was mapped where the spec has changed since
    left += [layer for layer in planned.digital if layer.name not in matrices]
    found = stored_deviations(checkpoint)
    mapping = ChipMapping(Plan(tuple(plan), tuple(left)), spec, seed, matrices, ReadContext(seed), found)
    with_mapping(recogniser.model, mapping)
    return recogniser, statistics


def stored_spec(checkpoint: Checkpoint) -> tuple[HardwareSpec, dict[str, int]]:
    """The hardware that a mapped file was made for, and the weight bits of each layer on arrays.

    The device model that the file carries can be loaded from then on, by the name that the hardware has for it.
    """
    adopt(checkpoint)
    try:
        hardware, layers = (parse_json_object(checkpoint.metadata[key], key) for key in ("hardware", "layers"))
        spec = load_hardware(hardware)
        if known := checkpoint.metadata.get("hardware_changes"):
            spec = spec.with_changes(Changes.from_dict(parse_json_object(known, "hardware_changes")))
    except (KeyError, InputError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{checkpoint.path}: its metadata lacks a readable hardware spec ({reason}); map it again"
        ) from None
    for name, bits in layers.items():
        if type(bits) is not int or not 2 <= bits <= 16:
            raise InputError(f"{checkpoint.path}: its metadata gives layer {name} {bits!r:.20} bits; map it again")
    return spec, layers


def stored_deviations(checkpoint: Checkpoint) -> dict[str, Deviation]:
    """How far the product of each layer of a mapped file was from the digital one on its calibration inputs.

    Empty for a file that was not calibrated, or is of memsim 0.1. Raises InputError where it cannot be read.
    """
    try:
        found = parse_json_object(checkpoint.metadata.get("deviations", "{}"), "deviations")
        return TypeAdapter(dict[str, Deviation]).validate_python(found)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{checkpoint.path}: its metadata has unreadable deviations ({reason}); map it again"
        ) from None


def stored_seed(checkpoint: Checkpoint) -> int:
    """The seed of the chip in a mapped file. Raises InputError where there is none."""
    text = checkpoint.metadata.get("seed", "0")
    if not re.fullmatch(r"-?[0-9]{1,30}", text):
        raise InputError(f"{checkpoint.path}: its metadata gives the seed {text!r:.40}, no whole number; map it again")
    return int(text)


def _require_known(name: str, levels: Tensor | None, source: WeightSource | None) -> None:
    """Raise InputError unless matrix `name` of the architecture, at `source`, is what the file's `levels` describe."""
    if levels is None:
        raise InputError(f"lacks the levels of {name}; the file is damaged, map the checkpoint again")
    if source is None or source.shape != tuple(levels.shape):
        raise InputError(f"mapped layer {name} {list(levels.shape)} is no layer of the architecture")
