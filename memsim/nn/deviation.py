"""Deviations of the products of matrices on arrays from the exact products of the same inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memsim.crossbar.matrix import MappedMatrix
from memsim.crossbar.read_context import ReadContext
from memsim.crossbar.statistics import InputStatistics


@dataclass(frozen=True)
class Deviation:
    """Relative L2 errors of one matrix's product on its calibration inputs.

    Each is the error of all inputs together or that of the median input, whichever is larger.

    Attributes:
        to_digital: from the quantised digital result, which has the same rounded weights and inputs.
        to_full_precision: from the product of the weights before rounding; None where these are not known.
    """

    to_digital: float
    to_full_precision: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"to_digital": self.to_digital, "to_full_precision": self.to_full_precision}


def deviation(
    matrix: MappedMatrix, statistics: InputStatistics, weight: Tensor | None = None, seed: int = 0
) -> Deviation:
    """Return the deviation of a calibrated `matrix` on the rows of its inputs that `statistics` keep.

    `weight` [out, in / groups] is the weight in full precision, `seed` the chip's.
    """
    rows = statistics.sample.to(matrix.levels.device)
    twin = matrix.under(matrix.spec.digital_twin(), seed, statistics)
    product = _product(matrix, rows, seed)

    def far_from(wanted: Tensor) -> float:
        return _deviation(*_row_squares(product, statistics, wanted), statistics.weights)

    to_digital = far_from(twin(rows).double())
    return Deviation(to_digital, None if weight is None else far_from(exact_product(matrix, rows, weight)))


def _deviation(errors: Tensor, sizes: Tensor, weights: Tensor) -> float:
    """Return the relative error of all rows together or, where it is larger, of the median row.

    A few rows of large norm can hide that all others are lost; the median shows it. `errors` and `sizes` [n] come from
    `row_squares`, `weights` [n] is the number of inputs that a row stands for.
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
"""The deviation of a product that is not finite."""


def exact_product(matrix: MappedMatrix, rows: Tensor, weight: Tensor | None) -> Tensor:
    """Multiply inputs [n, in] by `weight` [out, in / groups], the blocks of `matrix`, giving [n, out] in float64.

    Without a weight, it is the exact product of the levels and scales of `matrix`, with its offset.
    """
    if weight is None:
        product = exact_product(matrix, rows, matrix.quantised_weight())
        return product if matrix.offset is None else product + matrix.offset.to(rows.device)
    inputs = rows.double().unflatten(1, (matrix.groups, -1))
    blocks = weight.to(rows.device).double().unflatten(0, (matrix.groups, -1))
    return torch.einsum("ngi,goi->ngo", inputs, blocks).flatten(1)


def product_error(matrix: MappedMatrix, statistics: InputStatistics, wanted: Tensor, seed: int) -> float:
    """Return ||product - wanted|| / ||wanted|| over the rows that `statistics` keep; 0 where `wanted` [n, out] is 0."""
    errors, sizes = (float(squares.sum()) for squares in row_squares(matrix, statistics, wanted, seed))
    return math.sqrt(errors / sizes) if sizes else 0.0


def row_squares(matrix: MappedMatrix, statistics: InputStatistics, wanted: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return ||product - wanted||^2 and ||wanted||^2 [n] of the rows that `statistics` keep.

    Each is multiplied by the number of inputs that its row stands for. Read noise depends on the seed and the matrix
    alone.
    """
    return _row_squares(_product(matrix, statistics.sample.to(wanted.device), seed), statistics, wanted)


def _product(matrix: MappedMatrix, rows: Tensor, seed: int) -> Tensor:
    """Read `rows` [n, in] with the noise of this seed, giving [n, out] in float64; `matrix` keeps nothing of it."""
    own = matrix.reads
    matrix.reads = ReadContext(seed, batch="budget")
    try:
        product: Tensor = matrix(rows).double()
    finally:
        matrix.reads = own
    matrix.release()
    return product


def _row_squares(product: Tensor, statistics: InputStatistics, wanted: Tensor) -> tuple[Tensor, Tensor]:
    weights = statistics.weights.to(wanted.device).double()
    return (product - wanted).square().sum(dim=1) * weights, wanted.square().sum(dim=1) * weights


TOO_FAR = 0.25
"""The deviation from which a layer is named in a warning.

`demo-float` at 3 bits, which works, deviates by 0.14 in the mean and by 0.19 in its worst layer; Whisper tiny.en at
4 bits, which loops or is silent, by 0.15 and 0.35; `demo-float` at 2 bits, which recognises nothing, by 0.32 and 0.39.
"""


def deviating(deviations: Mapping[str, Deviation], for_command: bool = False) -> str | None:
    """Return a warning that names the matrices that deviate by TOO_FAR or more, with a remedy; None without any.

    The remedy is an argument of `map_model` or, `for_command`, the options of `memsim map`.
    """
    names = [name for name in worst(deviations) if largest(deviations[name]) >= TOO_FAR]
    if not names:
        return None
    exclude = " ".join(f"--exclude {name}" for name in names[:8]) if for_command else f"exclude={names[:8]}"
    shown = first_few([f"{name} ({largest(deviations[name]):.0%})" for name in names])
    return (
        f"the products of {shown} on arrays are further than {TOO_FAR:.0%} from the exact ones, so the network "
        f"may not work: use more bits, better programming, or keep them digital: {exclude}"
    )


def first_few(names: Sequence[str]) -> str:
    """Return the first three names, and the number of others: `a, b, c and 2 more`."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def worst(deviations: Mapping[str, Deviation]) -> list[str]:
    """Return the names of the matrices, the one with the largest deviation first."""
    return sorted(deviations, key=lambda name: -largest(deviations[name]))


def largest(found: Deviation) -> float:
    """Return the deviation from full precision where it is known, else from digital."""
    return found.to_digital if found.to_full_precision is None else found.to_full_precision
