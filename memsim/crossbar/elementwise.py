"""The steps of a read before and after its matrix products, in torch operations that run on any device.

`compiled` has the same functions for CPUs; `fused` has `digitise`, together with the matrix products, for GPUs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from memsim.crossbar.convert import Conversion
from memsim.crossbar.read_noise import standard_normals
from memsim.crossbar.tiling import split_rows


def look_up(
    x: Tensor, codes_per_input: float, tables: tuple[Tensor, ...], rows: int
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Look up the signals and the noise terms of inputs [n, in] on tiles of `rows`.

    `tables` hold the signal of each DAC code and, with noise, the two variances of `MemristorCell.noise_variances`.
    Rows beyond the matrix are at 0 V, code 0. NaN counts as 0, because asking for it would wait for the device.

    Returns:
        Signals [row_tiles, n, rows]; noise terms [row_tiles, n, rows + 1] (None without noise), which are the slope of
        each row and, last, the sum of the rows' constants; the number of inputs that the DAC clipped.
    """
    largest = len(tables[0]) // 2
    codes = split_rows(x, rows) * codes_per_input
    clipped = (codes.abs() > largest + 0.5).sum()
    index = codes.round_().nan_to_num_().clamp_(-largest, largest).add_(largest).int().reshape(-1)
    signals, *variances = (table.index_select(0, index).view(codes.shape) for table in tables)
    return signals, noise_terms(*variances) if variances else None, clipped


def noise_terms(constant: Tensor, slope: Tensor) -> Tensor:
    """Join the variances [row_tiles, n, rows] of `MemristorCell.noise_variances` to noise terms [..., rows + 1]."""
    return torch.cat([slope, constant.sum(dim=2, keepdim=True)], dim=2)


def variances(noise_terms: Tensor, noise_columns: Tensor) -> Tensor:
    """Return the variances [row_tiles, n, columns] of `noise_terms` [row_tiles, n, rows + 1] at `noise_columns`.

    The columns are those of `read.Operator`, whose precision the product has.
    """
    return torch.bmm(noise_terms.to(noise_columns.dtype), noise_columns)


def digitise(
    signals: Tensor,
    variances: Tensor | None,
    noise_key: int,
    first_frame: int,
    conversion: Conversion,
    significance: float,
    product: Tensor,
) -> Tensor:
    """Add read noise to column signals [row_tiles, n, columns], convert them, and add them to `product` [n, out].

    `variances` are those of the noise (None without noise), and the result is added `significance` times. Frames and
    columns beyond those of `product` are padding. Overwrites `signals` and `variances`. Returns the number of clipped
    conversions.
    """
    if variances is not None:
        normals = standard_normals(noise_key, first_frame, (*signals.shape,), signals.device)
        signals.addcmul_(variances.float().clamp_(min=0).sqrt_(), normals)
    n, out_features = product.shape
    clipped = signals.new_zeros((), dtype=torch.int64)
    if conversion.max_code is not None:
        if conversion.offsets is not None:
            signals.add_(conversion.offsets[:, None])
        if conversion.nonlinearity_codes:
            of_full_scale = (signals / conversion.max_code).clamp_(-1, 1)
            signals.add_(conversion.bow * of_full_scale * (1 - of_full_scale.square()))
        used = signals.round_()[:, :n, : conversion.planes * out_features]
        clipped = (used.abs() > conversion.max_code).sum()
        signals.clamp_(-conversion.max_code, conversion.max_code)
    for tile, (codes, weights) in enumerate(zip(signals, conversion.weights, strict=True)):
        total = product if conversion.tile_factors is None else torch.zeros_like(product)
        for plane, weight in enumerate(weights):
            total.addcmul_(codes[:n, plane * out_features : (plane + 1) * out_features], weight, value=significance)
        if conversion.tile_factors is not None:
            product.addcmul_(total, conversion.tile_factors[tile])
    return clipped
