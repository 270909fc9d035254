"""Quantisation of a network for training: the recipe, and putting quantisers into the layers.

Example:
    recipe = QuantisationConfig(layers="all")
    statistics = memsim.measure_inputs(network, batches)
    Quantisation(recipe, bits=3, spec=memsim.load_hardware("physical")).apply(network, statistics)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from statistics import median
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from pydantic.types import Strict
from torch import Tensor, nn

from memsim.config.schema import Section, Within, problem
from memsim.crossbar import encode
from memsim.crossbar.encode import bits_of
from memsim.crossbar.statistics import InputStatistics
from memsim.crossbar.tiling import tiling_for
from memsim.errors import InputError
from memsim.hardware import BinaryPlanes, HardwareSpec, Percentile
from memsim.nn.attention import refuse_fused_kernels
from memsim.nn.layer_adapters import (
    QUANTISED,
    MappableLayer,
    mappable_layers,
    quantised_matrices,
    replace_modules,
)
from memsim.nn.linear import MappedLinear
from memsim.nn.plan import Plan, Selection, plan_modules
from memsim.nn.quantised_product import QuantisedLayer, QuantisedProduct
from memsim.nn.quantisers import seams
from memsim.nn.rounding import NEGLIGIBLE, QUANTISERS, ActivationQuantiser, Method, WeightQuantiser, dtype_of_state
from memsim.nn.sources import WeightSource, effective_weight, stored_parts
from memsim.nn.trained_transform import TrainedTransform
from memsim.nn.transfer import HardwareTransfer, require_trainable
from memsim.post_training.fitting import fitted
from memsim.post_training.inputs import chosen_transform
from memsim.post_training.moments import moments_of
from memsim.post_training.recipe import MappingRecipe, load_mapping

WeightBits = Annotated[int, Within(2, 16)]
ActivationBits = Annotated[int, Within(2, 16)]


class WeightsConfig(Section):
    """The rounding of weights: `lsq` learns the scales, `minmax` observes them."""

    method: Method = "lsq"
    scale: Literal["per_channel", "per_tensor", "per_tile"] = "per_channel"


class InputsConfig(Section):
    """The rounding of the inputs of matrices: `lsq` learns their ranges, starting from `percentile`."""

    method: Method = "lsq"
    bits: Literal["dac"] | ActivationBits = "dac"
    percentile: Percentile = 99.9


class OutputsConfig(Section):
    """The digital rounding of the outputs of matrices, biases included."""

    bits: ActivationBits = 8


class AttentionConfig(Section):
    """The digital rounding of queries, keys, softmax probabilities and values."""

    bits: Literal["weights"] | ActivationBits = "weights"


class HardwareConfig(Section):
    """The parts of the hardware through which the network is trained."""

    transfer: bool = True
    programming_spread: Annotated[float, Within(low=0, high=10)] = 1.0
    spread_ramp: Annotated[float, Within(0, 1)] = 0.5


class TeacherConfig(Section):
    """The distillation from another network, by default the one that the training started from.

    `transcripts` is the weight of the transcripts' loss beside it; at 0, data need no transcripts.
    """

    transcripts: Annotated[float, Within(low=0)] = 1.0
    weight: Annotated[float, Within(above=0)] = 0.5
    temperature: Annotated[float, Within(above=0)] = 1.0


class LayerOverride(Section):
    """Other bits for the matrices whose names match the glob `match`."""

    match: Annotated[str, Field(min_length=1)]
    weight_bits: WeightBits | None = None
    input_bits: Literal["dac"] | ActivationBits | None = None


class QuantisationConfig(Section):
    """The section `quantisation` of a training recipe; the number of weight bits is not part of it."""

    layers: Literal["linear", "all"] = "linear"
    weights: WeightsConfig = WeightsConfig()
    inputs: InputsConfig | None = InputsConfig()
    outputs: OutputsConfig | None = None
    attention: AttentionConfig | None = None
    hardware: HardwareConfig | None = None
    teacher: TeacherConfig | None = None
    mapping: str | None = None
    weights_begin: Annotated[float, Within(0, 1)] = 0.0
    weight_rate: Annotated[float, Within(low=0)] = 1.0
    weight_steps: Annotated[float, Within(low=0)] | None = None
    digital_rate: Annotated[float, Within(low=0)] = 1.0
    digital_matrix_rate: Annotated[float, Within(low=0)] = 1.0
    scale_rate: Annotated[float, Within(low=0)] = 1.0
    full_precision: Annotated[tuple[str, ...], Strict(False)] = ()
    overrides: Annotated[tuple[LayerOverride, ...], Strict(False)] = ()

    @model_validator(mode="after")
    def _hardware_has_its_inputs(self) -> QuantisationConfig:
        if self.hardware is not None and self.hardware.transfer and self.inputs is None:
            raise problem("the hardware's converters need input ranges; it must not be none", key="inputs")
        if self.hardware is not None and not self.hardware.transfer and self.hardware.programming_spread:
            raise problem(
                "comes from the hardware's cells: set transfer: true, or 0 here", key="hardware.programming_spread"
            )
        return self

    def rate_of_digital(self, parameters: Sequence[nn.Parameter]) -> float:
        """Return the factor on the learning rate of digital `parameters`, which are all matrices or all vectors."""
        matrices = any(parameter.ndim > 1 for parameter in parameters)
        return self.digital_rate * (self.digital_matrix_rate if matrices else 1.0)

    def for_layer(self, layer: str, bits: int) -> tuple[int, int | Literal["dac"] | None]:
        """Return the weight bits, by default `bits`, and the input bits of `layer`; later overrides win."""
        inputs: int | Literal["dac"] | None = None if self.inputs is None else self.inputs.bits
        for override in self.overrides:
            if fnmatchcase(layer, override.match):
                bits = override.weight_bits or bits
                if inputs is not None:
                    inputs = override.input_bits or inputs
        return bits, inputs


@dataclass(frozen=True)
class Quantisation:
    """A recipe for training a network with `bits`-bit weights for the chip `spec`."""

    config: QuantisationConfig
    bits: int
    spec: HardwareSpec

    mapping: MappingRecipe | None = field(init=False)
    """The recipe whose levels and scales training starts from; None to start from the weights as they are."""

    def __post_init__(self) -> None:
        """Load the mapping recipe. Raises InputError where it cannot be read, or training cannot start from it."""
        object.__setattr__(self, "mapping", _trainable_mapping(self.config))

    def apply(self, model: nn.Module, statistics: Mapping[str, InputStatistics]) -> nn.Module:
        """Put quantisers into `model`, in place, and return it.

        The layers that the recipe names and `spec` has on arrays get them, and the seams. `statistics` of the inputs of
        each matrix give the initial ranges and, with their second moments, what the recipe's mapping fits: the weights
        become its levels times its scales, except those that a parametrisation or pruning computes. Layers that share a
        weight share its quantisers. Raises InputError where
        there is nothing to quantise, where a glob matches nothing, where no data reached a layer, and where the spec
        has a non-ideality that training does not model.
        """
        layers = mappable_layers(model)
        if any(layer.module is model for layer in layers):
            kind = type(model).__name__
            raise InputError(f"the model is itself a layer, {kind}, which has no name; wrap it: nn.Sequential(model)")
        mapping = self.mapping
        plan = plan_modules(model, self.spec, Selection())
        chosen, statistics = self._chosen(plan, layers), plan.completed(statistics)
        usual_input = self._usual_input(chosen, statistics)
        replacements: dict[int, nn.Module] = {}
        made: dict[str, QuantisedProduct] = {}
        for layer in layers:
            if not any(matrix in chosen for matrix in layer.matrices.values()):
                continue
            quantised = layer.quantised()
            replacements[id(layer.module)] = quantised
            for local, matrix in layer.matrices.items():
                if matrix in made:
                    self._share(made[matrix], quantised.products[local])
                elif matrix in chosen:
                    if matrix not in statistics:
                        raise InputError(f"{matrix}: no training data reached this layer; keep it in full_precision")
                    made[matrix] = quantised.products[local]
                    weight, source = layer.matrix(local), layer.sources[local]
                    known, scale = statistics[matrix], None
                    if mapping is not None:
                        own = chosen[matrix][0], source, known
                        rounded, scale, transform = self._fitted(mapping, matrix, weight, *own)
                        if stored_parts(model, source.tensor) == (source.tensor,):
                            weight = rounded
                            source.store(weight, effective_weight(model, source.tensor))
                        if transform is not None:
                            made[matrix].trained_transform = transform
                            weight, known = transform.weight(weight).detach(), transform.statistics(known)
                    self._quantise(made[matrix], matrix, weight, scale, source, *chosen[matrix], known, usual_input)
        replace_modules(model, replacements)
        refuse_fused_kernels(model)
        if self.config.attention is not None:
            bits = self.config.attention.bits
            for seam in seams(model):
                seam_bits = self.bits if bits == "weights" else bits
                owner, _, child = seam.rpartition(".")
                range_ = torch.zeros((), dtype=dtype_of_state(next(model.parameters())))
                setattr(model.get_submodule(owner), child, ActivationQuantiser(seam_bits, range_, "minmax"))
        self.calibrate(model, statistics)
        return model

    def calibrate(self, model: nn.Module, statistics: Mapping[str, InputStatistics]) -> None:
        """Calibrate the hardware transfers to `statistics` of the present inputs."""
        layers = mappable_layers(model)
        weights = {name: layer.matrix(local) for layer in reversed(layers) for local, name in layer.matrices.items()}
        statistics = plan_modules(model, self.spec, Selection()).completed(statistics)
        for name, product in quantised_matrices(layers).items():
            if product.transfer is not None and name in statistics and product.trained_scale is not None:
                assert isinstance(product.weight_quantiser, WeightQuantiser)
                weight, known, transform = weights[name], statistics[name], product.trained_transform
                if transform is not None:
                    weight, known = transform.weight(weight).detach(), transform.statistics(known)
                levels = product.weight_quantiser.levels(weight)
                measured = replace(known, full_scale=product.full_scale or known.full_scale)
                product.transfer.calibrate(levels, product.trained_scale[1], measured)

    def _chosen(self, plan: Plan, layers: Iterable[MappableLayer]) -> dict[str, tuple[HardwareSpec, int | None]]:
        """Return the resolved spec and the input bits of each matrix that gets quantisers, by its name."""
        config = self.config
        wanted = {
            matrix
            for layer in layers
            if layer.adapter is MappedLinear or (config.layers == "all" and layer.adapter in QUANTISED)
            for matrix in layer.matrices.values()
        }
        candidates = [layer for layer in plan.mapped if layer.name in wanted]
        chosen = {}
        for layer in candidates:
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
                        f"{layer.name}: inputs of {input_bits} bits, but hardware {spec.name} has {dac_bits}; "
                        "bits: dac takes the number of its DAC"
                    )
            chosen[layer.name] = (spec, dac_bits if input_bits == "dac" else input_bits)
        globs = [*config.full_precision, *(override.match for override in config.overrides)]
        names = [layer.name for layer in candidates]
        for glob in globs:
            if not any(fnmatchcase(name, glob) for name in names):
                raise InputError(
                    f"quantisation: {glob}: matches no layer (layers are named like {', '.join(names[:3])})"
                )
        if not chosen:
            if candidates:
                raise InputError("quantisation: full_precision: matches every layer; use --bits float")
            kind = "linear layer" if config.layers == "linear" else "layer"
            raise InputError(f"quantisation: hardware {self.spec.name} has no {kind} of this network on arrays")
        return chosen

    def _usual_input(self, chosen: Iterable[str], statistics: Mapping[str, InputStatistics]) -> float:
        """Return the median range of the inputs that are not all 0; 0 where all are."""
        percentile = 99.9 if self.config.inputs is None else self.config.inputs.percentile
        known = [statistics[matrix] for matrix in chosen if matrix in statistics]
        return median([of.percentile(percentile) for of in known if of.absmax > 0] or [0.0])

    def _fitted(
        self,
        mapping: MappingRecipe,
        name: str,
        matrix: Tensor,
        spec: HardwareSpec,
        source: WeightSource,
        statistics: InputStatistics,
    ) -> tuple[Tensor, Tensor, TrainedTransform | None]:
        """Fit the matrix `name` [out, in / groups] as `mapping` says.

        Returns the weight that its levels stand for, [out, in / groups] and for inputs as they are, the scale, and the
        transform of inputs that training goes through.
        """
        weights, groups = self.config.weights, source.groups
        of_training = {"weights.scale": weights.scale, "weights.scale_method": _FIRST_SCALE[weights.method]}
        spec = spec.with_settings(of_training)
        moments = moments_of(statistics, groups, shrunk=True) if mapping.needs_moments else None
        transform, _ = chosen_transform(name, matrix, spec, mapping, statistics, groups=groups)
        on_arrays = matrix
        if transform is not None:
            on_arrays = transform.weight(matrix)
            moments = None if moments is None else transform.moments(moments)
        found = fitted(on_arrays, spec, mapping, moments, groups=groups)
        rounded = found.levels * encode.scale_of_weights(found.scale, matrix.shape[1], spec.tile.rows)
        if transform is None:
            return rounded.to(matrix.dtype), found.scale, None
        plain = transform.plain_weight(rounded).to(matrix.dtype)
        return plain, found.scale, TrainedTransform.of(transform, rounded)

    def _quantise(
        self,
        product: QuantisedProduct,
        name: str,
        matrix: Tensor,
        scale: Tensor | None,
        source: WeightSource,
        spec: HardwareSpec,
        input_bits: int | None,
        statistics: InputStatistics,
        usual_input: float,
    ) -> None:
        """Put quantisers for `matrix` [out, in / groups] into `product`.

        `scale` is that of the weights, None for the one that mapping chooses; `usual_input` is the median input range.
        """
        config = self.config
        weights = BinaryPlanes(scale=config.weights.scale, scale_method=_FIRST_SCALE[config.weights.method])
        product.weight_quantiser = WeightQuantiser.fitted(
            matrix, bits_of(spec), config.weights.method, weights, spec.tile.rows, scale
        )
        if config.inputs is not None and input_bits is not None and not source.is_lookup:
            learned = config.inputs.method == "lsq"
            first = statistics.percentile(config.inputs.percentile) if learned else statistics.absmax
            follows = learned and (statistics.absmax == 0 or first < NEGLIGIBLE * usual_input)
            product.input_quantiser = ActivationQuantiser(
                input_bits,
                torch.tensor(first, device=matrix.device, dtype=dtype_of_state(matrix)),
                config.inputs.method,
                config.inputs.percentile if follows else None,
            )
        product.output_quantiser = self._output_quantiser(matrix)
        if config.hardware is not None and config.hardware.transfer:
            row_tiles = tiling_for(source.shape, spec, source.groups).row_tiles
            product.transfer = HardwareTransfer(name, spec, row_tiles, source.groups).to(matrix.device)

    def _share(self, made: QuantisedProduct, product: QuantisedProduct) -> None:
        """Give `product` the quantisers that `made` has for the same matrix, except the output's."""
        product.weight_quantiser, product.input_quantiser = made.weight_quantiser, made.input_quantiser
        product.trained_transform, product.transfer = made.trained_transform, made.transfer
        assert isinstance(made.weight_quantiser, WeightQuantiser)
        product.output_quantiser = self._output_quantiser(made.weight_quantiser.scale)

    def _output_quantiser(self, like: Tensor) -> nn.Module:
        if self.config.outputs is None:
            return nn.Identity()
        range_ = torch.zeros((), device=like.device, dtype=dtype_of_state(like))
        return ActivationQuantiser(self.config.outputs.bits, range_, "minmax")


