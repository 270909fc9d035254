"""The layer adapters: which layers can be mapped, and which matrices each of them has.

To add a kind of layer, write a module with its mapped layer and enter it in `ADAPTERS`; for training of few bits, write
its quantised layer, too, and enter that in `QUANTISED`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

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
from memsim.nn.quantised_product import QuantisedLayer, QuantisedProduct
from memsim.nn.recurrent import MappedRecurrent, MappedRecurrentCell, QuantisedRecurrent, QuantisedRecurrentCell
from memsim.nn.sources import LayerAdapter, WeightSource, computed_name, effective_weight
from memsim.nn.stand_in import OnArrays

QUANTISED: dict[LayerAdapter, type[QuantisedLayer]] = {
    MappedLinear: QuantisedLinear,
    MappedConv1D: QuantisedConv1D,
    MappedConvolution: QuantisedConvolution,
    MappedTransposedConvolution: QuantisedTransposedConvolution,
    MappedRecurrent: QuantisedRecurrent,
    MappedRecurrentCell: QuantisedRecurrentCell,
    MappedAttention: QuantisedAttention,
    MappedEmbedding: QuantisedEmbedding,
}
"""The quantised layer, for training, of each adapter."""

ADAPTERS: dict[type[nn.Module], LayerAdapter] = {
    nn.Linear: MappedLinear,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), MappedConvolution),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), MappedTransposedConvolution),
    **dict.fromkeys((nn.LSTM, nn.GRU, nn.RNN), MappedRecurrent),
    **dict.fromkeys((nn.LSTMCell, nn.GRUCell, nn.RNNCell), MappedRecurrentCell),
    nn.MultiheadAttention: MappedAttention,
    **{layer: adapter for adapter, layer in QUANTISED.items()},
}
"""The adapter of each class of layers."""


def adapter_of(module: nn.Module) -> LayerAdapter | None:
    """Return the adapter for `module`; None where there is none.

    A class derived from a layer has the layer's adapter unless it computes in its own way. If its forward only adds
    steps before and after the layer's product, the module keeps the forward and the product is mapped.
    """
    if isinstance(module, OnArrays) or "forward" in vars(module):
        return None
    if why_its_own(module) is not None:
        base = _base_of(module)
        return None if base is None else own_forward_of(module, base, ADAPTERS[base])
    if MappedEmbedding.is_original(module):
        return MappedEmbedding
    if MappedConv1D.is_original(module):
        return MappedConv1D
    base = _base_of(module)
    return experts_of(module) if base is None else ADAPTERS[base]


def why_its_own(module: nn.Module) -> str | None:
    """Say why `module` computes differently from the layer that it is derived from; None where it does not."""
    own, base = type_before_parametrizations(module), _base_of(module)
    if "forward" in vars(module):
        return f"{own.__name__}, whose forward was replaced,"
    if base is not None and any(getattr(own, name, None) is not getattr(base, name, None) for name in _COMPUTING):
        return f"{own.__name__}, derived from {base.__name__} with a forward of its own,"
    return None


_COMPUTING = ("forward", "_conv_forward", "__call__")  # a class that overrides one of these computes in its own way


def _base_of(module: nn.Module) -> type[nn.Module] | None:
    return next((kind for kind in type_before_parametrizations(module).__mro__ if kind in ADAPTERS), None)


def _bare_name(module: nn.Module) -> str:
    """Return the name of a layer that is itself the network: "linear" for an nn.Linear, in training or not."""
    if isinstance(module, QuantisedConvolution):
        return f"conv{len(module.geometry.kernel_size)}d"
    if isinstance(module, QuantisedTransposedConvolution):
        return f"convtranspose{len(module.geometry.kernel_size)}d"
    kind = _base_of(module) or type_before_parametrizations(module)
    return kind.__name__.lower().removeprefix("quantised")


@dataclass(frozen=True)
class MappableLayer:
    """A layer of a network that can be mapped; its `name` is empty where it is itself the network.

    `matrices` holds the names of its matrices in the network by their names within the layer; `sources` says where in
    the network their weights are.
    """

    name: str
    module: nn.Module
    adapter: LayerAdapter
    matrices: Mapping[str, str]
    sources: Mapping[str, WeightSource]

    @property
    def title(self) -> str:
        """The name of the layer, or that of its class where it is itself the network."""
        return self.name or _bare_name(self.module)

    @property
    def is_lookup(self) -> bool:
        """Whether the layer's inputs are indices."""
        return any(source.is_lookup for source in self.sources.values())

    @property
    def keeps_forward(self) -> bool:
        """Whether the layer keeps its forward, and only the products in it are mapped."""
        return isinstance(self.adapter, OwnForward)

    def _tensors(self) -> list[str]:
        """Return the names, within the layer, of the tensors that hold its matrices, each once."""
        return list(dict.fromkeys(source.tensor.removeprefix(f"{self.name}.") for source in self.sources.values()))

    def own_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that hold its matrices; a computed weight is not among them."""
        found = (_parameter(self.module, tensor) for tensor in self._tensors())
        return [parameter for parameter in found if parameter is not None]

    def other_weights(self) -> dict[str, nn.Parameter]:
        """Return the weights, without biases, of a layer that keeps its forward that are none of its matrices."""
        return {
            name: parameter
            for name, parameter in self.module.named_parameters(recurse=False)
            if name not in self._tensors() and parameter.ndim > 1 and "bias" not in name
        }

    def matrix(self, local: str) -> Tensor:
        """Return matrix `local` [out, in / groups] with its present values."""
        source = self.sources[local]
        return source.matrix(effective_weight(self.module, source.tensor.removeprefix(f"{self.name}.")))

    def mapped(self, products: Mapping[str, nn.Module]) -> nn.Module | None:
        """Return the layer with its matrices among `products`, by their names in the network, on arrays.

        Returns None where none of its matrices is among them.
        """
        own = {local: products[name] for local, name in self.matrices.items() if name in products}
        if not own:
            return None
        layer = self.adapter.from_module(self.module, own)
        if isinstance(layer, NamedLayer):
            layer.layer_name = self.title
        _hand_over_hooks_and_attributes(self.module, layer)
        self._hand_over_tensors(layer)
        return layer

    def _hand_over_tensors(self, layer: nn.Module) -> None:
        """Give `layer` the parameters, buffers and children that others have added to this layer."""
        weights = self._tensors()
        hooks = self.module._forward_pre_hooks.values()
        parts = tuple(f"{name}_" for hook in hooks if (name := computed_name(hook)) is not None)
        tables = ("_parameters", "_buffers") if isinstance(self.module, QuantisedLayer) else _TABLES
        for table in tables:
            for name, value in getattr(self.module, table).items():
                is_weight = name in weights or name == "parametrizations" or name.startswith(parts)
                if not is_weight and not hasattr(layer, name):
                    getattr(layer, table)[name] = value

    def quantised(self) -> QuantisedLayer:
        """Return the layer with the same parameters, ready for quantisers; the layer itself where it has them already.

        Raises KeyError where its adapter has no quantised layer.
        """
        if isinstance(self.module, QuantisedLayer):
            return self.module
        layer = QUANTISED[self.adapter].from_float(self.module)
        layer.layer_name = self.title
        _hand_over_hooks_and_attributes(self.module, layer)
        return layer

    def part_from(self, layer: nn.Module, memo: dict[int, Any]) -> None:
        """Replace the hooks and attributes that `layer`, made by `mapped`, shares with this layer by copies.

        `memo` is the memo of copy.deepcopy of the network. Raises InputError where something cannot be copied.
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
        except Exception as error:  # external code may raise anything
            raise InputError(
                f"{self.title}: has an attribute that cannot be copied, so the network cannot be: {error}"
            ) from error


