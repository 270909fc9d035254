"""The tensors that hold the weights of mapped matrices, and how the weights lie in them."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


@dataclass(frozen=True)
class WeightSource:
    """A matrix of `shape` (out, in / groups), as `MappedMatrix` takes it, in the tensor `tensor`.

    Attributes:
        tensor: the name of the tensor: [out, in / groups, *kernel], where the kernel is part of the input as in
            nn.Conv1d, or, where `is_transposed`, [in, out / groups, *kernel], where it is part of the output as in
            nn.ConvTranspose1d.
        shape: of the matrix.
        groups: the number of blocks of the matrix, which lie one below the other.
        is_transposed: whether the tensor's first dimension is the input.
        rows: the first and the last + 1 of the tensor's rows that are the matrix; None for all of them.
        is_lookup: whether the input is an index, which stands for a one-hot row.
        index: the place of the matrix in a tensor [experts, ...]; None where the tensor has no such dimension.
    """

    tensor: str
    shape: tuple[int, int]
    groups: int = 1
    is_transposed: bool = False
    rows: tuple[int, int] | None = None
    is_lookup: bool = False
    index: int | None = None

    @classmethod
    def of(
        cls, tensor: str, stored: tuple[int, ...], groups: int = 1, rows: tuple[int, int] | None = None
    ) -> WeightSource:
        """Return the source in a tensor of shape `stored`, [out, in / groups, *kernel], or in these `rows` of it."""
        first, last = rows or (0, stored[0])
        return cls(tensor, (last - first, math.prod(stored[1:])), groups, rows=rows)

    @classmethod
    def transposed(cls, tensor: str, stored: tuple[int, ...], groups: int = 1) -> WeightSource:
        """Return the source in a tensor of shape `stored`, [in, out / groups, *kernel]."""
        return cls(tensor, (groups * math.prod(stored[1:]), stored[0] // groups), groups, is_transposed=True)

    @property
    def is_part(self) -> bool:
        """Whether its tensor may hold other matrices, too."""
        return self.rows is not None or self.index is not None

    def fits(self, stored: tuple[int, ...]) -> bool:
        """Whether a tensor of the shape `stored` holds this matrix."""
        if self.index is not None:
            return len(stored) > 2 and self.index < stored[0] and replace(self, index=None).fits(stored[1:])
        if len(stored) < 2:
            return False
        if self.is_transposed:
            return stored[0] % self.groups == 0 and self.transposed("", stored, self.groups).shape == self.shape
        return self.of("", stored, rows=self.rows).shape == self.shape and (self.rows or (0, 0))[1] <= stored[0]

    def matrix(self, stored: Tensor) -> Tensor:
        """Return the matrix [out, in / groups] in `stored`, the values of the tensor."""
        if self.index is not None:
            stored = stored[self.index]
        if self.is_transposed:
            blocks: Tensor = stored.unflatten(0, (self.groups, -1))
            return blocks.flatten(2).transpose(1, 2).flatten(0, 1)
        return (stored if self.rows is None else stored[slice(*self.rows)]).flatten(1)

    def store(self, matrix: Tensor, stored: Tensor) -> None:
        """Write `matrix` [out, in / groups] to its places in `stored`, the values of the tensor."""
        places = self.matrix(torch.arange(stored.numel(), device=stored.device).view(stored.shape))
        stored.put_(places, matrix.to(stored.dtype))


class LayerAdapter(Protocol):
    """A kind of layer that can be mapped; classes of mapped layers are adapters."""

    def sources(self, module: nn.Module) -> dict[str, WeightSource]:
        """Return the matrices of `module`, by their names within it ("" for the only one).

        The names of their tensors are also those within `module`.
        """

    def from_module(self, module: Any, products: Mapping[str, nn.Module]) -> nn.Module:
        """Return the layer in place of `module`, with the matrices `products`, by name, on arrays, others digital."""


def computed_tensor(model: nn.Module, name: str) -> Tensor:
    """Return the tensor `name` that a layer of `model` computes with.

    A parametrisation, weight norm, spectral norm or pruning computes it from the present values of its parameters.
    """
    layer, _, local = name.rpartition(".")
    module = model.get_submodule(layer)
    for hook in module._forward_pre_hooks.values():
        if computed_name(hook) == local:
            return _computed(hook, module)
    weight = getattr(module, local)
    assert isinstance(weight, Tensor)
    return weight


def computed_name(hook: object) -> str | None:
    """Return the name of the tensor that a forward pre-hook computes for its layer; None for any other hook."""
    if isinstance(hook, WeightNorm | SpectralNorm):
        return str(hook.name)
    return str(hook._tensor_name) if isinstance(hook, BasePruningMethod) else None


def _computed(hook: Any, module: nn.Module) -> Tensor:
    tensor: Tensor
    if isinstance(hook, SpectralNorm):
        tensor = hook.compute_weight(module, do_power_iteration=False)
    else:
        tensor = hook.compute_weight(module) if isinstance(hook, WeightNorm) else hook.apply_mask(module)
    return tensor


def effective_weight(model: nn.Module, name: str) -> Tensor:
    """Return `computed_tensor` without its gradient history."""
    return computed_tensor(model, name).detach()


def stored_parts(model: nn.Module, name: str) -> tuple[str, ...]:
    """Return the entries of the state dict of `model` that hold the tensor `name`, or from which it is computed."""
    layer, dot, local = name.rpartition(".")
    module = model.get_submodule(layer)
    stored = module.state_dict(prefix=f"{layer}{dot}")
    if name in stored:
        return (name,)
    computed = (
        f"{layer}{dot}parametrizations.{local}.",
        f"{layer}{dot}{local}_",
    )  # the second by torch's older weight_norm
    return tuple(part for part in stored if part.startswith(computed))


def computed_from(model: nn.Module, name: str, stored: Mapping[str, Tensor]) -> Tensor:
    """Compute the tensor `name` of a layer of `model`, which need have no values, from its parts in `stored`."""
    layer, dot, local = name.rpartition(".")
    module = copy.deepcopy(model.get_submodule(layer)).eval()
    parts = {part.removeprefix(f"{layer}{dot}"): stored[part] for part in stored_parts(model, name)}
    module.load_state_dict(parts, strict=False, assign=True)
    return effective_weight(module, local)


def frozen_copy(tensor: Tensor | None) -> nn.Parameter | None:
    """Return a copy of a tensor with which a mapped layer continues to compute digitally.

    It is a parameter, although it is never trained: networks ask their first parameter for its device.
    """
    return None if tensor is None else nn.Parameter(tensor.detach().clone(), requires_grad=False)
