"""Which matrices of a network go on arrays, and why the others do not: by module, or by tensor name and shape alone."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from memsim.crossbar.matrix import tiling_for
from memsim.crossbar.statistics import PREFIX
from memsim.crossbar.tiling import Tiling
from memsim.errors import InputError
from memsim.spec import HardwareSpec

DEFAULT_BITS = 8


def with_bits(spec: HardwareSpec) -> HardwareSpec:
    """`spec` with its weight bits chosen: 8 where it leaves them open."""
    return spec if spec.weights.bits else spec.with_settings({"weights.bits": DEFAULT_BITS})


@dataclass(frozen=True)
class MappedLayer:
    """A layer that goes on arrays, under its own resolved spec."""

    name: str
    tiling: Tiling
    spec: HardwareSpec

    @classmethod
    def make(cls, name: str, shape: tuple[int, ...], spec: HardwareSpec, bits: int | None = None) -> MappedLayer:
        """Layer `name` with a weight of `shape` (out, in) on the chip `spec`, at `bits` (else the spec's, else 8)."""
        own = with_bits(spec.for_layer(name))
        if bits is not None and own.weights.bits != bits:
            own = own.with_settings({"weights.bits": bits})
        out_features, in_features = shape
        return cls(name, tiling_for((out_features, in_features), own), own)

    def on(self, spec: HardwareSpec) -> MappedLayer:
        """This layer, its bits kept, on the chip `spec`."""
        return self.make(self.name, (self.tiling.out_features, self.tiling.in_features), spec, self.tiling.bits)

    @property
    def conversions(self) -> int:
        """ADC conversions for one input."""
        return 0 if self.spec.adc is None else self.tiling.conversions


@dataclass(frozen=True)
class DigitalLayer:
    """What stays digital: `parameters` values of shape `shape`, and why."""

    name: str
    shape: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class Plan:
    mapped: tuple[MappedLayer, ...]
    digital: tuple[DigitalLayer, ...]

    @property
    def cells(self) -> int:
        """Physical cells, those of unused rows and columns included."""
        return sum(layer.tiling.cells for layer in self.mapped)

    @property
    def conversions(self) -> int:
        """ADC conversions when every layer reads one input."""
        return sum(layer.conversions for layer in self.mapped)


@dataclass(frozen=True)
class Selection:
    """Globs over layer names; with `include`, only layers that match one of them are mapped."""

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()

    def __post_init__(self) -> None:
        for flag in ("include", "exclude"):
            if isinstance(globs := getattr(self, flag), str):  # a sequence of globs of one letter
                raise TypeError(f"{flag} is the text {globs!r}; it must be a list of globs, [{globs!r}]")

    def reason_to_skip(self, layer: str, spec: HardwareSpec) -> str | None:
        """Why `layer` is not wanted on arrays, or None."""
        if self.include and not any(fnmatchcase(layer, glob) for glob in self.include):
            return "not in --include"
        for glob in self.exclude:
            if fnmatchcase(layer, glob):
                return f"--exclude {glob}"
        digital = spec.is_digital(layer)
        return None if digital is None else f"digital: {digital} (hardware spec)"


def plan_tensors(
    shapes: Mapping[str, tuple[int, ...]],
    spec: HardwareSpec,
    selection: Selection,
    integers: Collection[str] = (),
) -> Plan:
    """Plan from the tensors of a checkpoint alone: `<layer>.weight` with two dimensions is taken as a linear layer.

    `integers` names the tensors that hold whole numbers. Raises InputError when an `include` or `exclude` glob matches
    no tensor's layer.
    """
    mapped, digital = [], []
    names = [name for name in shapes if not name.startswith(PREFIX)]
    _require_matches(selection, dict.fromkeys(name.rpartition(".")[0] for name in names))
    for name in names:
        layer, _, kind = name.rpartition(".")
        reason = _why_not_linear(name, shapes, integers) or selection.reason_to_skip(layer, spec)
        if reason is None:
            mapped.append(MappedLayer.make(layer, shapes[name], spec))
        elif kind != "bias" or f"{layer}.weight" not in shapes:  # a bias goes where its weight goes
            digital.append(DigitalLayer(name, shapes[name], reason))
    return Plan(tuple(mapped), tuple(digital))


def plan_modules(model: nn.Module, spec: HardwareSpec, selection: Selection) -> Plan:
    """Plan from the modules of a network: every `nn.Linear` that the spec and the selection want on arrays."""
    mapped, digital = [], []
    owners = {name: module for name, module in model.named_modules() if any(True for _ in module.parameters(False))}
    _require_matches(selection, owners)
    for name, module in owners.items():
        shape = tuple(next(module.parameters(False)).shape)
        if type(module) is not nn.Linear:
            digital.append(DigitalLayer(name, shape, f"{type(module).__name__} stays digital"))
        elif (reason := selection.reason_to_skip(name, spec)) is not None:
            digital.append(DigitalLayer(name, shape, reason))
        else:
            mapped.append(MappedLayer.make(name, shape, spec))
    return Plan(tuple(mapped), tuple(digital))


_EMBEDDING = re.compile(r"embed|(^|\.)(wte|wpe|emb|lookup|relative_attention_bias)\b|position(?!_?wise)", re.IGNORECASE)
_RECURRENT = re.compile(r"weight_(ih|hh|hr)(_l\d+)?(_reverse)?$")


def _why_not_linear(name: str, shapes: Mapping[str, tuple[int, ...]], integers: Collection[str]) -> str | None:
    """Why the tensor is not taken for a linear layer's weight, judged by names and shapes; None if it is."""
    shape = shapes[name]
    layer = name.rpartition(".")[0]
    if len(shape) < 2:
        return "norm, bias or scalar"
    if 0 in shape:
        return "empty"
    if len(shape) > 2:
        return f"{len(shape)}-dimensional: convolutions are not mapped yet"
    if _RECURRENT.search(name):
        return "recurrent layers are not mapped yet"
    if not name.endswith(".weight"):
        return "2-dimensional, but not named <layer>.weight"
    if _EMBEDDING.search(name):
        return "embedding table (by its name)"
    if name in integers:
        return "whole numbers, whose scale is unknown"
    if f"{layer.rpartition('.')[0]}.in_proj_weight" in shapes:
        return "part of nn.MultiheadAttention, which is not mapped yet"
    out_features, in_features = shape
    if shapes.get(f"{layer}.bias") == (in_features,) and in_features != out_features:
        return "stored [in, out], as its bias tells (GPT-2's Conv1D): not mapped yet"
    return None


def unmatched_globs(plan: Plan, spec: HardwareSpec) -> list[str]:
    """The globs of `spec` that no layer's name matches: typing errors, but for the default `digital` ones."""
    names = [layer.name for layer in plan.mapped] + [layer.name for layer in plan.digital]
    names += [name.rpartition(".")[0] for name in names]
    default = type(spec).model_fields["digital"].default
    globs = [f"digital: {glob}" for glob in spec.digital if glob not in default]
    globs += [f"overrides: match: {override.match}" for override in spec.overrides]
    return [glob for glob in globs if not any(fnmatchcase(name, glob.rpartition(": ")[2]) for name in names)]


def _require_matches(selection: Selection, layers: Iterable[str]) -> None:
    layers = list(layers)
    for flag, globs in (("--include", selection.include), ("--exclude", selection.exclude)):
        for glob in globs:
            if not any(fnmatchcase(layer, glob) for layer in layers):
                raise InputError(f"{flag} {glob}: matches no layer (layers are named like {', '.join(layers[:3])})")
