"""The quantisers of a network: where they are in it, and what of a file is theirs.

A quantised network has the tensors of the network it was made of, and those of its quantisers beside them, such as
`<layer>.weight_quantiser.scale` and `<layer>.input_quantiser.range`, of a layer of several matrices
`<layer>.quantisers.<matrix>.weight_quantiser.scale`; the `bits` of each are a tensor, too, so that a file says for
itself what its layers were trained for.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping

import torch
from torch import Tensor, nn

from memsim.errors import InputError
from memsim.nn.attention import refuse_fused_kernels
from memsim.nn.layer_adapters import QUANTISED, MappableLayer, mappable_layers, replace_modules
from memsim.nn.linear import QuantisedLinear
from memsim.nn.product import QUANTISERS_OF_MANY, QuantisedLayer, QuantisedProduct
from memsim.nn.rounding import LEAST, QUANTISERS, ActivationQuantiser, Method, WeightQuantiser

__all__ = [
    "QUANTISERS",
    "ActivationQuantiser",
    "Method",
    "QuantisedLinear",
    "WeightQuantiser",
    "quantiser_tensors",
    "restore_quantisers",
    "seams",
    "taken_over",
    "trained_scales",
]

_SUFFIX = "_quantiser"
_OF_PRODUCTS = tuple(f"{part}{_SUFFIX}" for part in ("weight", "input", "output"))
_TRANSFER = ".transfer."  # the tensors of `QuantisedProduct.transfer`
_OF_MANY = re.compile(rf"(?:^|(?<=\.)){QUANTISERS_OF_MANY}\.(?=[^.]+$)")


def seams(model: nn.Module) -> list[str]:
    """The places, besides its layers, where an architecture lets its activations be quantised.

    They are its submodules named `..._quantiser`: identities, unless something else is put there.
    """
    return [
        name
        for name, module in model.named_modules()
        if name.endswith(_SUFFIX) and not isinstance(model.get_submodule(name.rpartition(".")[0]), QuantisedProduct)
    ]


def quantiser_tensors(names: Iterable[str]) -> list[str]:
    """Those of `names` that are tensors of quantisers, or of what training needs besides."""
    return [name for name in names if name.rpartition(".")[0].endswith(_SUFFIX) or _TRANSFER in name]


def trained_scales(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, Tensor]]:
    """By matrix: the bits that it was trained for, and its scale."""
    end = f".weight{_SUFFIX}.scale"
    products = [name.removesuffix(end) for name in tensors if name.endswith(end)]
    return {
        _matrix_of(product): (
            _stored_bits(f"{product}.weight{_SUFFIX}.bits", tensors),
            tensors[product + end].float().clamp_min(LEAST),
        )
        for product in products
        if f"{product}.weight{_SUFFIX}.bits" in tensors
    }


def taken_over(names: Iterable[str], mapped: Container[str]) -> list[str]:
    """Those of `names` that say what the arrays of the matrices `mapped` do, or what only training needs."""
    return [
        name
        for name in quantiser_tensors(names)
        if _TRANSFER in name
        or (
            _matrix_of((owner := name.rpartition(".")[0].rpartition("."))[0]) in mapped
            and owner[2] in (f"weight{_SUFFIX}", f"input{_SUFFIX}")
        )
    ]


def _stored_bits(name: str, tensors: Mapping[str, Tensor]) -> int:
    """The number of bits in the tensor `name`. Raises InputError for what is none."""
    bits = tensors[name].reshape(-1).tolist()
    if len(bits) != 1 or bits[0] not in range(2, 17):
        raise InputError(f"{name} is {bits[:3]}; it must be one number, 2 to 16")
    return int(bits[0])


def _matrix_of(product: str) -> str:
    """The name of the matrix whose quantisers are those of the module `product`."""
    return _OF_MANY.sub("", product)


def restore_quantisers(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put into `model` (a float one) the quantisers that are in `tensors`: those of its layers and seams.

    They hold no values until the model's state is loaded. Raises InputError where a part of one is missing or broken.
    """
    stored = [key for key in tensors if key.endswith(f"{_SUFFIX}.bits")]
    found = {key.removesuffix(".bits"): _stored_bits(key, tensors) for key in stored}
    if not found:
        return
    layers = {id(layer.module): layer for layer in mappable_layers(model) if layer.front_end in QUANTISED}
    replacements: dict[int, nn.Module] = {}
    for name, bits in found.items():
        owner = _owner(model, name, layers, replacements)
        if owner is None:
            continue  # of no layer of this architecture, which the loading of its state says
        quantiser: nn.Module
        value = f"{name}.{'scale' if name.endswith(f'.weight{_SUFFIX}') else 'range'}"
        if value not in tensors:
            raise InputError(f"{name}.bits is there without {value}; the file is damaged")
        if name.endswith(f".weight{_SUFFIX}"):
            quantiser = WeightQuantiser(bits, torch.empty_like(tensors[value], device="meta"), "minmax")
        else:
            quantiser = ActivationQuantiser(bits, torch.empty_like(tensors[value], device="meta"), "minmax")
        setattr(owner, name.rpartition(".")[2], quantiser.train(owner.training))
    replace_modules(model, replacements)
    refuse_fused_kernels(model)


def _owner(
    model: nn.Module, name: str, layers: Mapping[int, MappableLayer], replacements: dict[int, nn.Module]
) -> nn.Module | None:
    """The module that has the quantiser `name`: a product of one of `layers`, which then is among `replacements`, or
    the owner of a seam; None where the model has no such module."""
    owner, _, child = name.rpartition(".")
    layer_name, _, local = owner.rpartition(f"{QUANTISERS_OF_MANY}.") if _OF_MANY.search(owner) else (owner, "", "")
    try:
        module = model.get_submodule(layer_name.removesuffix("."))
    except AttributeError:
        return None
    layer = layers.get(id(module))
    if layer is None or child not in _OF_PRODUCTS:
        return module
    if id(module) not in replacements:
        replacements[id(module)] = layer.quantised()
    quantised = replacements[id(module)]
    assert isinstance(quantised, QuantisedLayer)
    return quantised.products.get(local)
