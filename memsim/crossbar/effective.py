"""Arrays with line resistance as matrices, which predict the column currents that `IrDropArrays` solves for.

With linear cells a column current would be linear in the driver voltages, and one matrix would give it. Real cells are
slightly non-linear. A column current is therefore the sum of the currents p_ij(V_i) that each row drives alone, and of
the interaction of rows that are driven together. Rows interact on bit lines: with phi_ij the potential to which all
rows raise bit line j at row i, and phi_ij^own the potential to which row i alone raises it,

    I_j(V) = sum_i p_ij(V_i) - sum_i h_ij n'_ij(a_ij V_i) (phi_ij - phi_ij^own)

to first order in phi and in the non-linear part of a cell's current, n(U) = I(U) - I'(0) U. The attenuations a of a
voltage and h of a current are those of `IrDropArrays.attenuation`. phi is smooth along a line, so the first mode of its
ladder K is enough: psi_i ~ sin(i pi / (2 rows + 1)), with eigenvalue mu. Its amplitude is taken as linear in the driver
voltages,

    phi_ij = psi_i sum_k beta_kj V_k,        beta_kj = w mu sum_l psi_l I_lj(1 V on row k, cells linearised)

The p_ij are those of a row whose cells alone are non-linear. There the part n(U) of a cell's current is injected into a
linear network, and a share H of it leaves through each column:

    p_ij(V) = A_ij V + sum_l H_il,j n_il(U_il),        U_i = a_i V - Z_i n_i(a_i V)

The network is reciprocal: H_il,j is the voltage across cell (i, l) with 1 V on bit line j, and A_ij is the current of
word line i then. All matrices therefore follow from the linear network with each line driven alone. Z, the voltage that
an injected current takes away, acts on a small term and is approximated: see `_lost_volts`.

The powers of voltages differ little from each other where cells are nearly linear. `EffectiveColumns` therefore takes
the few polynomials of the voltage that the matrices need, and the products of the small terms are of bfloat16 where
there are units for it. The approximation is derived here; its errors are in `EffectiveColumns`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from memsim.crossbar import compiled_wires
from memsim.crossbar.line_resistance import IrDropArrays
from memsim.crossbar.tiling import ALIGNED_COLUMNS, Tiling
from memsim.portable.kernels import is_compiled
from memsim.precision import multiplies_bfloat16

ALONE_TOLERANCE = 3e-5
"""Part of the conductance of rows driven alone that `EffectiveColumns` may leave out (root mean square)."""
SLOPES_TOLERANCE = 0.05
"""Part of the interaction of rows that `EffectiveColumns` may leave out (root mean square)."""
SUMS = 16
"""The number of sums over rows that the columns share is a multiple of this."""
DIRECTIONS = 32
"""Mixtures of two polynomials that are tried."""


@dataclass(frozen=True, eq=False)
class EffectiveArrays:
    """Matrices that act on powers of the driver voltages u = V / vmax, in place of the solve of `IrDropArrays`.

    Attributes:
        alone: [tiles, degree, rows, cols], the p_ij in amperes: matrices for u, u^2, ..., without the interaction of a
            row with itself, which the interaction of all rows adds again.
        bit_lines: [tiles, rows, cols], the beta in volts.
        slopes: [tiles, degree - 1, rows, cols], -psi h n' in siemens, for u, u^2, ... likewise.
        attenuation: [tiles, rows, cols], a.
        received: [tiles, rows, cols], h.
    """

    alone: Tensor
    bit_lines: Tensor
    slopes: Tensor
    attenuation: Tensor
    received: Tensor

    @classmethod
    def make(cls, arrays: IrDropArrays) -> EffectiveArrays:
        """Solve the linear network of `arrays` with each word line and with each bit line driven alone."""
        rows, vmax = arrays.states.shape[1], arrays.vmax_volts
        angle = math.pi / (2 * rows + 1)
        mode = torch.sin(torch.arange(1, rows + 1).to(arrays.states) * angle) * (2 / math.sqrt(2 * rows + 1))
        eigenvalue = 1 / (2 - 2 * math.cos(angle))
        linear, *powers = arrays.cells(slice(None))[:, :, 0].flip(0)  # amperes for U, U^2, ..., [tiles, rows, cols]
        attenuation, (in_mode,) = arrays.unit_responses((mode[:, None] * linear)[None])
        bit_lines = in_mode * (arrays.segment_ohms * eigenvalue * vmax)
        volts = attenuation * vmax
        # n' at a V, by powers of u
        n_slopes = [n * power * volts ** (power - 1) for power, n in enumerate(powers, start=2)]
        injected = _injected_amperes(n_slopes, attenuation, arrays.segment_ohms, vmax)
        sources = torch.stack([linear * vmax, *injected]).mT.contiguous()
        received, sums = arrays.transposed().unit_responses(sources)
        alone, received = sums.permute(1, 0, 3, 2).contiguous(), received.mT.contiguous()
        slopes = alone.new_empty(len(alone), len(powers), *linear.shape[1:])
        for power, n_slope in enumerate(n_slopes):
            torch.mul(n_slope, received * -mode[:, None], out=slopes[:, power])
        alone[:, 1:] -= bit_lines[:, None] * slopes
        return cls(alone, bit_lines, slopes, attenuation, received)


def _injected_amperes(n_slopes: list[Tensor], attenuation: Tensor, segment_ohms: float, vmax: float) -> list[Tensor]:
    """Return n(U) of the cells of a row driven alone, [tiles, rows, cols] for u^2, u^3, ..., to first order in Z.

    `n_slopes` are those of n' at the voltages a V of the linear network, for u, u^2, ...
    """
    amperes = [slope * attenuation * (vmax / power) for power, slope in enumerate(n_slopes, start=2)]
    lost = [_lost_volts(part, attenuation, segment_ohms) for part in amperes]
    for first, slope in enumerate(n_slopes, start=1):
        for second, part in enumerate(lost[: len(lost) - first], start=2):
            amperes[first + second - 2] = amperes[first + second - 2] - slope * part
    return amperes


def _lost_volts(amperes: Tensor, attenuation: Tensor, segment_ohms: float) -> Tensor:
    """Return about what currents `amperes` that are injected into the cells of a row take from their voltages.

    A current into cell l lowers the voltage across cell j of its row by w for each segment of the word line that both
    share, min(j, l), less the part that other cells supply. That part is about what is lost between the driver and the
    farther cell: a line of equal cells, solved, has sinh(theta min) / theta where this has min (`test_line_resistance`
    has the ladder). The cell's own bit line is taken in the same way. Shapes are [tiles, rows, cols].
    """
    _, rows, cols = amperes.shape
    row, col = (torch.arange(1, n + 1).to(amperes) for n in (rows, cols))
    from_farther = attenuation * amperes
    farther = from_farther.sum(2, keepdim=True) - from_farther.cumsum(2)
    shared = attenuation * (amperes * col).cumsum(2) + col * farther + row[:, None] * from_farther
    return shared * segment_ohms


@dataclass(frozen=True, eq=False)
class EffectiveColumns:
    """The columns of a matrix on effective arrays: the differences of pairs, without those functions that hardly count.

    Every matrix acts on a polynomial of the voltages. The polynomials of rows driven alone and of `slopes` are the
    principal components of what they have to represent, as many as it takes to leave out no more than ALONE_TOLERANCE
    and SLOPES_TOLERANCE. Three or four are enough for the currents of the shipped device, in place of six powers, and
    one and 16 to 32 sums that columns share for the slopes, in place of five.

    Attributes:
        functions: [all polynomials, degree], the coefficients of V, V^2, ... of the polynomials of `alone`, of `rest`,
            of `bit_lines`, of `slopes` and of `mixes`.
        alone: [row_tiles, rows, cols], the first component of the currents of rows driven alone; the columns of all
            column tiles and slices lie side by side.
        rest: [row_tiles, n * rows, cols], the other components.
        bit_lines: [row_tiles, rows, arrays * cols], the beta of the arrays whose currents a column adds.
        slopes: [row_tiles, rows + n, arrays * cols], their slopes, with the sign of the array in the pair, for one
            polynomial of each row and for the sums over rows of `mixes`.
        mixes: [row_tiles, m * rows, n], the sums over rows that all columns share: see `_shared`.
        attenuation: [all arrays, rows, cols], the attenuation of a voltage.
        received: [all arrays, rows, cols], the attenuation of a current.

    Beside `alone`, matrices are bfloat16 where the device has units for it (see `small_terms_dtype`). They are of terms
    that are small themselves, so that the rounding is 1e-5 of the largest current (root mean square; up to 2e-4 in the
    worst case of the table).

    The table has the errors of a differential column (root mean square / largest of 64 x 128 currents, in per cent of
    the largest current, mean of two draws) on 128 x 128 cells of 3-bit Gaussian weights. Inputs of both signs are
    Gaussian (full scale at 3.7 sigma) or uniform; the worst case drives all rows alike.

    ====  =======  ============  ============  ============
    vmax  segment  Gaussian      uniform       all alike
    ====  =======  ============  ============  ============
    0.4   0.3 ohm  0.002 / 0.01  0.005 / 0.03  0.05 / 0.4
    0.4   1 ohm    0.006 / 0.04  0.015 / 0.10  0.14 / 1.1
    0.4   3 ohm    0.009 / 0.11  0.024 / 0.28  0.19 / 2.2
    0.6   0.3 ohm  0.003 / 0.02  0.010 / 0.07  0.10 / 0.8
    0.6   1 ohm    0.009 / 0.08  0.027 / 0.19  0.29 / 2.5
    0.6   3 ohm    0.015 / 0.20  0.045 / 0.51  0.38 / 4.9
    ====  =======  ============  ============  ============
    """

    functions: Tensor
    alone: Tensor
    rest: Tensor
    bit_lines: Tensor
    slopes: Tensor
    mixes: Tensor
    attenuation: Tensor
    received: Tensor

    @classmethod
    def make(
        cls,
        arrays: IrDropArrays,
        tiling: Tiling,
        alone_tolerance: float = ALONE_TOLERANCE,
        slopes_tolerance: float = SLOPES_TOLERANCE,
    ) -> EffectiveColumns:
        """Prepare the read of a matrix on `tiling` with `arrays`, which are ordered as those of `IrDropColumns`."""
        per_row_tile = len(arrays.states) // tiling.row_tiles
        signs = torch.tensor([1.0, -1.0]).to(arrays.states).repeat_interleave(tiling.copies) / tiling.copies
        alone, bit_lines, slopes, attenuations = [], [], [], []
        for row_tile in range(tiling.row_tiles):
            part = EffectiveArrays.make(arrays.part(slice(row_tile * per_row_tile, (row_tile + 1) * per_row_tile)))
            attenuations.append((part.attenuation, part.received))
            alone.append(torch.einsum("a,adrc->drc", signs, _side_by_side(part.alone, tiling)))
            signed = _side_by_side(part.slopes, tiling) * signs[:, None, None, None]
            slopes.append(signed.permute(1, 2, 0, 3).flatten(2))
            bit_lines.append(_side_by_side(part.bit_lines[:, None], tiling)[:, 0].permute(1, 0, 2).flatten(1))
        degree, small = len(alone[0]), small_terms_dtype(arrays.states)
        first = torch.eye(1, degree, dtype=torch.float64)
        alone_functions, alone = _principal(alone, alone_tolerance, least=1)
        slopes_functions, slopes = _principal(slopes, slopes_tolerance, least=0)
        if not len(slopes_functions):
            first, bit_lines = first[:0], [part[:0] for part in bit_lines]
        slopes_functions, slopes, mixes = _shared(slopes_functions, slopes, slopes_tolerance)
        slopes_functions = torch.nn.functional.pad(slopes_functions, (0, degree - slopes_functions.shape[1]))
        functions = torch.cat([alone_functions, first, slopes_functions])
        functions /= arrays.vmax_volts ** torch.arange(1, degree + 1, dtype=torch.float64)
        return cls(
            functions.to(arrays.states),
            torch.stack([part[0] for part in alone]),
            torch.stack([part[1:].flatten(0, 1) for part in alone]).to(small),
            torch.stack(bit_lines).to(small),
            torch.stack(slopes).to(small),
            torch.stack(mixes).to(small),
            *(torch.cat(of_all) for of_all in zip(*attenuations, strict=True)),
        )

    def amperes(self, volts: Tensor, factors: Tensor) -> Tensor:
        """Return the differential currents [row_tiles, n, cols] at driver voltages `volts` [row_tiles, n, rows].

        They are multiplied by `factors` [row_tiles, 1, cols].
        """
        rows = volts.shape[2]
        each_row = self.slopes.shape[1] - self.mixes.shape[2]
        widths = (rows, self.rest.shape[1], self.bit_lines.shape[1], each_row, self.mixes.shape[1])
        dtypes = (self.alone.dtype, *[self.rest.dtype] * 4)
        driven = [
            volts.new_empty(*volts.shape[:2], width, dtype=dtype) for width, dtype in zip(widths, dtypes, strict=True)
        ]
        evaluate, finish = polynomials, add_up
        if self.rest.dtype == torch.bfloat16 and is_compiled(volts):
            evaluate, finish = compiled_wires.polynomials, compiled_wires.add_up
        evaluate(volts, self.functions, driven)
        alone, rest, bit_lines, slopes, mixed = driven
        slopes = torch.cat([slopes, torch.bmm(mixed, self.mixes)], dim=2)
        total = torch.bmm(alone, self.alone)
        small = (torch.bmm(rest, self.rest), torch.bmm(bit_lines, self.bit_lines), torch.bmm(slopes, self.slopes))
        finish(total, *small, factors)
        return total


def small_terms_dtype(like: Tensor) -> torch.dtype:
    """Return the dtype of the products of small terms for results as `like`: bfloat16 where there are units for it."""
    if like.dtype != torch.float32:
        return like.dtype
    return torch.bfloat16 if multiplies_bfloat16(like.device) else torch.float32


def polynomials(u: Tensor, coefficients: Tensor, outputs: list[Tensor]) -> None:
    """Evaluate polynomials without constant at volts `u` [tiles, n, rows] to `outputs` [tiles, n, (polynomials, rows)].

    `coefficients` [all polynomials, degree] are those of V, V^2, ...
    """
    first = 0
    for output in outputs:
        count = output.shape[2] // u.shape[2]
        value = torch.zeros_like(u)[:, :, None]
        for coefficient in coefficients[first : first + count].T.flip(0):
            value = (value + coefficient[:, None]) * u[:, :, None]
        output.copy_(value[:, :, :count].flatten(2))
        first += count


def add_up(total: Tensor, rest: Tensor, potentials: Tensor, slopes: Tensor, factors: Tensor) -> None:
    """Add `rest` [tiles, n, cols] and the interaction to `total` [tiles, n, cols], and multiply it by `factors`.

    `potentials` and `slopes` [tiles, n, (arrays, cols)] are the interaction's factors in the arrays of a column, which
    are added up. `factors` are [tiles, 1, cols].
    """
    interaction = (potentials.to(total.dtype) * slopes).unflatten(2, (-1, total.shape[2])).sum(2)
    total.add_(rest).add_(interaction).mul_(factors)


def _principal(matrices: list[Tensor], tolerance: float, least: int) -> tuple[Tensor, list[Tensor]]:
    """Replace matrices [degree, rows, cols] for V, V^2, ... by those for the fewest polynomials that tell them apart.

    The polynomials, at least `least`, are the principal components of the functions f(V) of all entries. The others
    have at most `tolerance` of the root mean square of f(V) / V over uniform V in [-1, 1]. Returns the coefficients [n,
    degree], float64, of those kept, and their matrices [n, rows, cols].
    """
    degree = len(matrices[0])
    powers = torch.arange(1, degree + 1)
    even = (powers + powers[:, None]) % 2 == 0
    root = torch.linalg.cholesky(torch.where(even, 1.0 / (powers + powers[:, None] - 1).double(), 0.0))
    squares = torch.zeros(degree, degree, dtype=torch.float64)
    for matrix in matrices:
        flat = matrix.flatten(1).double()
        squares += (flat @ flat.T).cpu()
    sizes, components = torch.linalg.eigh(root.T @ squares @ root)  # smallest first
    left_out = sizes.clamp(min=0).cumsum(0)
    drop = min(int((left_out <= tolerance**2 * sizes.sum()).sum()), degree - least)
    components = components[:, drop:].flip(1)
    to_components = (components.T @ root.T).to(matrices[0])
    functions = torch.linalg.solve_triangular(root.T, components, upper=True).T
    return functions, [torch.einsum("fd,drc->frc", to_components, matrix) for matrix in matrices]


def _shared(functions: Tensor, matrices: list[Tensor], tolerance: float) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Find what the columns of matrices [m, rows, cols] for polynomials `functions` [m, degree] have in common.

    The slope n' of a cell is affine in its state r. The term without r differs little between neighbouring cells, and
    so do all attenuations: some sums over rows have it for all columns. What is left is one polynomial times r, for
    each cell. That polynomial is searched for among the mixtures of the first two.

    Returns:
        The polynomials [m, degree], that of each cell first; for each row tile the matrices [rows + n, cols] for it and
        for n sums, which leave out `tolerance` of the root mean square; and the sums' weights [(m - 1) * rows, n].
    """
    m, rows, _ = matrices[0].shape
    if m < 2:
        return functions, [part.flatten(0, 1) for part in matrices], [part.new_zeros(0, 0) for part in matrices]
    (aa, ab), (ba, bb) = torch.stack([torch.einsum("arc,bsc->abrs", part[:2], part[:2]) for part in matrices]).sum(0)
    angles = torch.arange(DIRECTIONS, dtype=torch.float64) * (math.pi / DIRECTIONS)
    turns = [torch.tensor([[math.cos(t), math.sin(t)], [-math.sin(t), math.cos(t)]]) for t in angles.tolist()]
    beside = [c * c * bb - c * s * (ab + ba) + s * s * aa for c, s in zip(angles.cos(), angles.sin(), strict=True)]
    sizes = torch.linalg.eigvalsh(torch.stack([square.double().cpu() for square in beside]))
    turn = turns[int(sizes[:, : -min(SUMS, rows - 1) or None].sum(1).argmin())].double()
    turned = torch.block_diag(turn, torch.eye(m - 2, dtype=torch.float64))
    parts = [torch.einsum("nm,mrc->nrc", turned.to(part), part) for part in matrices]
    others = [part[1:].flatten(0, 1) for part in parts]
    decomposed = [torch.linalg.eigh((other @ other.T).double()) for other in others]
    limit = [tolerance**2 * float(part.double().square().sum()) for part in parts]
    needed = [
        len(size) - int((size.clamp(min=0).cumsum(0) <= most).sum())
        for (size, _), most in zip(decomposed, limit, strict=True)
    ]
    n = min(-(-max(needed) // SUMS) * SUMS, (m - 1) * rows)
    mixes = [
        vectors[:, -n:].to(part) if n else part.new_zeros((m - 1) * rows, 0)
        for (_, vectors), part in zip(decomposed, parts, strict=True)
    ]
    together = [torch.cat([part[0], mix.T @ other]) for part, mix, other in zip(parts, mixes, others, strict=True)]
    return turned @ functions, together, mixes


def _side_by_side(arrays: Tensor, tiling: Tiling) -> Tensor:
    """Lay values [arrays of a row tile, k, rows, cols] of cells side by side, [2 * copies, k, rows, cols of all].

    The columns of all column tiles and slices are padded with zeros to a multiple of ALIGNED_COLUMNS.
    """
    by_array = arrays.unflatten(0, (tiling.col_tiles, tiling.slices, 2 * tiling.copies))
    outputs = by_array.permute(2, 3, 4, 1, 0, 5).flatten(4)[..., : tiling.out_features].flatten(3)
    return torch.nn.functional.pad(outputs, (0, -outputs.shape[3] % ALIGNED_COLUMNS))
