"""Which layers of a network are trained with quantisers, with which, and putting them in.

network = quantise(network, recipe, bits=3, hardware=load_hardware("physical"), statistics=measure(...))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from pydantic.types import Strict
from torch import nn

from memsim.crossbar.matrix import bits_of, tiling_for
from memsim.crossbar.statistics import InputStatistics
from memsim.errors import InputError
from memsim.nn.front_ends import mappable_layers
from memsim.nn.plan import Selection, plan_modules
from memsim.nn.quantisers import (
    ActivationQuantiser,
    Method,
    QuantisedLinear,
    WeightQuantiser,
    replace_module,
    seams,
)
from memsim.nn.transfer import HardwareTransfer, require_trainable
from memsim.schema import Section, Within, problem
from memsim.spec import BinaryPlanes, HardwareSpec, Percentile

WeightBits = Annotated[int, Within(2, 16)]
ActivationBits = Annotated[int, Within(2, 16)]


class WeightsConfig(Section):
    """How weights are rounded. `lsq` learns the scales, `minmax` observes them."""

    method: Method = "lsq"
    scale: Literal["per_channel", "per_tensor"] = "per_channel"


class InputsConfig(Section):
    """How the inputs of linear layers are rounded; `lsq` learns their ranges, from `percentile` on."""

    method: Method = "lsq"
    bits: Literal["dac"] | ActivationBits = "dac"
    percentile: Percentile = 99.9


class OutputsConfig(Section):
    """How the outputs of linear layers are rounded, digitally."""

    bits: ActivationBits = 8


class AttentionConfig(Section):
    """How queries, keys, softmax probabilities and values are rounded, digitally."""

    bits: Literal["weights"] | ActivationBits = "weights"


class HardwareConfig(Section):
    """What of the hardware training goes through."""

    transfer: bool = True
    programming_spread: Annotated[float, Within(low=0, high=10)] = 1.0
    spread_ramp: Annotated[float, Within(0, 1)] = 0.5


class TeacherConfig(Section):
    """Distillation from the network that the training started from."""

    weight: Annotated[float, Within(above=0)] = 0.5
    temperature: Annotated[float, Within(above=0)] = 1.0


class LayerOverride(Section):
    """Other bits for the layers that `match`."""

    match: Annotated[str, Field(min_length=1)]
    weight_bits: WeightBits | None = None
    input_bits: Literal["dac"] | ActivationBits | None = None


class QuantisationConfig(Section):
    """The section `quantisation` of a training recipe; the number of weight bits is not the recipe's."""

    weights: WeightsConfig = WeightsConfig()
    inputs: InputsConfig | None = InputsConfig()
    outputs: OutputsConfig | None = None
    attention: AttentionConfig | None = None
    hardware: HardwareConfig | None = None
    teacher: TeacherConfig | None = None
    scale_rate: Annotated[float, Within(low=0)] = 1.0
    full_precision: Annotated[tuple[str, ...], Strict(False)] = ()
    overrides: Annotated[tuple[LayerOverride, ...], Strict(False)] = ()

    @model_validator(mode="after")
    def _hardware_has_its_inputs(self) -> QuantisationConfig:
        if self.hardware is not None and self.hardware.transfer and self.inputs is None:
            raise problem("the hardware's converters need the inputs' ranges; none is without inputs", key="inputs")
        if self.hardware is not None and not self.hardware.transfer and self.hardware.programming_spread:
            raise problem(
                "is of the hardware's cells: it needs transfer: true, or 0", key="hardware.programming_spread"
            )
        return self

    def for_layer(self, layer: str, bits: int) -> tuple[int, int | Literal["dac"] | None]:
        """(weight bits, input bits) of `layer`, where the others have `bits`; later overrides win."""
        inputs: int | Literal["dac"] | None = None if self.inputs is None else self.inputs.bits
        for override in self.overrides:
            if fnmatchcase(layer, override.match):
                bits = override.weight_bits or bits
                if inputs is not None:
                    inputs = override.input_bits or inputs
        return bits, inputs


