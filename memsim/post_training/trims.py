"""Trims: gains and offsets of one programmed chip's outputs, fitted to its own reads of calibration inputs.

The chip's noiseless results are compared with the exact products of the same inputs, and the gain of each output (of
each row tile and output) and its offset are fitted by ridge regression. All gains are drawn towards the one that suits
the whole matrix best, by a strength that is chosen by held-out rows, as is whether an output is trimmed at all. Trims
take out what is static: the mean error of programming, IR drop, offsets of converters, drift of all cells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from memsim.crossbar.matrix import MappedMatrix
from memsim.crossbar.statistics import InputStatistics

STRENGTHS = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, math.inf)
"""Strengths of the ridge that are tried, relative to the energy of a result; infinite: one gain for the matrix."""

NEGLIGIBLE = 1e-9
"""The share of an output's energy by which its held-out error must fall to be trimmed; sums are rounded by less."""

FOLDS = 5
LEAST_ROWS = 2 * FOLDS
"""Fewer sample rows than these leave a matrix without trims."""


@dataclass(frozen=True)
class Trims:
    """The trims of a matrix.

    Attributes:
        gain: [row_tiles, out], float32.
        offset: [out], float32, in units of the output.
        outputs: the number of outputs that are trimmed; the others have gains of 1 and an offset of 0.
        untrimmed_error: the relative error of the products of the sample rows without trims.
        trimmed_error: the same with trims that were fitted to other rows.
    """

    gain: Tensor
    offset: Tensor
    outputs: int
    untrimmed_error: float
    trimmed_error: float


def can_trim(matrix: MappedMatrix, statistics: InputStatistics) -> bool:
    """Return whether there is anything to trim, and enough rows to see it.

    Ideal cells without an ADC make no static errors, and one-hot inputs see a single row of cells each.
    """
    has_errors = matrix.spec.cell != "ideal" or matrix.spec.adc is not None
    return has_errors and not statistics.is_one_hot and len(statistics.sample) >= LEAST_ROWS


@torch.no_grad()
def fit_trims(
    matrix: MappedMatrix,
    statistics: InputStatistics,
    wanted: Tensor,
    by_tile: bool,
    seed: int,
    one_gain: bool = False,
) -> Trims:
    """Fit the trims of a calibrated `matrix`, which is left as it is, to the rows that `statistics` keep.

    Args:
        matrix: the matrix, programmed from `seed`; trims that it has are not used.
        statistics: the inputs. Each row of the sample counts as many times as it stands for.
        wanted: the exact products of the sample, [n, out].
        by_tile: fit a gain for each row tile and output, instead of one for each output.
        seed: the seed of the chip.
        one_gain: fit one gain for the whole matrix, and no offsets.
    """
    results = tile_results(matrix, statistics.sample, seed) if by_tile else _whole_results(matrix, statistics, seed)
    wanted, weights = wanted.cpu().double(), statistics.weights.cpu().double()
    size = float((wanted.square() * weights[:, None]).sum())
    if (digital := matrix.digital_product(statistics.sample.to(matrix.levels.device))) is not None:
        wanted = wanted - digital.double().cpu()  # trims are of what the arrays give
    if matrix.offset is not None:
        wanted = wanted - matrix.offset.cpu().double()
    folds = torch.arange(len(wanted)) % FOLDS
    problems = [
        _Problem.of(results[folds == fold], wanted[folds == fold], weights[folds == fold]) for fold in range(FOLDS)
    ]
    everything = sum(problems[1:], problems[0])
    rest = [everything - problem for problem in problems]
    none, strengths = everything.untrimmed(), (math.inf,) if one_gain else STRENGTHS
    errors = torch.stack(
        [
            torch.stack([part.errors(other.solved(strength)) for part, other in zip(problems, rest, strict=True)])
            for strength in strengths
        ]
    ).sum(dim=1)  # [strengths, out], of the folds that were held out
    best = int(errors.sum(dim=1).argmin())
    before = everything.errors(none)
    helped = before - errors[best] > NEGLIGIBLE * everything.squares
    if one_gain:
        helped = ((before - errors[best]).sum() > NEGLIGIBLE * everything.squares.sum()).expand_as(helped)
    found = torch.where(helped[:, None], everything.solved(strengths[best]), none)  # [out, tiles + 1]
    after = torch.where(helped, errors[best], before)

    def relative(squares: Tensor) -> float:
        return math.sqrt(max(float(squares.sum()), 0.0) / size) if size > 0 else 0.0

    gain = found[:, :-1].T.expand(matrix.tiling.row_tiles, -1)
    return Trims(gain.float().clone(), found[:, -1].float(), int(helped.sum()), relative(before), relative(after))


