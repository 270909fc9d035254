"""Refinement of levels and scales after error feedback, under the same second moments of the inputs.

With moments H, the error of an output's product by weights that are off by e is e H e^T. Coordinate descent takes one
weight after the other to the level of least error while all others stay; feedback looks ahead only, and descent at the
inputs before, too. For given levels, the scales of least error are those of linear least squares.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memsim.portable.kernels import as_array, in_threads, is_compiled, kernel
from memsim.post_training.moments import by_part

BLOCK = 64
"""Inputs whose errors are multiplied by the moments together."""

_RIDGE = 1e-6
"""The strength that draws scales towards those before the refit, relative to the mean energy of an output's tiles."""


def damped(moments: Tensor, damping: float) -> Tensor:
    """Return the `moments` [in, in], float64, with `damping` times the mean of their diagonal added to it."""
    moments = moments.double()
    return moments + damping * moments.diagonal().mean() * torch.eye(len(moments), dtype=moments.dtype)


def descend(weight: Tensor, levels: Tensor, step: Tensor, moments: Tensor, largest: int) -> tuple[Tensor, int]:
    """Return levels [out, in], float64, after one pass of coordinate descent, and the number that it changed.

    The inputs with the largest moments come first. Where none changes, no change of a single level lowers the error.

    Args:
        weight: [out, in].
        levels: the levels to start from, [out, in].
        step: the step between levels for every weight, [out, in].
        moments: the second moments of the inputs, [in, in], damped.
        largest: the largest level.
    """
    found = levels.double().clone(memory_format=torch.contiguous_format)
    order = moments.diagonal().argsort(descending=True, stable=True)
    tensors = weight.double(), step.double(), moments.double(), order
    if not is_compiled(found):
        return found, _descend_by_definition(*tensors, float(largest), found)
    own = (*map(as_array, tensors), float(largest), found.numpy())
    return found, in_threads(partial(_levels_of_outputs, own), len(found))


def _descend_by_definition(
    weight: Tensor, step: Tensor, moments: Tensor, order: Tensor, largest: float, levels: Tensor
) -> int:
    """Change the `levels` of all outputs, and return the number of those changed: `_descend` in torch operations."""
    slopes, changed = torch.zeros_like(levels), 0
    for i in range(len(order)):
        slopes += (weight[:, i] - levels[:, i] * step[:, i])[:, None] * moments[i]
    for i in order.tolist():
        if moments[i, i] <= 0:
            continue
        best = (levels[:, i] + slopes[:, i] / (moments[i, i] * step[:, i])).round().clamp(-largest, largest)
        change = (best - levels[:, i]) * step[:, i]
        slopes -= change[:, None] * moments[i]
        changed += int((best != levels[:, i]).sum())
        levels[:, i] = best
    return changed


def _levels_of_outputs(arguments: tuple[Any, ...], first: int, last: int) -> int:
    return int(_descend(*arguments, first, last))


def _descend_of(weight, step, moments, order, largest, levels, first, last):  # type: ignore[no-untyped-def]
    """Change the `levels` of the outputs `first` to `last` - 1, and return the number of those changed."""
    inputs, changed = weight.shape[1], 0
    slopes = np.zeros((last - first, inputs))  # the errors times the moments
    for start in range(0, inputs, BLOCK):
        end = min(start + BLOCK, inputs)
        for row in range(first, last):
            own = slopes[row - first]
            for i in range(start, end):
                error = weight[row, i] - levels[row, i] * step[row, i]
                for j in range(inputs):
                    own[j] += error * moments[i, j]
    for row in range(first, last):
        own = slopes[row - first]
        for i in order:
            if moments[i, i] <= 0:
                continue
            best = np.rint(levels[row, i] + own[i] / (moments[i, i] * step[row, i]))
            best = min(max(best, -largest), largest)
            if best != levels[row, i]:
                change = (best - levels[row, i]) * step[row, i]
                for j in range(inputs):
                    own[j] -= change * moments[i, j]
                levels[row, i] = best
                changed += 1
    return changed


_descend = kernel(_descend_of)


def refitted_scale(
    weight: Tensor, levels: Tensor, scale: Tensor, moments: Tensor, tile_rows: int, groups: int = 1
) -> Tensor:
    """Return the scale of least error of the product by `levels`, float32, in the shape of `scale`.

    The scales of an output's tiles are found together. They stay as they are where least squares gives one that is not
    above 0, and those of tiles without levels do.

    Args:
        weight: [out, in / groups].
        levels: [out, in / groups], or what their cells became.
        scale: the scale before, [out], [1] or [row_tiles, out].
        moments: the second moments of the inputs, damped, [parts, size, size].
        tile_rows: the number of inputs that a scale for each tile spans.
        groups: the number of blocks of the matrix.
    """
    inputs, size = weight.shape[1], moments.shape[1]
    spanned = tile_rows if scale.ndim == 2 else inputs
    tiles = -(-inputs // spanned)
    gram = torch.zeros(groups, len(weight) // groups, tiles, tiles, dtype=torch.float64)
    side = torch.zeros(groups, len(weight) // groups, tiles, dtype=torch.float64)
    blocks = (by_part(each.double(), groups, len(moments)) for each in (weight, levels))
    for part, (exact, own, second) in enumerate(zip(*blocks, moments.double(), strict=True)):
        group, start = divmod(part * size, inputs)  # the first of the part's inputs
        inside = {  # the inputs of each tile that are in the part
            tile: slice(max(tile * spanned - start, 0), (tile + 1) * spanned - start)
            for tile in range(start // spanned, -(-(start + size) // spanned))
        }
        for tile, of_tile in inside.items():
            weighted = own[:, of_tile] @ second[of_tile]  # [out, size]
            products = weighted * own
            for other, of_other in inside.items():
                gram[group, :, tile, other] += products[:, of_other].sum(dim=1)
            side[group, :, tile] += (weighted * exact).sum(dim=1)
    gram, side = gram.flatten(0, 1), side.flatten(0, 1)
    before = scale.double().T if scale.ndim == 2 else scale.double()[:, None]
    if len(before) != len(gram):  # one scale of all outputs
        gram, side = gram.sum(dim=0, keepdim=True), side.sum(dim=0, keepdim=True)
    diagonal = gram.diagonal(dim1=1, dim2=2)
    ridge = _RIDGE * diagonal.mean(dim=1, keepdim=True) + torch.finfo(torch.float64).tiny
    matrix = gram + torch.diag_embed(ridge.expand_as(diagonal))
    found = torch.linalg.solve(matrix, side + ridge * before)
    found = torch.where((found > 0).all(dim=1, keepdim=True), found, before).float()
    return found.T.contiguous() if scale.ndim == 2 else found[:, 0]
