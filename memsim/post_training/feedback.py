"""Error feedback (GPTQ, Frantar et al., ICLR 2023) on the levels of arrays.

The inputs of a matrix are taken one after the other. The weights of each are rounded, and their errors are made up for
by the weights of the inputs that are still to come, as well as these can: with second moments H of the inputs, the
least-squares change of the later weights is a row of U / U_ii, where U is the upper triangular factor of H^-1 = U^T U.
With cells that are read back, an error is that of what the cells of the weight became, and no longer of its level.

Everything after the factor is computed by kernels that round each operation by itself, in one order whatever the number
of threads. The factor is LAPACK's, whose sums depend on the machine and on its threads; it is rounded to float32, so
that the last bits of its sums hardly ever reach a level. The same machine gives the same levels.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memsim.portable.kernels import as_array, in_threads, inlined, is_compiled, kernel
from memsim.post_training.read_back import CellOutcomes

BLOCK = 128
"""Inputs whose errors reach the weights of later inputs together."""

_OUTPUTS_AT_ONCE = 1024
"""Outputs whose cells are looked up together, which bounds the memory that they take."""
_MOST_TRIES = 8


def feedback(
    weight: Tensor,
    step: Tensor,
    moments: Tensor,
    largest: int,
    damping: float,
    *,
    by_importance: bool = True,
    cells: CellOutcomes | None = None,
) -> tuple[Tensor, float]:
    """Return levels [out, in], float64, of least error of the product, and the damping that was used.

    An output whose levels by feedback are further from the exact product than by rounding is rounded, unless its cells
    are read back: they are programmed when the error is known.

    Args:
        weight: [out, in].
        step: the step between levels for every weight, [out, in].
        moments: the second moments of the inputs, [in, in].
        largest: the largest level.
        damping: the part of the mean of the moments' diagonal that is added to it. It is raised by factors of ten
            where moments that have no inverse need more.
        by_importance: take the inputs with the largest moments first, and otherwise as they are given.
        cells: what the cells become, which is read back input by input; None to take the levels for it. A level never
            depends on what its own cells, or those of later inputs, become.
    """
    exact, step = weight.double(), step.double()
    rounded = (exact / step).round().clamp(-largest, largest)
    moments = moments.double()
    diagonal = moments.diagonal()
    if not (diagonal > 0).any():
        return rounded, damping
    order = diagonal.argsort(descending=True, stable=True) if by_importance else torch.arange(len(diagonal))
    factor, damping = _factor(moments[order][:, order], damping)
    values, steps = exact[:, order].contiguous(), step[:, order].contiguous()
    found = torch.empty_like(values)
    for first in range(0, len(values), _OUTPUTS_AT_ONCE):
        last = min(first + _OUTPUTS_AT_ONCE, len(values))
        parts = _NO_CELLS if cells is None else cells.outputs(first, last).parts()
        cell_bits = 1 if cells is None else cells.cell_bits
        rows = values[first:last], steps[first:last], factor
        if is_compiled(values):
            own = (*map(as_array, rows), float(largest), as_array(parts), as_array(order), cell_bits)
            in_threads(partial(_outputs, (*own, found[first:last].numpy())), last - first)
        else:
            _feed_back_by_definition(*rows, float(largest), parts, order, cell_bits, found[first:last])
    levels = torch.empty_like(found)
    levels[:, order] = found
    if cells is not None:
        return levels, damping
    is_better = product_errors(levels * step - exact, moments) < product_errors(rounded * step - exact, moments)
    return torch.where(is_better[:, None], levels, rounded), damping


_NO_CELLS = torch.zeros(0, 0, 2, 0, 1)


def _feed_back_by_definition(
    values: Tensor,
    steps: Tensor,
    factor: Tensor,
    largest: float,
    parts: Tensor,
    order: Tensor,
    cell_bits: int,
    levels: Tensor,
) -> None:
    """Write the `levels` of all rows of `values` [out, in], which are overwritten: `_feed_back` in torch operations."""
    inputs, factor = values.shape[1], factor.double()
    for start in range(0, inputs, BLOCK):
        end = min(start + BLOCK, inputs)
        errors = torch.empty(len(values), end - start, dtype=torch.float64)
        for i in range(start, end):
            level = (values[:, i] / steps[:, i]).round().clamp(-largest, largest)
            became = level
            if parts.shape[3]:
                became = _became_by_definition(parts[:, order[i]].double(), level.long(), cell_bits)
            error = values[:, i] - became * steps[:, i]
            levels[:, i], errors[:, i - start] = level, error
            values[:, i + 1 : end] -= error[:, None] * factor[i, i + 1 : end]
        if end == inputs:
            break
        for i in range(0, BLOCK, 4):
            made_up = [errors[:, i + j, None] * factor[start + i + j, end:] for j in range(4)]
            values[:, end:] -= (made_up[0] + made_up[1]) + (made_up[2] + made_up[3])


def _became_by_definition(parts: Tensor, levels: Tensor, cell_bits: int) -> Tensor:
    """Return what the cells of `levels` [out] are, of `parts` [out, 2, slices, digits]: `_became` for all outputs."""
    total = torch.zeros(len(levels), dtype=torch.float64)
    for slice_ in range(parts.shape[2]):
        positive, negative = (
            parts[:, polarity, slice_].gather(
                1, (sign * levels).clamp(min=0)[:, None] >> (slice_ * cell_bits) & (parts.shape[3] - 1)
            )[:, 0]
            for polarity, sign in enumerate((1, -1))
        )
        total += positive - negative
    return total


def _outputs(arguments: tuple[Any, ...], first: int, last: int) -> int:
    _feed_back(*arguments, first, last)
    return 0


def product_errors(change: Tensor, moments: Tensor) -> Tensor:
    """Return the mean square [out] of a product's errors by a `change` [out, in] of weights, over the inputs."""
    change, moments = change.float(), moments.float()
    return ((change @ moments) * change).sum(dim=1)


