"""The levels and scales of one matrix, as a mapping recipe chooses them, and the report of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from memsim.crossbar import encode
from memsim.hardware import HardwareSpec
from memsim.post_training.allotment import Allotment
from memsim.post_training.feedback import feedback, product_errors
from memsim.post_training.inputs import InputFit
from memsim.post_training.moments import by_part, from_parts
from memsim.post_training.read_back import CellOutcomes
from memsim.post_training.recipe import FeedbackConfig, MappingRecipe
from memsim.post_training.refinement import damped, descend, refitted_scale
from memsim.post_training.scales import weighted_scale
from memsim.units import counted

TRAINED, NEAREST, FEEDBACK = "trained", "nearest", "feedback"
"""The methods of `LayerFit`: rounding to the scale of training, to a scale that was searched, and error feedback."""


@dataclass(frozen=True)
class LayerFit:
    """The record of what a recipe did with one matrix.

    Attributes:
        method: `nearest`, `feedback`, or `trained` for rounding with the scale of training.
        reason: why it is rounded although the recipe has error feedback; None where there is none to give.
        product_error: the relative error of the product by the levels, over the inputs of calibration; None where
            their second moments are not known.
        rounding_error: the same for rounding each weight, with the scales before they are refitted to levels.
        damping: the part of the mean of the moments' diagonal that was added to it.
        inputs: what it did with the inputs; None for a recipe that leaves inputs as they are.
        cells_error: the relative error of the product by what the cells became, where they were read back.
        trimmed: the number of outputs that are trimmed; None where the recipe does not trim the matrix.
        untrimmed_error: the relative error of the chip's products on the calibration rows before trims.
        trimmed_error: the same with trims, each row by trims that were fitted to others.
    """

    method: str
    reason: str | None = None
    product_error: float | None = None
    rounding_error: float | None = None
    damping: float | None = None
    inputs: InputFit | None = None
    cells_error: float | None = None
    trimmed: int | None = None
    untrimmed_error: float | None = None
    trimmed_error: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without those that are None."""
        own = {key: value for key, value in asdict(self).items() if value is not None}
        if self.inputs is not None:
            own["inputs"] = {key: value for key, value in own["inputs"].items() if value is not None}
        return own


