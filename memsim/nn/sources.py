"""Where the weights of a mapped matrix are in a network: in which tensor of which layer, and how they lie in it."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


@dataclass(frozen=True)
class WeightSource:
    """A matrix of `shape` (out, in / groups), as `MappedMatrix` takes it, in the tensor `tensor`.

    The tensor is [out, in / groups, *kernel] with the kernel part of the input, as in nn.Conv1d; or, where
    `is_transposed`, [in, out / groups, *kernel] with the kernel part of the output, as in nn.ConvTranspose1d. With
    `rows` the matrix is that part of it only; with `index` it lies so in the tensor's part of that index. The input of
    a matrix that `is_lookup` is an index, as a one-hot row.
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
        """The matrix in a tensor of shape `stored`, [out, in / groups, *kernel], or in those `rows` of it."""
        first, last = rows or (0, stored[0])
        return cls(tensor, (last - first, math.prod(stored[1:])), groups, rows=rows)

    @classmethod
    def transposed(cls, tensor: str, stored: tuple[int, ...], groups: int = 1) -> WeightSource:
        """The matrix in a tensor of shape `stored`, [in, out / groups, *kernel]."""
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
        """[out, in / groups] from the values of the tensor."""
        if self.index is not None:
            stored = stored[self.index]
        if self.is_transposed:
            blocks: Tensor = stored.unflatten(0, (self.groups, -1))
            return blocks.flatten(2).transpose(1, 2).flatten(0, 1)
        return (stored if self.rows is None else stored[slice(*self.rows)]).flatten(1)


def computed_tensor(model: nn.Module, name: str) -> Tensor:
    """The tensor `name` that a layer of `model` computes with: what a parametrisation, weight norm, spectral norm or
    pruning makes of its parameters as they are now."""
    layer, _, local = name.rpartition(".")
    module = model.get_submodule(layer)
    for hook in module._forward_pre_hooks.values():
        if computed_name(hook) == local:
            return _computed(hook, module)
    weight = getattr(module, local)
    assert isinstance(weight, Tensor)
    return weight


def computed_name(hook: object) -> str | None:
    """The name of the tensor that a forward pre-hook computes before its layer uses it; None of any other hook."""
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
    """`computed_tensor` without its history."""
    return computed_tensor(model, name).detach()


def stored_parts(model: nn.Module, name: str) -> tuple[str, ...]:
    """What the state dict of `model` has of the tensor `name`: itself, or the tensors that it is computed from."""
    layer, dot, local = name.rpartition(".")
    module = model.get_submodule(layer)
    stored = module.state_dict(prefix=f"{layer}{dot}")
    if name in stored:
        return (name,)
    computed = (f"{layer}{dot}parametrizations.{local}.", f"{layer}{dot}{local}_")  # the latter: the older weight_norm
    return tuple(part for part in stored if part.startswith(computed))


def computed_from(model: nn.Module, name: str, stored: Mapping[str, Tensor]) -> Tensor:
    """The tensor `name` that a layer of `model`, which need have no values, computes from its parts in `stored`."""
    layer, dot, local = name.rpartition(".")
    module = copy.deepcopy(model.get_submodule(layer)).eval()
    parts = {part.removeprefix(f"{layer}{dot}"): stored[part] for part in stored_parts(model, name)}
    module.load_state_dict(parts, strict=False, assign=True)
    return effective_weight(module, local)


def kept(tensor: Tensor | None) -> nn.Parameter | None:
    """A copy of what a mapped layer goes on computing with digitally.

    It is a parameter, though never trained: networks ask the first of theirs for its device.
    """
    return None if tensor is None else nn.Parameter(tensor.detach().clone(), requires_grad=False)