def _factor(moments: Tensor, damping: float) -> tuple[Tensor, float]:
    """Return U / diag(U) [in, in], float32, for H^-1 = U^T U of the damped `moments` [in, in], and the damping."""
    mean = moments.diagonal().mean()
    for _ in range(_MOST_TRIES):
        damped = moments + damping * mean * torch.eye(len(moments), dtype=moments.dtype)
        # H = R R^T with R upper triangular, by Cholesky's factor of the inputs in reverse; then U = R^-1
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not failed:
            break
        damping *= 10
    else:
        raise ValueError("the second moments are not those of any inputs")
    upper = torch.linalg.solve_triangular(lower.flip(0, 1), torch.eye(len(moments), dtype=moments.dtype), upper=True)
    return (upper / upper.diagonal()[:, None]).float(), damping


@inlined
def _became(parts, row, place, level, cell_bits):  # type: ignore[no-untyped-def]
    """Return what the cells of `level` are, in units of the level: see `CellOutcomes.became`."""
    slices, digits = parts.shape[3], parts.shape[4]
    if slices == 0:
        return level
    magnitude, total = np.int64(abs(level)), 0.0
    for slice_ in range(slices):
        digit = (magnitude >> (slice_ * cell_bits)) & (digits - 1)
        positive, negative = (digit, 0) if level > 0 else (0, digit)
        total += np.float64(parts[row, place, 0, slice_, positive]) - np.float64(parts[row, place, 1, slice_, negative])
    return total


def _feed_back_of(values, steps, factor, largest, parts, places, cell_bits, levels, first, last):  # type: ignore[no-untyped-def]
    """Write the `levels` of rows `first` to `last` - 1 of `values` [out, in], which are overwritten.

    `parts` are those of `CellOutcomes.parts`, without slices where levels are taken for what cells become, and
    `places` [in] are the inputs of their columns.
    """
    inputs = values.shape[1]
    errors = np.empty(BLOCK)
    for start in range(0, inputs, BLOCK):
        end = min(start + BLOCK, inputs)
        for row in range(first, last):
            for i in range(start, end):
                step = steps[row, i]
                level = min(max(np.rint(values[row, i] / step), -largest), largest)
                error = values[row, i] - _became(parts, row, places[i], level, cell_bits) * step
                levels[row, i], errors[i - start] = level, error
                for j in range(i + 1, end):
                    values[row, j] -= error * factor[i, j]
            for i in range(0, BLOCK, 4):  # four at once, so that values are loaded and stored less often
                if end == inputs:
                    break
                first_, second, third, fourth = errors[i], errors[i + 1], errors[i + 2], errors[i + 3]
                at = start + i
                for j in range(end, inputs):
                    made_up = first_ * factor[at, j] + second * factor[at + 1, j]
                    values[row, j] -= made_up + (third * factor[at + 2, j] + fourth * factor[at + 3, j])


_feed_back = kernel(_feed_back_of)