def mappable_layers(model: nn.Module) -> list[MappableLayer]:
    """Return the layers of `model` that have an adapter, each under its first name.

    A matrix has the name of its layer, followed by its name within the layer where it is one of several
    (`encoder.lstm.weight_hh_l0`). Where the layer is itself the network, the name is that of its class (`linear`).
    Layers that share a parameter share the matrix, under its name in the first of them.
    """
    layers: list[MappableLayer] = []
    inner: set[nn.Module] = set()
    shared: dict[tuple[int, WeightSource], str] = {}
    for name, module in model.named_modules():
        adapter = None if module in inner else adapter_of(module)
        if adapter is None:
            continue
        inner.update([module] if isinstance(adapter, OwnForward) else module.modules())
        matrices, sources = {}, {}
        for local, source in adapter.sources(module).items():
            parameter = _parameter(module, source.tensor)
            matrix = _joined(name, local) or _bare_name(module)
            if parameter is not None:
                matrix = shared.setdefault((id(parameter), replace(source, tensor="")), matrix)
            matrices[local] = matrix
            sources[local] = replace(source, tensor=_joined(name, source.tensor))
        layers.append(MappableLayer(name, module, adapter, matrices, sources))
    return layers


def matrix_sources(layers: Sequence[MappableLayer]) -> dict[str, WeightSource]:
    """Return the source of each matrix's weights, by its name."""
    found: dict[str, WeightSource] = {}
    for layer in layers:
        for local, matrix in layer.matrices.items():
            found.setdefault(matrix, layer.sources[local])
    return found


def names_of_matrices(model: nn.Module, layers: Sequence[MappableLayer]) -> dict[str, list[str]]:
    """Return all names of each matrix of `layers` in `model`, by its first name.

    A matrix has several where its layer is in several places, where layers share a parameter, and where an embedding
    that is not among `layers` shares its table with one of them.
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
    """Return the products that were trained with quantisers, by the names of their matrices."""
    found: dict[str, QuantisedProduct] = {}
    for layer in layers:
        if isinstance(layer.module, QuantisedLayer):
            for local, matrix in layer.matrices.items():
                if layer.module.products[local].is_quantised:
                    found.setdefault(matrix, layer.module.products[local])
    return found


def replace_modules(model: nn.Module, replacements: Mapping[int, nn.Module]) -> None:
    """Replace the modules of `model` with these ids, under each of their names."""
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


def _hand_over_hooks_and_attributes(module: nn.Module, layer: nn.Module) -> None:
    """Give `layer`, which replaces `module`, the hooks and the plain attributes of `module`."""
    computed = [key for key, hook in module._forward_pre_hooks.items() if computed_name(hook) is not None]
    for table in _HOOKS:
        getattr(layer, table).update({k: hook for k, hook in getattr(module, table).items() if k not in computed})
    for name, value in vars(module).items():
        if not (name.startswith("_") or isinstance(value, Tensor) or name in _OF_TRAINING or hasattr(layer, name)):
            setattr(layer, name, value)


def _parameter(module: nn.Module, name: str) -> nn.Parameter | None:
    """Return the parameter `name` of `module`; None where it is computed from others."""
    layer, _, local = name.rpartition(".")
    return module.get_submodule(layer)._parameters.get(local)


def _joined(*names: str) -> str:
    return ".".join(name for name in names if name)