@dataclass(frozen=True)
class Quantisation:
    """A recipe for a network that is to have `bits`-bit weights on the chip `spec`."""

    config: QuantisationConfig
    bits: int
    spec: HardwareSpec

    def apply(self, model: nn.Module, statistics: Mapping[str, InputStatistics]) -> nn.Module:
        """Put quantisers into `model`, in place: into the linear layers that `spec` has on arrays, and the seams.

        `statistics` of each layer's input give the ranges to begin with. Raises InputError where there is nothing to
        quantise, a glob matches nothing, or the spec has what training cannot go through.
        """
        layers = self._layers(model)
        for name, (spec, input_bits) in layers.items():
            linear = model.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            if name not in statistics:
                raise InputError(f"{name}: no training data reached this layer; keep it in full_precision")
            replace_module(model, name, self._quantised(linear, name, spec, input_bits, statistics[name]))
        if self.config.attention is not None:
            bits = self.config.attention.bits
            for seam in seams(model):
                chosen = self.bits if bits == "weights" else bits
                replace_module(model, seam, ActivationQuantiser(chosen, torch.zeros(()), "minmax"))
        self.calibrate(model, statistics)
        return model

    def calibrate(self, model: nn.Module, statistics: Mapping[str, InputStatistics]) -> None:
        """Set what the hardware is calibrated to, from the inputs as they are now."""
        for name, layer in quantised_layers(model):
            if layer.transfer is not None and name in statistics and layer.trained_scale is not None:
                assert isinstance(layer.weight_quantiser, WeightQuantiser)
                levels = layer.weight_quantiser.levels(layer.weight.detach())
                measured = replace(statistics[name], full_scale=layer.full_scale)
                layer.transfer.calibrate(levels, layer.trained_scale[1], measured)

    def _layers(self, model: nn.Module) -> dict[str, tuple[HardwareSpec, int | None]]:
        """By linear layer: its resolved spec and its input bits."""
        config = self.config
        linear = {layer.name for layer in mappable_layers(model) if type(layer.module) in (nn.Linear, QuantisedLinear)}
        plan = [layer for layer in plan_modules(model, self.spec, Selection()).mapped if layer.name in linear]
        chosen = {}
        for layer in plan:
            if any(fnmatchcase(layer.name, glob) for glob in config.full_precision):
                continue
            weight_bits, input_bits = config.for_layer(layer.name, self.bits)
            spec = self.spec.for_layer(layer.name).with_settings({"weights.bits": weight_bits})
            dac_bits = spec.dac.bits if spec.dac is not None else None
            transfer = config.hardware is not None and config.hardware.transfer
            if transfer:
                require_trainable(spec, layer.name)
                if input_bits not in ("dac", dac_bits):
                    raise InputError(
                        f"{layer.name}: inputs of {input_bits} bits, but hardware {spec.name} has {dac_bits}"
                    )
            chosen[layer.name] = (spec, dac_bits if input_bits == "dac" else input_bits)
        globs = [*config.full_precision, *(override.match for override in config.overrides)]
        names = [layer.name for layer in plan]
        for glob in globs:
            if not any(fnmatchcase(name, glob) for name in names):
                raise InputError(
                    f"quantisation: {glob}: matches no layer (layers are named like {', '.join(names[:3])})"
                )
        if not chosen:
            raise InputError(f"quantisation: hardware {self.spec.name} has no linear layer of this network on arrays")
        return chosen

    def _quantised(
        self, linear: nn.Linear, name: str, spec: HardwareSpec, input_bits: int | None, statistics: InputStatistics
    ) -> QuantisedLinear:
        config = self.config
        weights = BinaryPlanes(scale=config.weights.scale, scale_method=_FIRST_SCALE[config.weights.method])
        layer = QuantisedLinear.from_float(linear)
        layer.weight_quantiser = WeightQuantiser.fitted(linear.weight, bits_of(spec), config.weights.method, weights)
        where = linear.weight.device
        if config.inputs is not None and input_bits is not None:
            learned = config.inputs.method == "lsq"
            first = statistics.percentile(config.inputs.percentile) if learned else statistics.absmax
            range_ = torch.tensor(max(first, 1e-6), device=where)
            layer.input_quantiser = ActivationQuantiser(input_bits, range_, config.inputs.method)
        if config.outputs is not None:
            layer.output_quantiser = ActivationQuantiser(config.outputs.bits, torch.zeros((), device=where), "minmax")
        if config.hardware is not None and config.hardware.transfer:
            shape = (linear.out_features, linear.in_features)
            layer.transfer = HardwareTransfer(name, spec, tiling_for(shape, spec).row_tiles).to(where)
        return layer


_FIRST_SCALE: dict[Method, Literal["mse", "minmax"]] = {"lsq": "mse", "minmax": "minmax"}


def quantised_layers(model: nn.Module) -> Iterator[tuple[str, QuantisedLinear]]:
    """The layers of `model` that have quantisers, by name."""
    return ((name, layer) for name, layer in model.named_modules() if isinstance(layer, QuantisedLinear))
