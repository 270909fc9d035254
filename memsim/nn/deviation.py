"""How far a matrix on arrays is from the exact product of the same inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memsim.crossbar.matrix import MappedMatrix
from memsim.crossbar.read_context import ReadContext
from memsim.crossbar.statistics import InputStatistics


@dataclass(frozen=True)
class Deviation:
    """Relative L2 errors of the product of one matrix on its calibration inputs, of all or of the median one.

    Attributes:
        to_digital: of the chip against the quantised digital result: the same rounded weights and inputs.
        to_full_precision: of the chip against the weights before they were rounded; None where nobody knows them.
    """

    to_digital: float
    to_full_precision: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"to_digital": self.to_digital, "to_full_precision": self.to_full_precision}


def deviation(
    matrix: MappedMatrix, statistics: InputStatistics, weight: Tensor | None = None, seed: int = 0
) -> Deviation:
    """The deviation of a calibrated `matrix`, on the rows that `statistics` keep of its inputs.

    `weight` [out, in / groups] is that of full precision. `seed` is that of the chip.
    """
    rows = statistics.sample.to(matrix.levels.device)
    twin = matrix.under(matrix.spec.digital_twin(), seed, statistics)
    digital = twin(rows).double()
    to_digital = _deviation(*row_squares(matrix, statistics, digital, seed), statistics.weights)
    if weight is None:
        return Deviation(to_digital, None)
    squares = row_squares(matrix, statistics, exact_product(matrix, rows, weight), seed)
    return Deviation(to_digital, _deviation(*squares, statistics.weights))


def _deviation(errors: Tensor, sizes: Tensor, weights: Tensor) -> float:
    """The relative error of all rows together or, where it is larger, of the typical row (the median).

    A few rows of large norm must not hide that all others are lost. `errors` and `sizes` are those of `row_squares`.
    """
    driven = sizes > 0
    if not driven.any():
        return 0.0
    whole = math.sqrt(float(errors.sum() / sizes.sum()))
    each, order = (errors[driven] / sizes[driven]).sqrt().sort()
    counted = weights.to(sizes.device)[driven][order].cumsum(0)
    typical = float(each[int((counted < counted[-1] / 2).sum())])
    return max(whole, typical) if math.isfinite(whole) and math.isfinite(typical) else MOST


MOST = 1e9
"""The deviation of a product that is not even finite."""


def exact_product(matrix: MappedMatrix, rows: Tensor, weight: Tensor) -> Tensor:
    """[n, out], float64: inputs [n, in] times `weight` [out, in / groups], the blocks of `matrix`."""
    inputs = rows.double().unflatten(1, (matrix.groups, -1))
    blocks = weight.to(rows.device).double().unflatten(0, (matrix.groups, -1))
    return torch.einsum("ngi,goi->ngo", inputs, blocks).flatten(1)


def product_error(matrix: MappedMatrix, statistics: InputStatistics, wanted: Tensor, seed: int) -> float:
    """||product - wanted|| / ||wanted|| over the rows that `statistics` keep; 0 where `wanted` [n, out] is 0."""
    errors, sizes = (float(squares.sum()) for squares in row_squares(matrix, statistics, wanted, seed))
    return math.sqrt(errors / sizes) if sizes else 0.0


def row_squares(matrix: MappedMatrix, statistics: InputStatistics, wanted: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """||product - wanted||^2 and ||wanted||^2 of each row that `statistics` keep [n], times the rows it stands for.

    Read noise depends on nothing but the seed and the matrix.
    """
    weights = statistics.weights.to(wanted.device).double()
    own = matrix.reads
    matrix.reads = ReadContext(seed, batch="budget")
    try:
        product = matrix(statistics.sample.to(wanted.device)).double()
    finally:
        matrix.reads = own
    matrix.release()
    return (product - wanted).square().sum(dim=1) * weights, wanted.square().sum(dim=1) * weights


TOO_FAR = 0.25
"""From this deviation on, a layer is warned of.

At 3 bits `demo-float`, which then works, has .14 in the mean and .19 in its worst layer; Whisper tiny.en at 4 bits,
which then loops or is silent, .15 and .35; `demo-float` at 2 bits, of which nothing is left, .32 and .39.
"""


def exclude_options(names: Sequence[str]) -> str:
    """What to type to keep these layers digital."""
    return " ".join(f"--exclude {name}" for name in names)


def exclude_argument(names: Sequence[str]) -> str:
    """What to give `map_model` to keep these layers digital."""
    return f"exclude={list(names)}"


def deviating(
    deviations: Mapping[str, Deviation], exclude: Callable[[Sequence[str]], str] = exclude_argument
) -> str | None:
    """A warning that names the matrices that deviate by TOO_FAR or more, with a remedy; None where none does."""
    names = [name for name in worst(deviations) if largest(deviations[name]) >= TOO_FAR]
    if not names:
        return None
    shown = ", ".join(f"{name} ({largest(deviations[name]):.0%})" for name in names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (
        f"the products of {shown}{more} on arrays are further than {TOO_FAR:.0%} from the exact ones, so the network "
        f"may not work: use more bits, better programming, or keep them digital: {exclude(names[:8])}"
    )


def worst(deviations: Mapping[str, Deviation]) -> list[str]:
    """Their names, the largest deviation from full precision (where it is not known, from digital) first."""
    return sorted(deviations, key=lambda name: -largest(deviations[name]))


def largest(found: Deviation) -> float:
    """The deviation that tells most: from full precision where that is known, else from digital."""
    return found.to_digital if found.to_full_precision is None else found.to_full_precision
