"""Mapped files: reading one back as a network on arrays, and reading its metadata."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from pydantic import TypeAdapter
from torch import Tensor

from memsim.asr.recogniser import Recogniser, assign_state, skeleton
from memsim.chip.architecture import adopt_chip
from memsim.config.changes import Changes
from memsim.config.json_input import parse_json_object
from memsim.crossbar.matrix import MappedMatrix
from memsim.crossbar.read_context import ReadContext
from memsim.crossbar.statistics import PREFIX, InputStatistics, statistics_from_tensors
from memsim.device.file import EMBEDDED, adopt
from memsim.errors import InputError, naming
from memsim.hardware import HardwareSpec, load_hardware
from memsim.nn.chip import ChipMapping, with_mapping
from memsim.nn.deviation import Deviation
from memsim.nn.layer_adapters import mappable_layers, matrix_sources
from memsim.nn.mapping import install
from memsim.nn.plan import DigitalLayer, MappedLayer, Plan, Selection, plan_modules
from memsim.nn.quantisers import restore_quantisers
from memsim.nn.sources import WeightSource
from memsim.post_training.fitting import MappingReport
from memsim.storage.checkpoint import Checkpoint

MATRIX = ".matrix."
"""The text between a layer's name and the name of a tensor of its matrix on arrays."""

_STATES = f"{MATRIX}states"
_NOT_STATE = (PREFIX, EMBEDDED)


def load_chip(checkpoint: Checkpoint) -> tuple[Recogniser, Mapping[str, InputStatistics]]:
    """Load a mapped file as a recogniser whose layers run on its arrays, with the input statistics that it holds.

    Levels and cell states stay views of the file until their layer is first read, which then checks them.
    Raises InputError when the file is not a mapped recogniser or its tensors do not fit together.
    """
    recogniser = skeleton(checkpoint)
    spec, bits = stored_spec(checkpoint)
    on_arrays: dict[str, dict[str, Tensor]] = {name: {} for name in bits}
    digital: dict[str, Tensor] = {}
    for key, tensor in checkpoint.views().items():
        if not key.endswith(_STATES):
            checkpoint.require_finite(key, tensor)
        name, _, part = key.rpartition(MATRIX)
        if name in on_arrays:
            on_arrays[name][part] = tensor
        else:
            digital[key] = tensor
    statistics = statistics_from_tensors(digital)
    with naming(checkpoint.path):
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
    # a layer that the spec keeps digital now may have been mapped before the spec changed
    left += [layer for layer in planned.digital if layer.name not in matrices]
    found, report = stored_deviations(checkpoint), stored_report(checkpoint)
    mapping = ChipMapping(Plan(tuple(plan), tuple(left)), spec, seed, matrices, ReadContext(seed), found, report)
    with_mapping(recogniser.model, mapping)
    return recogniser, statistics


def stored_spec(checkpoint: Checkpoint) -> tuple[HardwareSpec, dict[str, int]]:
    """Return the hardware that a mapped file was made for, and the weight bits of each layer on arrays.

    The device models and the chip in the file can be loaded from then on, by the names that the hardware has for them.
    Raises InputError where the metadata cannot be read.
    """
    adopt(checkpoint)
    adopt_chip(checkpoint)
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
    """Return the deviations of the layers of a mapped file from their exact products, as they were when it was mapped.

    Empty for a file that was not calibrated, or that memsim 0.1 wrote. Raises InputError where they cannot be read.
    """
    try:
        found = parse_json_object(checkpoint.metadata.get("deviations", "{}"), "deviations")
        return TypeAdapter(dict[str, Deviation]).validate_python(found)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{checkpoint.path}: its metadata has unreadable deviations ({reason}); map it again"
        ) from None


def stored_report(checkpoint: Checkpoint) -> MappingReport | None:
    """Return what the mapping recipe did with the layers of a mapped file; None for a file that memsim 0.1 wrote.

    Raises InputError where it cannot be read.
    """
    if "mapping" not in checkpoint.metadata:
        return None
    try:
        return MappingReport.from_dict(parse_json_object(checkpoint.metadata["mapping"], "mapping"))
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{checkpoint.path}: its metadata has an unreadable mapping ({reason}); map it again"
        ) from None


def stored_seed(checkpoint: Checkpoint) -> int:
    """Return the seed of the chip in a mapped file. Raises InputError where it is not a whole number."""
    text = checkpoint.metadata.get("seed", "0")
    if not re.fullmatch(r"-?[0-9]{1,30}", text):
        raise InputError(
            f"{checkpoint.path}: its metadata gives the seed {text!r:.40}, not a whole number; map it again"
        )
    return int(text)


def _require_known(name: str, levels: Tensor | None, source: WeightSource | None) -> None:
    """Raise InputError unless the file's `levels` have the shape of matrix `name` of the architecture, at `source`."""
    if levels is None:
        raise InputError(f"lacks the levels of {name}; the file is damaged, map the checkpoint again")
    if source is None or source.shape != tuple(levels.shape):
        raise InputError(f"mapped layer {name} {list(levels.shape)} is not a layer of the architecture")
