"""The quantisers of a network: their places in it, and their tensors in a file.

A quantised network has the tensors of the network that it was made from, and the tensors of its quantisers, such as
`<layer>.weight_quantiser.scale` and `<layer>.input_quantiser.range`. In a layer of several matrices they are named
`<layer>.quantisers.<matrix>.weight_quantiser.scale`. The `bits` of each quantiser are a tensor, too, so that a file
says what its layers were trained for.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping

import torch
from torch import Tensor, nn

from memsim.errors import InputError
from memsim.nn.attention import refuse_fused_kernels
from memsim.nn.layer_adapters import QUANTISED, MappableLayer, mappable_layers, matrix_sources, replace_modules
from memsim.nn.quantised_product import QUANTISERS_OF_MANY, QuantisedLayer, QuantisedProduct
from memsim.nn.rounding import LEAST, ActivationQuantiser, TrainedScale, WeightQuantiser
from memsim.nn.trained_transform import TrainedTransform

BITS = (2, 16)
"""The least and the largest number of bits of a quantiser."""
MOST_ROWS = 65536
"""The largest number of rows of a tile."""

_SUFFIX = "_quantiser"
_OF_PRODUCTS = tuple(f"{part}{_SUFFIX}" for part in ("weight", "input", "output"))
_TRANSFER = ".transfer."  # the tensors of `QuantisedProduct.transfer`
_TRANSFORM = ".trained_transform."  # those of `QuantisedProduct.trained_transform`
_OF_MANY = re.compile(rf"(?:^|(?<=\.)){QUANTISERS_OF_MANY}\.(?=[^.]+$)")


def seams(model: nn.Module) -> list[str]:
    """Return the places, besides layers, where an architecture lets its activations be quantised.

    They are its submodules named `..._quantiser`, which are identities until a quantiser replaces them.
    """
    return [
        name
        for name, module in model.named_modules()
        if name.endswith(_SUFFIX) and not isinstance(model.get_submodule(name.rpartition(".")[0]), QuantisedProduct)
    ]


def quantiser_tensors(names: Iterable[str]) -> list[str]:
    """Return the `names` of tensors that belong to quantisers, or that only training needs."""
    return [
        name for name in names if name.rpartition(".")[0].endswith(_SUFFIX) or _TRANSFER in name or _TRANSFORM in name
    ]


def trained_scales(tensors: Mapping[str, Tensor]) -> dict[str, TrainedScale]:
    """Return what each matrix was trained for, by its name.

    Raises InputError for an invalid number of bits, or of the rows of a tile that has scales of its own, and for an
    invalid transform of inputs.
    """
    end = f".weight{_SUFFIX}.scale"
    products = [name.removesuffix(end) for name in tensors if name.endswith(end)]
    return {
        _matrix_of(product): TrainedScale(
            _stored_number(f"{product}.weight{_SUFFIX}.bits", tensors, *BITS),
            tensors[product + end].float().clamp_min(LEAST),
            _tile_rows(f"{product}.weight{_SUFFIX}", tensors),
            _transform(product, tensors),
        )
        for product in products
        if f"{product}.weight{_SUFFIX}.bits" in tensors
    }


def taken_over(names: Iterable[str], mapped: Container[str]) -> list[str]:
    """Return the `names` of tensors that the arrays of the matrices `mapped` replace, or that only training needs."""
    return [
        name
        for name in quantiser_tensors(names)
        if _TRANSFER in name
        or _matrix_of(name.partition(_TRANSFORM)[0]) in mapped
        or (
            _matrix_of((owner := name.rpartition(".")[0].rpartition("."))[0]) in mapped
            and owner[2] in (f"weight{_SUFFIX}", f"input{_SUFFIX}")
        )
    ]


def _stored_number(name: str, tensors: Mapping[str, Tensor], least: int, most: int) -> int:
    """Return the number in the tensor `name`. Raises InputError unless it is whole and from `least` to `most`."""
    numbers = tensors[name].reshape(-1).tolist()
    if len(numbers) != 1 or numbers[0] not in range(least, most + 1):
        raise InputError(f"{name} is {numbers[:3]}; it must be one number, {least} to {most}")
    return int(numbers[0])


def _tile_rows(quantiser: str, tensors: Mapping[str, Tensor]) -> int | None:
    """Return the rows of the tiles that have scales of their own; None where the scale of `quantiser` is another.

    Raises InputError where there are no rows to scales of tiles, or the other way round.
    """
    name, of_tiles = f"{quantiser}.tile_rows", tensors[f"{quantiser}.scale"].ndim == 2
    if of_tiles != (name in tensors):
        raise InputError(f"the file has only one of {name} and a {quantiser}.scale of tiles; it is damaged")
    return _stored_number(name, tensors, 1, MOST_ROWS) if of_tiles else None


def _transform(product: str, tensors: Mapping[str, Tensor]) -> TrainedTransform | None:
    """Return the transform of the inputs of the module `product`; None where it has none. Raises InputError."""
    prefix = f"{product}{_TRANSFORM}"
    found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    try:
        return TrainedTransform.from_checkpoint(found) if found else None
    except InputError as error:
        raise InputError(f"{product}: {error}; it is damaged") from None


def _matrix_of(product: str) -> str:
    """Return the name of the matrix that the module `product` multiplies by."""
    return _OF_MANY.sub("", product)


def restore_quantisers(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put the quantisers in `tensors`, of layers and seams, into `model`, which has none.

    They hold no values until the model's state is loaded. Raises InputError where a tensor of one is missing or wrong.
    """
    stored = [key for key in tensors if key.endswith(f"{_SUFFIX}.bits")]
    found = {key.removesuffix(".bits"): _stored_number(key, tensors, *BITS) for key in stored}
    if not found:
        return
    mappable = mappable_layers(model)
    layers, sources = (
        {id(layer.module): layer for layer in mappable if layer.adapter in QUANTISED},
        matrix_sources(mappable),
    )
    replacements: dict[int, nn.Module] = {}
    for name, bits in found.items():
        owner = _owner(model, name, layers, replacements)
        if owner is None:
            continue  # the architecture has no such layer; loading the state will say so
        is_weight = name.endswith(f".weight{_SUFFIX}")
        value = f"{name}.{'scale' if is_weight else 'range'}"
        if value not in tensors:
            raise InputError(f"the file has {name}.bits but not {value}; it is damaged")
        state = torch.empty_like(tensors[value], device="meta")
        quantiser: nn.Module = (
            WeightQuantiser(bits, state, "minmax", tile_rows=_tile_rows(name, tensors))
            if is_weight
            else ActivationQuantiser(bits, state, "minmax")
        )
        setattr(owner, name.rpartition(".")[2], quantiser.train(owner.training))
        if is_weight and isinstance(owner, QuantisedProduct):
            product = name.rpartition(".")[0]
            owner.trained_transform = _transform(product, tensors)
            if owner.trained_transform is not None:
                owner.trained_transform.require_fit(product, *sources[_matrix_of(product)].shape)
    replace_modules(model, replacements)
    refuse_fused_kernels(model)


def _owner(
    model: nn.Module, name: str, layers: Mapping[int, MappableLayer], replacements: dict[int, nn.Module]
) -> nn.Module | None:
    """Return the module that has the quantiser `name`; None where the model has no such module.

    It is a product of one of `layers`, whose quantised layer is then added to `replacements`, or the owner of a seam.
    """
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
