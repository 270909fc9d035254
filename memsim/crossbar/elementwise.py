"""The steps of a read before and after its matrix products, in torch operations that run on any device.

`compiled` has the same functions for CPUs; `fused` has `digitise`, together with the matrix products, for GPUs. On a
CPU, where they stand in for `compiled` without numba, sums have its order and its rounding, and so its bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from memsim.crossbar.convert import Conversion
from memsim.crossbar.read_noise import standard_normals
from memsim.crossbar.tiling import split_rows
from memsim.portable import elementwise


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
    codes = (split_rows(x, rows) * codes_per_input).round_()
    clipped = (codes.abs() > largest).sum()
    index = codes.nan_to_num_().clamp_(-largest, largest).add_(largest).int().reshape(-1)
    signals, *variances = (table.index_select(0, index).view(codes.shape) for table in tables)
    if variances and x.is_cpu:
        constant, slope = variances
        total = torch.zeros_like(constant[..., 0])
        for row in range(rows):
            total += constant[..., row]
        return signals, torch.cat([slope, total[..., None]], dim=2), clipped
    return signals, noise_terms(*variances) if variances else None, clipped


def noise_terms(constant: Tensor, slope: Tensor) -> Tensor:
    """Join the variances [row_tiles, n, rows] of `MemristorCell.noise_variances` to noise terms [..., rows + 1]."""
    return torch.cat([slope, constant.sum(dim=2, keepdim=True)], dim=2)


def variances(noise_terms: Tensor, noise_columns: Tensor) -> Tensor:
    """Return the variances [row_tiles, n, columns] of `noise_terms` [row_tiles, n, rows + 1] at `noise_columns`.

    The columns are those of `read.Operator`, whose precision the product has.
    """
    if noise_columns.is_cpu and noise_columns.dtype == torch.float32:
        product = torch.bmm(noise_terms[..., :-1], noise_columns[:, :-1])
        return _plus_product(product, noise_terms[..., -1:], noise_columns[:, -1:])
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
        signals = _plus_product(signals, elementwise.sqrt(variances.float().clamp_(min=0)), normals)
    n, out_features = product.shape
    clipped = signals.new_zeros((), dtype=torch.int64)
    if conversion.max_code is not None:
        if conversion.offsets is not None:
            signals.add_(conversion.offsets[:, None])
        if conversion.nonlinearity_codes:
            of_full_scale = (signals / conversion.max_code).clamp_(-1, 1)
            beside = _plus_product(torch.ones_like(signals), -of_full_scale, of_full_scale)
            signals = _plus_product(signals, conversion.bow * of_full_scale, beside)
        used = signals.round_()[:, :n, : conversion.planes * out_features]
        clipped = (used.abs() > conversion.max_code).sum()
        signals.clamp_(-conversion.max_code, conversion.max_code)
    for tile, (codes, weights) in enumerate(zip(signals, conversion.weights, strict=True)):
        total = product if conversion.tile_factors is None else torch.zeros_like(product)
        for plane, weight in enumerate(weights):
            codes_of_plane = codes[:n, plane * out_features : (plane + 1) * out_features]
            total.copy_(_plus_product(total, codes_of_plane, significance * weight))
        if conversion.tile_factors is not None:
            product.copy_(_plus_product(product, total, conversion.tile_factors[tile]))
    return clipped


def _plus_product(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return total + a * b, rounded once on a CPU, as compiled code does, and as the device likes elsewhere."""
    return elementwise.fused(a, b, total) if total.is_cpu else torch.addcmul(total, a, b)