@dataclass(frozen=True)
class MappingReport:
    """The record of what a recipe did with the layers of a network."""

    recipe: MappingRecipe
    layers: Mapping[str, LayerFit]
    seconds: float | None = field(default=None, compare=False)
    """The seconds that it took; None for a recipe that only rounds, and for a mapped file that was read."""
    chip: int | None = None
    """The seed of the chip that the levels correct, row by row as its cells were read back; None for any chip's."""
    allotment: Allotment | None = None
    """The bits, copies and digital layers that it chose; None for a recipe without `allot`."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "recipe": self.recipe.to_dict(),
            "layers": {name: fit.to_dict() for name, fit in self.layers.items()},
            **({} if self.chip is None else {"chip": self.chip}),
            **({} if self.allotment is None else {"allotment": self.allotment.to_dict()}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MappingReport:
        """Make the report that `to_dict` wrote. Raises ValueError for anything else."""
        return _REPORT.validate_python(values)

    def __str__(self) -> str:
        """A line such as `mapping feedback: 40 layers by error feedback, 2 with scales of training; 12.0 s`."""
        counts = Counter(fit.method for fit in self.layers.values())
        said = [f"{counted(counts[method], 'layer')} {words}" for method, words in _WORDS.items() if counts[method]]
        said += _said_of_inputs([fit.inputs for fit in self.layers.values() if fit.inputs is not None])
        took = "" if self.seconds is None else f"; {self.seconds:.1f} s"
        if read := sum(fit.cells_error is not None for fit in self.layers.values()):
            said.append(f"cells read back row by row in {read}")
        trims = [fit.trimmed for fit in self.layers.values() if fit.trimmed is not None]
        if trims:
            said.append(f"{counted(sum(trims), 'output')} trimmed in {len(trims)}")
        if self.allotment is not None:
            said.append(str(self.allotment))
        return f"mapping {self.recipe.name}: {', '.join(said)}{took}"


def _said_of_inputs(fits: Sequence[InputFit]) -> list[str]:
    """Return phrases that say how the inputs of layers were changed: `inputs of 40 rotated`."""
    numbers = {
        "scaled": sum(fit.scaled for fit in fits),
        "rotated": sum(fit.block > 1 for fit in fits),
        "as they are": sum(fit.reason is not None for fit in fits),
    }
    said = [f"inputs of {count} {words}" for words, count in numbers.items() if count]
    if digital := sum(fit.digital for fit in fits):
        said.append(f"{digital / sum(fit.inputs for fit in fits):.2%} of the inputs digital")
    return said


_WORDS = {
    FEEDBACK: "by error feedback",
    NEAREST: "by rounding to nearest",
    TRAINED: "with scales of training, by rounding to nearest",
}
_REPORT = TypeAdapter(MappingReport)


@dataclass(frozen=True)
class FittedMatrix:
    """The levels of a matrix [out, in / groups], its scale, what the recipe did, and an offset [out] of the outputs."""

    levels: Tensor
    scale: Tensor
    fit: LayerFit
    offset: Tensor | None = None


def fitted(
    weight: Tensor,
    spec: HardwareSpec,
    recipe: MappingRecipe,
    moments: Tensor | None = None,
    trained: Tensor | None = None,
    groups: int = 1,
    why_without: str | None = None,
    cells: CellOutcomes | None = None,
    mean: Tensor | None = None,
    measured: Tensor | None = None,
) -> FittedMatrix:
    """Fit `weight` [out, in / groups] to the levels of the resolved `spec` as `recipe` says.

    Args:
        weight: the matrix, or its blocks one below the other.
        spec: the spec of the layer, with its bits chosen.
        recipe: the recipe.
        moments: the second moments of the inputs, [parts, size, size]: of each group, or of the parts of all groups.
            Without them weights are rounded.
        trained: the scale of training, which is kept, and whose levels are the nearest ones.
        groups: the number of blocks.
        why_without: the reason why there are no moments.
        cells: what the cells become, which feedback reads back; None to take the levels for it.
        mean: the mean of the inputs, [groups, in / groups], about which `moments` are centred: what the levels leave
            out of the mean of an output becomes its offset. None for moments that are not centred, and no offsets.
        measured: the second moments of the calibration inputs themselves, for the errors in the report, where `moments`
            are an estimate of those that other inputs have, too; None for `moments`.
    """
    bits, config, tile_rows = encode.bits_of(spec), spec.weights, spec.tile.rows
    if trained is not None:
        return _rounded(weight, trained, spec, LayerFit(TRAINED))
    if moments is None or not recipe.needs_moments:
        reason = why_without if recipe.needs_moments else None
        return _rounded(weight, encode.fit_scale(weight, bits, config, tile_rows), spec, LayerFit(NEAREST, reason))
    moments = moments.cpu()
    measured = moments if measured is None else measured.cpu()
    values = weight.detach().cpu().float()
    if recipe.scale_error == "inputs" and config.scale_method == "mse":
        scale = _weighted_scale(values, moments.diagonal(dim1=1, dim2=2).reshape(groups, -1), spec)
    else:
        scale = encode.fit_scale(values, bits, config, tile_rows)
    step = encode.scale_of_weights(scale, values.shape[1], tile_rows).expand_as(values)
    nearest = encode.quantise(values, scale, bits, tile_rows)
    levels, damping = nearest, None
    if recipe.feedback is not None:
        largest, by_importance = encode.max_level(bits), recipe.feedback.order == "importance"
        found, dampings = [], []
        blocks = by_part(values, groups, len(moments)), by_part(step, groups, len(moments)), moments
        for part, (rows, steps, own) in enumerate(zip(*blocks, strict=True)):
            own_cells = None if cells is None else _of_part(cells, part, len(moments), groups)
            own_levels, used = feedback(
                rows,
                steps,
                own,
                largest,
                recipe.feedback.damping,
                by_importance=by_importance,
                cells=own_cells,
            )
            found.append(own_levels)
            dampings.append(used)
        levels, damping = from_parts(torch.stack(found), groups).to(nearest.dtype), max(dampings)
    rounding_error = _error(values, nearest * step.double(), measured, mean, groups)
    if recipe.feedback is not None and damping is not None:
        levels, scale = _refined(values, levels, scale, moments, spec, recipe.feedback, damping, cells, groups)
    step = encode.scale_of_weights(scale, values.shape[1], tile_rows).double()
    method = NEAREST if recipe.feedback is None else FEEDBACK
    became = levels * step
    fit = LayerFit(method, None, _error(values, became, measured, mean, groups), rounding_error, damping)
    if cells is not None and recipe.reads_back:
        became = cells.became(levels) * step
        fit = replace(fit, cells_error=_error(values, became, measured, mean, groups))
    used_scale = encode.without_idle_channels(scale, levels, tile_rows)
    offset = None if mean is None else _means(values - became, mean).float().to(weight.device)
    return FittedMatrix(levels.to(weight.device), used_scale.to(weight.device), fit, offset)


def _of_part(cells: CellOutcomes, part: int, parts: int, groups: int) -> CellOutcomes:
    """Return the outcomes of the cells of one of the `parts` of all `groups` of a matrix."""
    group, place = divmod(part, parts // groups)
    outputs, size = cells.states.shape[5] // groups, cells.states.shape[4] * groups // parts
    return cells.outputs(group * outputs, (group + 1) * outputs).inputs(place * size, (place + 1) * size)


def _means(weight: Tensor, mean: Tensor) -> Tensor:
    """Return the means [out], float64, of the products by `weight` [out, in / groups] for those of the inputs."""
    blocks = weight.double().unflatten(0, (len(mean), -1))
    means: Tensor = (blocks @ mean.cpu().double()[..., None]).flatten()
    return means


def _refined(
    weight: Tensor,
    levels: Tensor,
    scale: Tensor,
    moments: Tensor,
    spec: HardwareSpec,
    config: FeedbackConfig,
    damping: float,
    cells: CellOutcomes | None,
    groups: int,
) -> tuple[Tensor, Tensor]:
    """Return the levels [out, in / groups] and the scale after the descent and the refits of `config`.

    The levels of cells that are read back stay, as these are programmed, and scales are refitted to what they became.
    """
    moments = torch.stack([damped(own, damping) for own in moments])
    parts, tile_rows, largest = len(moments), spec.tile.rows, encode.max_level(encode.bits_of(spec))
    passes = config.passes if cells is None else 0
    for done in range(passes + 1):
        if config.refit_scales:
            became = levels if cells is None else cells.became(levels)
            scale = refitted_scale(weight, became, scale, moments, tile_rows, groups)
        if done == passes:
            break
        step = encode.scale_of_weights(scale, weight.shape[1], tile_rows).expand_as(weight)
        exact, own, steps = (by_part(each, groups, parts) for each in (weight, levels, step))
        found = [descend(*block, largest) for block in zip(exact, own, steps, moments, strict=True)]
        levels = from_parts(torch.stack([own for own, _ in found]), groups).to(levels.dtype)
        if not any(changed for _, changed in found):
            break
    return levels, scale


def _error(weight: Tensor, found: Tensor, moments: Tensor, mean: Tensor | None, groups: int) -> float:
    """Return the relative error of the product by `found` [out, in / groups] in place of `weight`.

    Where `moments` are centred about a `mean`, an offset takes out the error of the mean.
    """
    square, parts = 0.0, len(moments)
    whole = 0.0 if mean is None else float(_means(weight, mean).square().sum())
    blocks = by_part(found - weight, groups, parts), by_part(weight, groups, parts), moments
    for rows, exact, own in zip(*blocks, strict=True):
        square += float(product_errors(rows, own).sum())
        whole += float(product_errors(exact, own).sum())
    return math.sqrt(max(square, 0.0) / whole) if whole > 0 else 0.0


def _rounded(weight: Tensor, scale: Tensor, spec: HardwareSpec, fit: LayerFit) -> FittedMatrix:
    levels = encode.quantise(weight, scale, encode.bits_of(spec), spec.tile.rows)
    return FittedMatrix(levels, encode.without_idle_channels(scale, levels, spec.tile.rows), fit)


def _weighted_scale(weight: Tensor, importance: Tensor, spec: HardwareSpec) -> Tensor:
    """Return the scale as the spec shapes it, of least error weighted with the `importance` [groups, in / groups]."""
    largest = encode.max_level(encode.bits_of(spec))
    if spec.weights.scale == "per_tensor":
        each = importance.repeat_interleave(len(weight) // len(importance), dim=0)
        scale = weighted_scale(weight.reshape(-1, 1), each.reshape(-1), largest)
    else:
        inputs = weight.shape[1]
        size = spec.tile.rows if spec.weights.scale == "per_tile" else inputs
        parts = [slice(first, first + size) for first in range(0, inputs, size)]
        blocks = list(zip(weight.chunk(len(importance)), importance, strict=True))
        tiles = [
            torch.cat([weighted_scale(rows[:, part].T, own[part], largest) for rows, own in blocks]) for part in parts
        ]
        scale = torch.stack(tiles) if spec.weights.scale == "per_tile" else tiles[0]
    return torch.where(scale > 0, scale, torch.ones_like(scale))
