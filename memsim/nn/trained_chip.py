"""Training through a chip as it is programmed: its cells stay, and the digital numbers around them learn.

The forward pass reads the chip, non-idealities and read noise included. The gradient is that of the product of the
levels and the scale (straight-through).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from memsim.crossbar.matrix import MappedMatrix
from memsim.nn.chip import ChipMapping, mapping_of


class TrainedMatrix(MappedMatrix):
    """A programmed matrix whose outputs are multiplied by `gain` [out], which learns; its cells and scale do not.

    The tensors are those of the matrix that it is made from. They are none of its buffers, as a moving average or the
    state of a training need no copy of cells that stay.
    """

    gain: nn.Parameter

    def __init__(self, matrix: MappedMatrix, gain: Tensor | None = None) -> None:
        """Read `matrix` itself, which must not be moved to another device afterwards."""
        nn.Module.__init__(self)
        own = vars(self).keys()
        vars(self).update({name: value for name, value in vars(matrix).items() if name not in own})
        vars(self).update(matrix._buffers)
        vars(self)["_read_matrix"] = matrix
        first = torch.ones(self.out_features, device=self.scale.device)
        self.gain = nn.Parameter(first if gain is None else gain)

    @property
    def trained_scale(self) -> Tensor:
        """The scale with the gains in it, which has the shape [out]."""
        return (self.scale * self.gain).detach()

    def stream(self, parts: Iterable[Tensor]) -> Tensor:
        """Multiply the rows [n, in] of all `parts` as one read of the chip, giving [n, out] with a gradient."""
        rows = list(parts)
        matrix: MappedMatrix = vars(self)["_read_matrix"]
        with torch.no_grad():
            product = matrix.stream(rows)
        if torch.is_grad_enabled():
            product = _Read.apply(torch.cat(rows), product, self.levels, self.scale, self.groups)
        return product * self.gain.to(product.dtype)

    def release(self) -> None:
        """Free cached values of the matrix that is read."""
        vars(self)["_read_matrix"].release()

    def __deepcopy__(self, memo: dict[int, Any]) -> TrainedMatrix:
        return TrainedMatrix(vars(self)["_read_matrix"], self.gain.detach().clone())

    def _load_from_state_dict(self, *arguments: Any) -> None:
        nn.Module._load_from_state_dict(self, *arguments)  # the gain alone

    def _apply(self, fn: Any, recurse: bool = True) -> TrainedMatrix:
        nn.Module._apply(self, fn, recurse)
        return self


class _Read(torch.autograd.Function):
    """The `product` [n, out] that a chip gave for `rows` [n, in], with the gradient of the levels times the scale."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, product: Tensor, levels: Tensor, scale: Tensor, groups: int) -> Tensor:
        ctx.save_for_backward(levels, scale)
        ctx.groups, ctx.dtype = groups, rows.dtype
        return product.view_as(product)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        levels, scale = ctx.saved_tensors
        of_outputs = (gradient.float() * scale).unflatten(1, (ctx.groups, -1))  # [n, groups, out / groups]
        blocks = levels.float().unflatten(0, (ctx.groups, -1))  # [groups, out / groups, in / groups]
        of_rows = torch.einsum("ngo,goi->ngi", of_outputs, blocks).flatten(1)
        return of_rows.to(ctx.dtype), None, None, None, None


class _MappingOfTraining(ChipMapping):
    """The mapping of a chip in training, which a copy of the network, such as its moving average, shares."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _MappingOfTraining:
        return self


def train_digital_parts(chip: nn.Module) -> dict[str, TrainedMatrix]:
    """Prepare `chip`, in place, for a training of all that is digital, and return its matrices by name.

    Every parameter gets a gradient, and every matrix a gain for each of its outputs.
    """
    mapping = mapping_of(chip)
    made = {id(matrix): TrainedMatrix(matrix) for matrix in mapping.layers.values()}
    for parent in list(chip.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in made:
                setattr(parent, name, made[id(child)])
    chip.requires_grad_(True)
    chip.mapping = _MappingOfTraining(*(getattr(mapping, field.name) for field in fields(mapping)))  # type: ignore[assignment]
    return {name: made[id(matrix)] for name, matrix in mapping.layers.items()}


def trained_tensors(chip: nn.Module, tensors: Mapping[str, Tensor], separator: str) -> dict[str, Tensor]:
    """Return the `tensors` of the mapped file that `chip` was loaded from, with what it has learned.

    `separator` stands in the file between the name of a matrix and that of its tensor.
    """
    state = chip.state_dict()
    changed = {name: state.get(name, tensor) for name, tensor in tensors.items()}
    for name, matrix in trained_matrices(chip).items():
        changed[f"{name}{separator}scale"] = matrix.trained_scale
    return changed


def trained_matrices(chip: nn.Module) -> dict[str, TrainedMatrix]:
    """Return the matrices of a chip in training, by name."""
    return {module.name: module for module in chip.modules() if isinstance(module, TrainedMatrix)}
