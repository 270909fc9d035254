"""Training through a chip as it is programmed: its cells stay, and the digital numbers around them learn.

The forward pass reads the chip, non-idealities and read noise included. The gradient is that of the exact product with
the levels, times scale and trims (straight-through).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from memsim.crossbar import encode
from memsim.crossbar.matrix import TRIMS, MappedMatrix
from memsim.nn.chip import ChipMapping, mapping_of


class TrainedMatrix(MappedMatrix):
    """A programmed matrix whose trims, `gain_trim` and `offset_trim`, learn; its cells and scale do not.

    They start from the trims that the matrix has. The tensors are those of the matrix that it is made from. They are
    none of its buffers, as a moving average or the state of a training need no copy of cells that stay.
    """

    gain_trim: nn.Parameter
    offset_trim: nn.Parameter

    def __init__(self, matrix: MappedMatrix, trims: tuple[Tensor, Tensor] | None = None) -> None:
        """Read `matrix` itself, with `trims` in place of its own; it must not be moved to another device afterwards."""
        nn.Module.__init__(self)
        own = vars(self).keys()
        vars(self).update({name: value for name, value in vars(matrix).items() if name not in own})
        vars(self).update(matrix._buffers)
        vars(self)["input_transform"] = matrix.input_transform
        vars(self)["_read_matrix"] = matrix
        gain, offset = trims or (matrix.gain_trim, matrix.offset_trim)
        shape, where = (self.tiling.row_tiles, self.out_features), self.scale.device
        self.gain_trim = nn.Parameter(torch.ones(shape, device=where) if gain is None else gain.clone())
        self.offset_trim = nn.Parameter(torch.zeros(shape[1], device=where) if offset is None else offset.clone())

    def stream(self, parts: Iterable[Tensor]) -> Tensor:
        """Multiply the rows [n, in] of all `parts` as one read of the chip, giving [n, out] with a gradient."""
        rows = list(parts)
        matrix: MappedMatrix = vars(self)["_read_matrix"]
        with torch.no_grad():
            if not _same(matrix.gain_trim, self.gain_trim) or not _same(matrix.offset_trim, self.offset_trim):
                matrix.set_trims(self.gain_trim.clone(), self.offset_trim.clone())
            product = matrix.stream(rows)
        if not torch.is_grad_enabled():
            return product
        read: Tensor = _Read.apply(torch.cat(rows), self.gain_trim, self.offset_trim, product, matrix)
        return read

    def release(self) -> None:
        """Free cached values of the matrix that is read."""
        vars(self)["_read_matrix"].release()

    def __deepcopy__(self, memo: dict[int, Any]) -> TrainedMatrix:
        return TrainedMatrix(vars(self)["_read_matrix"], (self.gain_trim.detach(), self.offset_trim.detach()))

    def _load_from_state_dict(self, *arguments: Any) -> None:
        nn.Module._load_from_state_dict(self, *arguments)  # the trims alone

    def _apply(self, fn: Any, recurse: bool = True) -> TrainedMatrix:
        nn.Module._apply(self, fn, recurse)
        return self


def _same(trim: Tensor | None, wanted: Tensor) -> bool:
    return trim is not None and torch.equal(trim, wanted)


class _Read(torch.autograd.Function):
    """The `product` [n, out] that a chip gave for `rows` [n, in], with the gradient of the exact one.

    That is the product of the rows with the levels, times the scale and the trims: straight-through for the chip.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, gain: Tensor, offset: Tensor, product: Tensor, matrix: MappedMatrix) -> Tensor:
        ctx.save_for_backward(rows, gain)
        ctx.matrix = matrix
        return product.view_as(product)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, gain = ctx.saved_tensors
        matrix: MappedMatrix = ctx.matrix
        groups, transform, gradient = matrix.groups, matrix.input_transform, gradient.float()
        width, tile_rows = matrix.levels.shape[1], matrix.spec.tile.rows
        weight = matrix.levels * encode.scale_of_weights(matrix.scale, width, tile_rows)
        trimmed = weight * encode.scale_of_weights(gain, width, tile_rows)
        of_outputs = gradient.unflatten(1, (groups, -1))  # [n, groups, out / groups]
        of_rows = of_gain = None
        if ctx.needs_input_grad[0]:
            plain = trimmed if transform is None else transform.plain_weight(trimmed).float()
            blocks = plain.unflatten(0, (groups, -1))  # [groups, out / groups, in / groups]
            of_rows = torch.einsum("ngo,goi->ngi", of_outputs, blocks).flatten(1).to(rows.dtype)
        if ctx.needs_input_grad[1]:
            at_dac = rows.float() if transform is None else transform(rows.float())
            of_weight = torch.einsum("ngo,ngi->goi", of_outputs, at_dac.unflatten(1, (groups, -1))).flatten(0, 1)
            of_gain = encode.by_tile(of_weight * weight, tile_rows).sum(dim=2)
        return of_rows, of_gain, gradient.sum(dim=0), None, None


class _MappingOfTraining(ChipMapping):
    """The mapping of a chip in training, which a copy of the network, such as its moving average, shares."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _MappingOfTraining:
        return self


def train_digital_parts(chip: nn.Module) -> dict[str, TrainedMatrix]:
    """Prepare `chip`, in place, for a training of all that is digital, and return its matrices by name.

    Every parameter gets a gradient, and every matrix a gain for each row tile and output and an offset for each output.
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
        changed |= {f"{name}{separator}{trim}": getattr(matrix, trim).detach() for trim in TRIMS}
    return changed


def trained_matrices(chip: nn.Module) -> dict[str, TrainedMatrix]:
    """Return the matrices of a chip in training, by name."""
    return {module.name: module for module in chip.modules() if isinstance(module, TrainedMatrix)}