def _trainable_mapping(config: QuantisationConfig) -> MappingRecipe | None:
    """Return the mapping recipe of `config`; raise InputError where it does what training cannot go on from."""
    if config.mapping is None:
        return None
    recipe = load_mapping(config.mapping)
    where = f"quantisation: mapping {recipe.name}:"
    if recipe.reads_back or recipe.offsets or recipe.allot is not None:
        raise InputError(
            f"{where} it reads cells back, adds offsets or allots bits, which training does not go on from; name "
            "another, such as feedback"
        )
    if config.weights.method != "lsq":
        raise InputError(f"{where} its scales are not those of the largest weights; set weights.method: lsq")
    if recipe.scale not in (None, config.weights.scale):
        raise InputError(f"{where} its scales are {recipe.scale}; set weights.scale: {recipe.scale}")
    return recipe


def mean_step(products: Iterable[QuantisedProduct]) -> float:
    """Return the mean step between the levels of the weights of a layer's `products`."""
    known = [product.trained_scale for product in products]
    return float(torch.cat([own.scale.flatten() for own in known if own is not None]).mean())


def weights_of_quantised(model: nn.Module) -> dict[nn.Parameter, list[QuantisedProduct]]:
    """Return the parameters that layers with quantisers round for arrays, and the products of each one's layer.

    Biases, scales and ranges are not among them.
    """
    found: dict[nn.Parameter, list[QuantisedProduct]] = {}
    for layer in mappable_layers(model):
        if not isinstance(layer.module, QuantisedLayer) or not (made := quantised_matrices([layer])):
            continue
        quantisers = [module for module in layer.module.modules() if isinstance(module, QUANTISERS)]
        scales = {id(scale) for quantiser in quantisers for scale in quantiser.parameters()}
        for name, parameter in layer.module.named_parameters():
            if "bias" not in name and id(parameter) not in scales:
                found[parameter] = list(made.values())
    return found


_FIRST_SCALE: dict[Method, Literal["mse", "minmax"]] = {"lsq": "mse", "minmax": "minmax"}
