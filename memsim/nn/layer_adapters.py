"""Which layers have a front end on simulated arrays, and which matrices each of them is made of."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from memsim.errors import InputError
from memsim.nn.attention import MappedAttention, QuantisedAttention
from memsim.nn.convolution import (
    MappedConvolution,
    MappedTransposedConvolution,
    QuantisedConvolution,
    QuantisedTransposedConvolution,
)
from memsim.nn.embedding import MappedEmbedding, QuantisedEmbedding
from memsim.nn.linear import MappedConv1D, MappedLinear, QuantisedConv1D, QuantisedLinear
from memsim.nn.named_layers import NamedLayer
from memsim.nn.own_forward import OwnForward, experts_of, own_forward_of
from memsim.nn.product import QuantisedLayer, QuantisedProduct
from memsim.nn.recurrent import MappedRecurrent, MappedRecurrentCell, QuantisedRecurrent, QuantisedRecurrentCell
from memsim.nn.sources import WeightSource, computed_name, effective_weight
from memsim.nn.stand_in import OnArrays


class FrontEnd(Protocol):
    """A class of layers that compute with mapped matrices."""

    def sources(self, module: nn.Module) -> dict[str, WeightSource]:
        """The matrices of `module`, by their name within it ("" for the only one); tensors are named within it, too."""

    def from_module(self, module: Any, products: Mapping[str, nn.Module]) -> nn.Module:
        """The layer in place of `module`, whose matrices `products` (by name) are on arrays; others stay digital."""


QUANTISED: dict[FrontEnd, type[QuantisedLayer]] = {
    MappedLinear: QuantisedLinear,
    MappedConv1D: QuantisedConv1D,
    MappedConvolution: QuantisedConvolution,
    MappedTransposedConvolution: QuantisedTransposedConvolution,
    MappedRecurrent: QuantisedRecurrent,
    MappedRecurrentCell: QuantisedRecurrentCell,
    MappedAttention: QuantisedAttention,
    MappedEmbedding: QuantisedEmbedding,
}
"""The layers in training whose products those of a front end are."""

FRONT_ENDS: dict[type[nn.Module], FrontEnd] = {
    nn.Linear: MappedLinear,
    nn.Conv1d: MappedConvolution,
    nn.Conv2d: MappedConvolution,
    nn.Conv3d: MappedConvolution,
    nn.ConvTranspose1d: MappedTransposedConvolution,
    nn.ConvTranspose2d: MappedTransposedConvolution,
    nn.ConvTranspose3d: MappedTransposedConvolution,
    nn.LSTM: MappedRecurrent,
    nn.GRU: MappedRecurrent,
    nn.RNN: MappedRecurrent,
    nn.LSTMCell: MappedRecurrentCell,
    nn.GRUCell: MappedRecurrentCell,
    nn.RNNCell: MappedRecurrentCell,
    nn.MultiheadAttention: MappedAttention,
    **{layer: front_end for front_end, layer in QUANTISED.items()},
}


def front_end_of(module: nn.Module) -> FrontEnd | None:
    """The front end for `module`; None where there is none.

    A class derived from a layer has that of the layer unless it computes in a way of its own; where that is the layer's
    product with something before and after it, its forward stays and the product is mapped.
    """
    if isinstance(module, OnArrays) or "forward" in vars(module):
        return None
    if why_its_own(module) is not None:
        base = _base_of(module)
        return None if base is None else own_forward_of(module, base, FRONT_ENDS[base])
    if MappedEmbedding.is_original(module):
        return MappedEmbedding
    if MappedConv1D.is_original(module):
        return MappedConv1D
    base = _base_of(module)
    return experts_of(module) if base is None else FRONT_ENDS[base]


def why_its_own(module: nn.Module) -> str | None:
    """What shows that `module`, which is of a class that can be mapped or one derived from it, computes differently."""
    own, base = type_before_parametrizations(module), _base_of(module)
    if "forward" in vars(module):
        return f"{own.__name__}, whose forward was replaced,"
    if base is not None and any(getattr(own, name, None) is not getattr(base, name, None) for name in _COMPUTING):
        return f"{own.__name__}, derived from {base.__name__} with a forward of its own,"
    return None


_COMPUTING = ("forward", "_conv_forward", "__call__")  # what a class that computes otherwise than its base defines


def _base_of(module: nn.Module) -> type[nn.Module] | None:
    return next((kind for kind in type_before_parametrizations(module).__mro__ if kind in FRONT_ENDS), None)


def _bare_name(module: nn.Module) -> str:
    """What a layer is called that is itself the network: nn.Linear, in training or not, is "linear"."""
    if isinstance(module, QuantisedConvolution):
        return f"conv{len(module.windows.kernel_size)}d"
    if isinstance(module, QuantisedTransposedConvolution):
        return f"convtranspose{len(module.overlap.kernel_size)}d"
    kind = _base_of(module) or type_before_parametrizations(module)
    return kind.__name__.lower().removeprefix("quantised")


@dataclass(frozen=True)
class MappableLayer:
    """A layer of a network that can be mapped; its `name` is empty where it is itself the network.

    `matrices` are the names of its matrices in the network by their names within the layer; `sources` say where in the
    network their weights are.
    """

    name: str
    module: nn.Module
    front_end: FrontEnd
    matrices: Mapping[str, str]
    sources: Mapping[str, WeightSource]

    @property
    def title(self) -> str:
        """Its name, or what stands for one."""
        return self.name or _bare_name(self.module)

    @property
    def is_lookup(self) -> bool:
        return any(source.is_lookup for source in self.sources.values())

    @property
    def keeps_forward(self) -> bool:
        """Whether only the products of its own forward are mapped, and what else it has stays as it is."""
        return isinstance(self.front_end, OwnForward)

    def own_parameters(self) -> list[nn.Parameter]:
        """Those that hold its matrices; a computed weight has none."""
        found = (_parameter(self.module, source.tensor.removeprefix(f"{self.name}.")) for source in self._distinct())
        return [parameter for parameter in found if parameter is not None]

    def other_weights(self) -> dict[str, nn.Parameter]:
        """The parameters of a layer that keeps its forward that are no matrices but weights, by their names in it."""
        matrices = {source.tensor.removeprefix(f"{self.name}.") for source in self.sources.values()}
        return {
            name: parameter
            for name, parameter in self.module.named_parameters(recurse=False)
            if name not in matrices and parameter.ndim > 1 and "bias" not in name
        }

    def _distinct(self) -> list[WeightSource]:
        """A source of each tensor."""
        return list({source.tensor: source for source in self.sources.values()}.values())

    def effective_weight(self, local: str) -> Tensor:
        """The tensor that holds matrix `local`."""
        tensor = self.sources[local].tensor
        return effective_weight(self.module, tensor.removeprefix(f"{self.name}."))

    def mapped(self, products: Mapping[str, nn.Module]) -> nn.Module | None:
        """The layer with those of its matrices that are among `products`, by their names in the network, on arrays.

        None where there is none.
        """
        own = {local: products[name] for local, name in self.matrices.items() if name in products}
        if not own:
            return None
        layer = self.front_end.from_module(self.module, own)
        if isinstance(layer, NamedLayer):
            layer.layer_name = self.title
        _take_over_the_rest(layer, self.module)
        self._take_over_tensors(layer)
        return layer

    def _take_over_tensors(self, layer: nn.Module) -> None:
        """Give `layer` the parameters, buffers and children that somebody has put on this one beside its own."""
        weights = {source.tensor.removeprefix(f"{self.name}.") for source in self.sources.values()}
        hooks = self.module._forward_pre_hooks.values()
        parts = tuple(f"{name}_" for hook in hooks if (name := computed_name(hook)) is not None)
        tables = ("_parameters", "_buffers") if isinstance(self.module, QuantisedLayer) else _TABLES
        for table in tables:
            for name, value in getattr(self.module, table).items():
                is_weight = name in weights or name == "parametrizations" or name.startswith(parts)
                if not is_weight and not hasattr(layer, name):
                    getattr(layer, table)[name] = value

    def quantised(self) -> QuantisedLayer:
        """The layer with its own parameters, ready for quantisers; itself where it has them already."""
        if isinstance(self.module, QuantisedLayer):
            return self.module
        layer = QUANTISED[self.front_end].from_float(self.module)
        layer.layer_name = self.title
        _take_over_the_rest(layer, self.module)
        return layer

    def part_from(self, layer: nn.Module, memo: dict[int, Any]) -> None:
        """Give what `mapped` made, in a copy of the network, copies of the hooks and attributes it has from this layer.

        `memo` is that of copying the network (copy.deepcopy). Raises InputError where something cannot be copied.
        """
        try:
            for table in _HOOKS:
                own = getattr(layer, table)
                own.update(copy.deepcopy(dict(own), memo))
            for name, value in vars(self.module).items():
                if not name.startswith("_") and vars(layer).get(name) is value:
                    setattr(layer, name, copy.deepcopy(value, memo))
            for table in _TABLES:
                for name, value in getattr(self.module, table).items():
                    if value is not None and getattr(layer, table).get(name) is value:
                        getattr(layer, table)[name] = copy.deepcopy(value, memo)
        except Exception as error:  # whatever they raise
            raise InputError(f"{self.title}: has what cannot be copied, so the network cannot: {error}") from error

    def matrix(self, local: str) -> Tensor:
        """Matrix `local` [out, in / groups] as it is now."""
        return self.sources[local].matrix(self.effective_weight(local))


def mappable_layers(model: nn.Module) -> list[MappableLayer]:
    """The layers of `model` that have a front end, each under its first name.

    A matrix is named as its layer, with its name within it where it is one of several (`encoder.lstm.weight_hh_l0`).
    That of a layer that is itself the network is named after the layer's class (`linear`).
    Layers that share a parameter share the matrix, under the name that it has in the first of them.
    """
    layers: list[MappableLayer] = []
    inner: set[nn.Module] = set()
    shared: dict[tuple[int, WeightSource], str] = {}
    for name, module in model.named_modules():
        front_end = None if module in inner else front_end_of(module)
        if front_end is None:
            continue
        inner.update([module] if isinstance(front_end, OwnForward) else module.modules())
        matrices, sources = {}, {}
        for local, source in front_end.sources(module).items():
            parameter = _parameter(module, source.tensor)
            matrix = _joined(name, local) or _bare_name(module)
            if parameter is not None:
                matrix = shared.setdefault((id(parameter), replace(source, tensor="")), matrix)
            matrices[local] = matrix
            sources[local] = replace(source, tensor=_joined(name, source.tensor))
        layers.append(MappableLayer(name, module, front_end, matrices, sources))
    return layers


def matrix_sources(layers: Sequence[MappableLayer]) -> dict[str, WeightSource]:
    """Where the weights of each matrix are, by its name."""
    found: dict[str, WeightSource] = {}
    for layer in layers:
        for local, matrix in layer.matrices.items():
            found.setdefault(matrix, layer.sources[local])
    return found


def names_of_matrices(model: nn.Module, layers: Sequence[MappableLayer]) -> dict[str, list[str]]:
    """Everything that each matrix of these layers of `model` is called, by its name.

    A layer may be in several places, layers may share a parameter, and an embedding that is none of `layers` may share
    its table with one of them.
    """
    places: dict[int, list[str]] = {}
    for alias, module in model.named_modules(remove_duplicate=False):
        places.setdefault(id(module), []).append(alias)
    found: dict[str, list[str]] = {}
    for layer in layers:
        for local, matrix in layer.matrices.items():
            found.setdefault(matrix, []).extend(_joined(place, local) or matrix for place in places[id(layer.module)])
    own = {module for layer in layers for module in layer.module.modules()}
    tables: dict[int, list[str]] = {}
    for alias, module in model.named_modules(remove_duplicate=False):
        if module not in own:
            for local, parameter in module.named_parameters(recurse=False):
                tables.setdefault(id(parameter), []).append(alias if local == "weight" else _joined(alias, local))
    for layer in layers:
        for matrix, parameter in zip(layer.matrices.values(), layer.own_parameters(), strict=False):
            if len(layer.matrices) == 1:
                found[matrix] += [name for name in tables.get(id(parameter), []) if name not in found[matrix]]
    return found


def quantised_matrices(layers: Sequence[MappableLayer]) -> dict[str, QuantisedProduct]:
    """The products that were trained with quantisers, by the name of their matrix."""
    found: dict[str, QuantisedProduct] = {}
    for layer in layers:
        if isinstance(layer.module, QuantisedLayer):
            for local, matrix in layer.matrices.items():
                if layer.module.products[local].is_quantised:
                    found.setdefault(matrix, layer.module.products[local])
    return found


def require_names(model: nn.Module, layers: Sequence[MappableLayer]) -> None:
    """Raise InputError where `model` is itself a layer, which nothing can be put in the place of."""
    if any(layer.module is model for layer in layers):
        kind = type(model).__name__
        raise InputError(f"the model is itself a layer, {kind}, which has no name; wrap it: nn.Sequential(model)")


def replace_modules(model: nn.Module, replacements: Mapping[int, nn.Module]) -> None:
    """Put modules in the place of those of these ids in `model`, under each of their names."""
    for alias, module in list(model.named_modules(remove_duplicate=False)):
        if (new := replacements.get(id(module))) is not None:
            parent, _, child = alias.rpartition(".")
            setattr(model.get_submodule(parent), child, new)


_TABLES = ("_parameters", "_buffers", "_modules")
_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)
_OF_TRAINING = ("source", "transfer")  # a transfer holds arrays


def _take_over_the_rest(layer: nn.Module, module: nn.Module) -> None:
    """Give `layer`, in the place of `module`, that one's hooks and plain attributes."""
    computed = [key for key, hook in module._forward_pre_hooks.items() if computed_name(hook) is not None]
    for table in _HOOKS:
        getattr(layer, table).update({k: hook for k, hook in getattr(module, table).items() if k not in computed})
    for name, value in vars(module).items():
        if not (name.startswith("_") or isinstance(value, Tensor) or name in _OF_TRAINING or hasattr(layer, name)):
            setattr(layer, name, value)


def _parameter(module: nn.Module, name: str) -> nn.Parameter | None:
    """The parameter `name`; None where it is computed from others."""
    layer, _, local = name.rpartition(".")
    return module.get_submodule(layer)._parameters.get(local)


def _joined(*names: str) -> str:
    return ".".join(name for name in names if name)