def tile_results(matrix: MappedMatrix, rows: Tensor, seed: int) -> Tensor:
    """Return the noiseless results of each row tile for inputs [n, in], without trims: [n, row_tiles, out], float64.

    Their sum over the tiles is the product without the offset. `matrix` was programmed from `seed`, and keeps nothing
    of this.
    """
    quiet, tiles = _quiet(matrix, seed), matrix.tiling.row_tiles
    rows, results = rows.to(matrix.levels.device), []
    for tile in range(tiles):
        alone = torch.zeros(tiles, matrix.out_features)
        alone[tile] = 1.0
        quiet.set_trims(alone, None)
        results.append(_of_arrays(quiet, rows))
    return torch.stack(results, dim=1)


def _whole_results(matrix: MappedMatrix, statistics: InputStatistics, seed: int) -> Tensor:
    """Return the noiseless products of the sample without trims and offset, [n, 1, out], float64."""
    quiet = _quiet(matrix, seed)
    quiet.set_trims(None, None)
    return _of_arrays(quiet, statistics.sample.to(matrix.levels.device))[:, None]


def _of_arrays(matrix: MappedMatrix, rows: Tensor) -> Tensor:
    """Return what the arrays give for inputs [n, in], without the inputs whose product is digital: [n, out]."""
    product: Tensor = matrix(rows).double()
    if (digital := matrix.digital_product(rows)) is not None:
        product = product - digital
    return product.cpu()


def _quiet(matrix: MappedMatrix, seed: int) -> MappedMatrix:
    """Return `matrix` on the same cells and converters without read noise and offset."""
    quiet = matrix.under(matrix.spec.model_copy(update={"read_noise": None}), seed)
    quiet.offset = None
    return quiet


@dataclass(frozen=True)
class _Problem:
    """The least-squares problems of all outputs over some rows; the last unknown of each is its offset."""

    grams: Tensor  # [out, tiles + 1, tiles + 1]
    sides: Tensor  # [out, tiles + 1]
    squares: Tensor  # [out], of the wanted products

    @classmethod
    def of(cls, results: Tensor, wanted: Tensor, weights: Tensor) -> _Problem:
        """Make the problems of `results` [n, tiles, out] for `wanted` [n, out]; rows count `weights` [n] times."""
        features = torch.cat([results, torch.ones_like(results[:, :1])], dim=1).permute(2, 0, 1)  # [out, n, tiles + 1]
        weighted = (features * weights[:, None]).mT
        sides = (weighted @ wanted.T[..., None])[..., 0]
        return cls(weighted @ features, sides, (wanted.square() * weights[:, None]).sum(dim=0))

    def __add__(self, other: _Problem) -> _Problem:
        return _Problem(self.grams + other.grams, self.sides + other.sides, self.squares + other.squares)

    def __sub__(self, other: _Problem) -> _Problem:
        return _Problem(self.grams - other.grams, self.sides - other.sides, self.squares - other.squares)

    def untrimmed(self) -> Tensor:
        """Return gains of 1 and offsets of 0, [out, tiles + 1]."""
        trims = torch.ones_like(self.sides)
        trims[:, -1] = 0
        return trims

    def errors(self, trims: Tensor) -> Tensor:
        """Return the summed squares of the errors [out] that `trims` [out, tiles + 1] leave."""
        products = (self.grams @ trims[..., None])[..., 0]
        return self.squares + (trims * (products - 2 * self.sides)).sum(dim=1)

    def solved(self, strength: float) -> Tensor:
        """Return the trims [out, tiles + 1] of least error, drawn towards one gain for the matrix and offsets of 0."""
        none = self.untrimmed()
        whole = (self.grams @ none[..., None])[..., 0]
        energy = float((whole * none).sum())
        centre = none * (float((self.sides * none).sum()) / energy if energy > 0 else 1.0)
        if math.isinf(strength):
            return centre
        diagonal = self.grams.diagonal(dim1=1, dim2=2)
        least = 1e-12 * diagonal.amax().clamp_min(torch.finfo(torch.float64).tiny)
        ridge = torch.diag_embed(strength * diagonal + least)
        residual = self.sides - (self.grams @ centre[..., None])[..., 0]
        change: Tensor = torch.linalg.solve(self.grams + ridge, residual)
        return centre + change
