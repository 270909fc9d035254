"""The choice of a matrix's input transform, as a mapping recipe says."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from memsim import rng
from memsim.crossbar.input_transform import InputTransform
from memsim.crossbar.statistics import InputStatistics
from memsim.hardware import HardwareSpec
from memsim.post_training.moments import part_size
from memsim.post_training.recipe import MappingRecipe

_LEAST = 1e-4  # of the largest magnitude of an input or a weight; smaller ones count as this


@dataclass(frozen=True)
class InputFit:
    """The record of what a recipe did with the inputs of one matrix.

    Attributes:
        inputs: the number of inputs.
        scaled: whether each input is divided by a scale.
        rotated: the number of inputs in rotated blocks.
        block: the number of inputs of a rotated block; 1 for no rotation.
        digital: the number of inputs whose product is computed digitally.
        operations: the digital multiplications and additions for one input vector.
        reason: why inputs stay as they are although the recipe changes them; None where there is none to give.
    """

    inputs: int
    scaled: bool = False
    rotated: int = 0
    block: int = 1
    digital: int = 0
    operations: int = 0
    reason: str | None = None


def chosen_transform(
    name: str,
    weight: Tensor,
    spec: HardwareSpec,
    recipe: MappingRecipe,
    statistics: InputStatistics | None,
    *,
    groups: int = 1,
    is_trained: bool = False,
) -> tuple[InputTransform | None, InputFit | None]:
    """Choose the input transform of matrix `name`, `weight` [out, in / groups], as `recipe` says.

    Args:
        name: the name of the matrix, which draws the signs of a rotation.
        weight: the weight in full precision.
        spec: the spec of the layer, whose tiles' rows hold the blocks of a rotation.
        recipe: the recipe.
        statistics: the inputs; without them, they are neither scaled nor computed digitally.
        groups: the number of blocks of the matrix. Inputs of grouped matrices stay as they are.
        is_trained: whether the matrix was trained with a scale for these levels or inputs, which then stay.

    Returns:
        The transform and what it is, each None where the recipe has nothing to do with inputs. The transform is None,
        too, where inputs stay as they are.
    """
    if not recipe.changes_inputs:
        return None, None
    inputs = groups * weight.shape[1]
    if reason := _why_not(recipe, statistics, groups, is_trained):
        return None, InputFit(inputs, reason=reason)
    largest, squares = (None, None) if statistics is None else _sizes(statistics)
    rows: Tensor | None = None
    values = weight.detach().cpu().float()
    if squares is not None and (count := round(recipe.digital_rows * inputs)):
        importance = squares * values.double().square().sum(dim=0)
        rows = importance.sort(descending=True, stable=True).indices[:count]
    scale: Tensor | None = None
    if largest is not None and recipe.input_scales is not None:
        scale = _scale(largest, values, rows, recipe.input_scales.strength)
        if recipe.input_scales.powers_of_two:
            scale = scale.log2().round().exp2()
    block = block_for(inputs, spec.tile.rows) if recipe.rotation == "hadamard" else 1
    if rows is None and scale is None and block == 1:
        return None, InputFit(inputs)
    signs = torch.randint(2, (inputs,), generator=rng.generator(name, "rotation")) * 2 - 1
    transform = InputTransform.make(weight, scale=scale, signs=signs, block=block, digital_rows=rows)
    return transform, describe(transform)


def describe(transform: InputTransform) -> InputFit:
    """Return what `transform` does with the inputs of its matrix."""
    unscaled = torch.ones_like(transform.factors)
    unscaled[: transform.rotated] = transform.block_size**-0.5
    is_scaled = (transform.factors != 0) & (transform.factors.abs() != unscaled)
    own = transform.rotated, transform.block_size, transform.digital, transform.operations
    return InputFit(transform.in_features, bool(is_scaled.any()), *own)


def _why_not(recipe: MappingRecipe, statistics: InputStatistics | None, groups: int, is_trained: bool) -> str | None:
    """Return why the inputs of a matrix stay as they are; None where they need not."""
    if groups > 1:
        return "a matrix of groups"
    if is_trained or (statistics is not None and statistics.full_scale is not None and not statistics.is_one_hot):
        return "trained with scales"
    if statistics is not None and statistics.is_one_hot:
        return "one-hot inputs"
    if statistics is None and recipe.rotation is None:
        return "not reached by calibration"
    return None


def block_for(inputs: int, tile_rows: int) -> int:
    """Return the block of a rotation: the largest power of 2 that divides a tile's rows and is at most `inputs`.

    No block then spans two tiles, nor two parts of the inputs' second moments.
    """
    block, part = tile_rows & -tile_rows, part_size(inputs)
    while block > inputs or (part < inputs and part % block):
        block //= 2
    return block


def _sizes(statistics: InputStatistics) -> tuple[Tensor, Tensor]:
    """Return the largest magnitude [in] of each input and its second moment [in], float64."""
    rows, weights = statistics.sample.cpu().double(), statistics.weights.cpu().double()
    if statistics.moments is not None:
        squares = statistics.moments.diagonal(dim1=1, dim2=2).flatten().cpu().double()
    else:
        squares = (rows.square() * weights[:, None]).sum(dim=0) / weights.sum()
    return rows.abs().amax(dim=0), squares


def _scale(largest: Tensor, weight: Tensor, digital_rows: Tensor | None, strength: float) -> Tensor:
    """Return the scale [in] of inputs of `largest` [in] magnitudes (SmoothQuant, Xiao et al. 2023, eq. 4).

    It is max|x_i|^strength / max|w_i|^(1 - strength), times a number that leaves the largest input as large as it is,
    so that a DAC of given full scale is used as before.
    """
    on_arrays = torch.ones(len(largest), dtype=torch.bool)
    if digital_rows is not None:
        on_arrays[digital_rows] = False
    if not on_arrays.any() or not largest[on_arrays].any() or not weight[:, on_arrays].any():
        return torch.ones(len(largest), dtype=torch.float64)
    of_inputs, of_weights = largest, weight.double().abs().amax(dim=0)
    of_inputs = of_inputs.clamp(min=_LEAST * float(of_inputs[on_arrays].max()))
    of_weights = of_weights.clamp(min=_LEAST * float(of_weights[on_arrays].max()))
    scale = of_inputs**strength / of_weights ** (1 - strength)
    return scale * ((of_inputs / scale)[on_arrays].max() / of_inputs[on_arrays].max())
