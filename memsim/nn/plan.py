"""Plans of the matrices on arrays, with reasons for the others, by module or by tensor name and shape alone."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import torch
from torch import nn

from memsim.arguments import require_types
from memsim.crossbar.statistics import PREFIX, InputStatistics, one_hot_statistics
from memsim.crossbar.tiling import Tiling, tiling_for
from memsim.errors import InputError
from memsim.hardware import HardwareSpec
from memsim.nn.layer_adapters import (
    MappableLayer,
    mappable_layers,
    matrix_sources,
    names_of_matrices,
    quantised_matrices,
    why_its_own,
)
from memsim.nn.quantisers import quantiser_tensors
from memsim.nn.roles import role_name
from memsim.nn.rounding import QUANTISERS, TrainedScale
from memsim.nn.sources import WeightSource
from memsim.nn.tensor_names import Shapes, matrices_by_tensor, tables_perhaps_tied

DEFAULT_BITS = 8


def with_bits(spec: HardwareSpec, trained: int | None = None) -> HardwareSpec:
    """Return `spec` with its weight bits chosen: where it leaves them open, those `trained` for, else 8."""
    return spec if spec.weights.bits else spec.with_settings({"weights.bits": trained or DEFAULT_BITS})


def layer_spec(name: str, spec: HardwareSpec, bits: int | None = None, trained_bits: int | None = None) -> HardwareSpec:
    """Return the resolved spec of matrix `name` at `bits` (else the spec's, else those it was trained for, else 8)."""
    own = with_bits(spec.for_layer(name), trained_bits)
    return own if bits is None or own.weights.bits == bits else own.with_settings({"weights.bits": bits})


@dataclass(frozen=True)
class MappedLayer:
    """A matrix that goes on arrays, under its own resolved spec: a layer, or one of the matrices of a layer."""

    name: str
    tiling: Tiling
    spec: HardwareSpec
    source: WeightSource

    @classmethod
    def make(
        cls,
        name: str,
        source: WeightSource,
        spec: HardwareSpec,
        bits: int | None = None,
        trained_bits: int | None = None,
    ) -> MappedLayer:
        """Return the matrix `name` on the chip `spec`, with bits as `layer_spec` chooses them."""
        own = layer_spec(name, spec, bits, trained_bits)
        return cls(name, tiling_for(source.shape, own, source.groups), own, source)

    def on(self, spec: HardwareSpec) -> MappedLayer:
        """Return the layer on the chip `spec`, with the bits that it has here."""
        return self.make(self.name, self.source, spec, self.tiling.bits)

    @property
    def conversions(self) -> int:
        """The number of ADC conversions for one input."""
        return 0 if self.spec.adc is None else self.tiling.conversions


@dataclass(frozen=True)
class DigitalLayer:
    """Values of shape `shape` that stay digital, and the reason. A matrix that could be mapped has a `source`.

    `weights` counts them as weights of a matrix: 0 for norms and biases, and for a tensor that is counted elsewhere.
    """

    name: str
    shape: tuple[int, ...]
    reason: str
    source: WeightSource | None = None
    weights: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Plan:
    """The layers that go onto arrays, and those that stay digital with the reasons.

    `remarks` are lines for users about how the layers were found, and what could not be found out.
    """

    mapped: tuple[MappedLayer, ...]
    digital: tuple[DigitalLayer, ...]
    remarks: tuple[str, ...] = ()

    def completed(self, statistics: Mapping[str, InputStatistics]) -> dict[str, InputStatistics]:
        """Return `statistics` with those of embeddings, whose inputs are one-hot whatever the data."""
        lookups = {
            layer.name: one_hot_statistics(layer.source.shape[1]) for layer in self.mapped if layer.source.is_lookup
        }
        return {**statistics, **lookups}

    @property
    def weights_on_arrays(self) -> int:
        """The number of weights in matrices on arrays."""
        return sum(layer.tiling.weights for layer in self.mapped)

    @property
    def weights(self) -> int:
        """The number of weights in matrices, tables and other tensors of two or more dimensions, each counted once."""
        return self.weights_on_arrays + sum(layer.weights for layer in self.digital)

    @property
    def fraction_on_arrays(self) -> float:
        """The fraction of `weights` that is on arrays."""
        return self.weights_on_arrays / self.weights if self.weights else 0.0

    @property
    def cells(self) -> int:
        """The number of physical cells, those of unused rows and columns included."""
        return sum(layer.tiling.cells for layer in self.mapped)

    @property
    def arrays(self) -> int:
        """The number of arrays."""
        return sum(layer.tiling.tiles for layer in self.mapped)

    @property
    def conversions(self) -> int:
        """The number of ADC conversions when every layer reads one input."""
        return sum(layer.conversions for layer in self.mapped)


@dataclass(frozen=True)
class Selection:
    """Globs over layer names; with `include`, only layers that match one of them are mapped."""

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()

    def __post_init__(self) -> None:
        require_types(Selection, vars(self))

    def reason_to_skip(self, names: Sequence[str], spec: HardwareSpec) -> str | None:
        """Return why a matrix with these names is not wanted on arrays; None where it is wanted."""
        if self.include and not any(_matches(name, glob) for name in names for glob in self.include):
            return "not in --include"
        for glob in self.exclude:
            if any(_matches(name, glob) for name in names):
                return f"--exclude {glob}"
        digital = next((match for match in map(spec.is_digital, names) if match is not None), None)
        return None if digital is None else f"digital: {digital} (hardware spec)"


def plan_tensors(
    shapes: Mapping[str, tuple[int, ...]],
    spec: HardwareSpec,
    selection: Selection,
    integers: Collection[str] = (),
    trained_bits: Mapping[str, int] | None = None,
) -> Plan:
    """Plan from the tensors of a checkpoint, by their names and shapes (see `memsim.nn.tensor_names`).

    `integers` names the tensors that hold whole numbers. `trained_bits` are what layers were trained for. Raises
    InputError when an `include` or `exclude` glob matches no layer.
    """
    beside = set(quantiser_tensors(shapes))
    weights = {name: shape for name, shape in shapes.items() if not name.startswith(PREFIX) and name not in beside}
    found = matrices_by_tensor(weights, integers) | _lookups(weights, integers, spec)
    found = {name: matrices for name, matrices in found.items() if not _goes_with_a_weight(name, found)}
    layers: dict[str, None] = {}
    for name, matrices in found.items():
        layers |= dict.fromkeys([name.rpartition(".")[0]] if isinstance(matrices, str) else matrices)
    _require_matches(selection, layers)
    mapped, digital = [], []
    for name, matrices in found.items():
        if isinstance(matrices, str):
            digital.append(DigitalLayer(name, shapes[name], matrices, weights=_weights(name, shapes[name])))
            continue
        for matrix, source in matrices.items():
            reason = selection.reason_to_skip([matrix], spec)
            if reason is None:
                mapped.append(MappedLayer.make(matrix, source, spec, trained_bits=(trained_bits or {}).get(matrix)))
            else:
                is_all = len(matrices) == 1 and source.tensor == name
                part, shape = (name, shapes[name]) if is_all else (matrix, source.shape)
                digital.append(DigitalLayer(part, shape, reason, source, math.prod(shape)))
    tied = [name for name in tables_perhaps_tied(weights) if isinstance(found[name], str)]
    remarks = [
        f"names and shapes do not tell whether an output layer shares {name}: --architecture, or the config.json of "
        "transformers beside the file, does"
        for name in tied[:1]
    ]
    return Plan(tuple(mapped), tuple(digital), tuple(remarks))


def _weights(name: str, shape: tuple[int, ...]) -> int:
    """Return the number of weights of a matrix in the tensor, judged by its name and shape."""
    return math.prod(shape) if len(shape) > 1 and "bias" not in name.rpartition(".")[2] else 0


def _lookups(shapes: Shapes, integers: Collection[str], spec: HardwareSpec) -> dict[str, dict[str, WeightSource]]:
    """Return the tables that the spec calls embeddings and wants on arrays, by tensor."""
    names = {name: name.removesuffix(".weight") for name in shapes if name.endswith(".weight") and name not in integers}
    return {
        name: {layer: replace(WeightSource.transposed(name, shapes[name]), is_lookup=True)}
        for name, layer in names.items()
        if len(shapes[name]) == 2 and 0 not in shapes[name] and spec.has_embedding(layer)
    }


def _goes_with_a_weight(name: str, names: Collection[str]) -> bool:
    """Return whether the tensor is the bias of a weight in `names`, with which it stays."""
    layer, dot, kind = name.rpartition(".")
    return "bias" in kind and f"{layer}{dot}{kind.replace('bias', 'weight')}" in names


def plan_modules(model: nn.Module, spec: HardwareSpec, selection: Selection) -> Plan:
    """Plan from the modules of a network: every matrix of its layers that the spec and the selection want on arrays."""
    layers = [layer for layer in mappable_layers(model) if not layer.is_lookup or spec.has_embedding(layer.title)]
    sources = matrix_sources(layers)
    names = names_of_matrices(model, layers)
    others = _other_modules(model, layers)
    _require_matches(selection, [*sources, *others, *itertools.chain.from_iterable(names.values())])
    mapped, digital = [], []
    quantised = quantised_matrices(layers)
    for name, source in sources.items():
        if 0 in source.shape:
            reason: str | None = "empty"
        else:
            role = role_name(model, name)
            reason = selection.reason_to_skip([*names[name], *([] if role is None else [role])], spec)
        if reason is None:
            trained = quantised[name].trained_scale if name in quantised else None
            mapped.append(MappedLayer.make(name, source, spec, trained_bits=trained and trained.bits))
        else:
            digital.append(DigitalLayer(name, source.shape, reason, source, math.prod(source.shape)))
    counted = {id(parameter) for layer in layers for parameter in layer.own_parameters()}
    for name, module in others.items():
        digital += _digital_parts(name, module, layers, counted)
    return Plan(tuple(mapped), tuple(digital))


def _other_modules(model: nn.Module, layers: Sequence[MappableLayer]) -> dict[str, nn.Module]:
    """Return the modules that have parameters beside the matrices of `layers`, by name."""
    whole = {module for layer in layers if not layer.keeps_forward for module in layer.module.modules()}
    whole |= {layer.module for layer in layers if layer.keeps_forward and not layer.other_weights()}
    return {
        name: module
        for name, module in model.named_modules()
        if module not in whole and not isinstance(module, QUANTISERS) and any(True for _ in module.parameters(False))
    }


def _digital_parts(
    name: str, module: nn.Module, layers: Sequence[MappableLayer], counted: set[int]
) -> list[DigitalLayer]:
    """Return the parts of a module that stay digital: the module, or each of its weights where it has several.

    `counted` are the ids of the parameters that have been counted as weights; those of the module join them.
    """
    layer = next((layer for layer in layers if layer.module is module), None)
    own = dict(module.named_parameters(recurse=False)) if layer is None else layer.other_weights()
    weights = {local: parameter for local, parameter in own.items() if _weights(local, tuple(parameter.shape))}
    reason = f"{_description(module)} stays digital" if layer is None else "beside the matrices of its layer"
    parts = []
    for local, parameter in (weights or dict(itertools.islice(own.items(), 1))).items():
        shape = tuple(parameter.shape)
        size = 0 if id(parameter) in counted else _weights(local, shape)
        counted.add(id(parameter))
        is_all = len(weights) < 2 and layer is None
        part = name if is_all else ".".join(filter(None, (name, local)))
        parts.append(DigitalLayer(part, shape, reason, weights=size))
    return parts


def _description(module: nn.Module) -> str:
    """Return what kind of module this is, for the reason that it stays digital."""
    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript, whose layers cannot be replaced,"
    if (own := why_its_own(module)) is not None:
        return own
    kind = type(module)
    is_of_torch = kind.__module__.partition(".")[0] == "torch"
    return kind.__name__ if is_of_torch or not hasattr(nn, kind.__name__) else f"{kind.__module__}.{kind.__name__}"


def usable_scale(layer: MappedLayer, trained: TrainedScale | None) -> TrainedScale | None:
    """Return what a matrix was `trained` with; None unless it has the bits that it was trained for.

    Scales for each of several row tiles need tiles of the same rows, too.
    """
    if trained is None or trained.bits != layer.tiling.bits:
        return None
    scale, outputs = trained.scale, layer.source.shape[0]
    if scale.ndim == 2 and len(scale) == 1:
        scale = scale[0]  # one tile held whole columns
    if scale.ndim == 2 and not fits_tiles(layer, trained):
        return None
    shapes = ((1,), (outputs,), (layer.tiling.row_tiles, outputs))
    return trained._replace(scale=scale) if tuple(scale.shape) in shapes else None


def fits_tiles(layer: MappedLayer, trained: TrainedScale) -> bool:
    """Return whether the tiles of `layer` have the rows of those that the scales of `trained` belong to, if any."""
    return trained.tile_rows in (None, layer.spec.tile.rows) or len(trained.scale) == 1


def chosen_bits(spec: HardwareSpec, plan: Plan) -> HardwareSpec:
    """Return `spec` with its weight bits chosen: where it leaves them open, those that most layers of `plan` have."""
    counted = Counter(layer.tiling.bits for layer in plan.mapped).most_common(1)
    chosen = with_bits(spec, counted[0][0] if counted else None)
    return chosen.with_changes(spec.changes)  # the bits were chosen here, so they are not a change that was asked for


def unmatched_globs(plan: Plan, spec: HardwareSpec) -> list[str]:
    """Return the globs of `spec` that match no layer, which are likely typing errors; the default ones are left out."""
    names = [layer.name for layer in plan.mapped] + [layer.name for layer in plan.digital]
    names += [name.rpartition(".")[0] for name in names]
    default = type(spec).model_fields["digital"].default
    globs = [f"digital: {glob}" for glob in spec.digital if glob not in default]
    globs += [f"embeddings: {glob}" for glob in spec.embeddings]
    globs += [f"overrides: match: {override.match}" for override in spec.overrides]
    globs = [glob for glob in globs if not any(fnmatchcase(name, glob.rpartition(": ")[2]) for name in names)]
    by_another_name = {layer.reason.removesuffix(" (hardware spec)") for layer in plan.digital}
    return [glob for glob in globs if glob not in by_another_name]


def _matches(name: str, glob: str) -> bool:
    """Return whether `glob` matches a matrix by its name or by that of its tensor, such as `fc.weight` for `fc`."""
    return fnmatchcase(name, glob) or fnmatchcase(f"{name}.weight", glob)


def _require_matches(selection: Selection, layers: Iterable[str]) -> None:
    layers = list(dict.fromkeys(layers))
    for flag, globs in (("--include", selection.include), ("--exclude", selection.exclude)):
        for glob in globs:
            if not any(_matches(layer, glob) for layer in layers):
                raise InputError(f"{flag} {glob}: matches no layer (layers are named like {', '.join(layers[:3])})")
