"""The steps of a read before and after its matrix products, in torch operations: they run on any device.

`compiled` has the same two functions for CPUs, and `fused` the second one with the products for GPUs.
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
    """What inputs [n, in] amount to on the rows: signals, noise terms and how many inputs the DAC clipped.

    `tables`, by DAC code, hold the signal and, for noise, the two variances of `MemristorCell.noise_variances`. Signals
    are [row_tiles, n, rows]; noise terms (None without noise) [row_tiles, n, rows + 1], of each row what it adds below
    the dark total, and last the sum of the variances at it. Rows beyond the matrix are at 0 V, code 0. NaN, too, is
    taken for 0: nothing here may wait for the device to tell.
    """
    largest = len(tables[0]) // 2
    codes = split_rows(x, rows) * codes_per_input
    clipped = (codes.abs() > largest + 0.5).sum()
    index = codes.round_().nan_to_num_().clamp_(-largest, largest).add_(largest).int().reshape(-1)
    signals, *variances = (table.index_select(0, index).view(codes.shape) for table in tables)
    return signals, noise_terms(*variances) if variances else None, clipped


def count(codes: Tensor, lowest: int, shift: int, weights: Tensor | None, bins: int) -> Tensor:
    """Histograms [groups, bins], float64, of the magnitudes of float32 numbers, whose bits are `codes` [groups, n].

    The leading bits of a number, all but the last `shift`, give its bin: 0 for those up to `lowest`, 1 for the next,
    and so on. Each counts `weights` [n] times (None: once).
    """
    places = (((codes & 0x7FFFFFFF) >> shift) - lowest).clamp_(min=0).long()
    places += bins * torch.arange(len(codes), device=codes.device)[:, None]
    each = None if weights is None else weights.double().expand(len(codes), -1).reshape(-1)
    return torch.bincount(places.view(-1), each, minlength=len(codes) * bins).view(len(codes), bins).double()


def noise_terms(dark: Tensor, below_dark: Tensor) -> Tensor:
    """[row_tiles, n, rows + 1] from the two variances [row_tiles, n, rows] of `MemristorCell.noise_variances`."""
    return torch.cat([below_dark, dark.sum(dim=2, keepdim=True)], dim=2)


def digitise(
    signals: Tensor,
    variances: Tensor | None,
    noise_key: int,
    first_frame: int,
    conversion: Conversion,
    worth: float,
    product: Tensor,
) -> Tensor:
    """Add read noise to column signals [row_tiles, n, columns], convert them, and add them up in `product` [n, out].

    `variances` (of the noise) are None without noise; the sum counts `worth` times. Overwrites `signals` and
    `variances`. Returns how many conversions were clipped. Frames and columns beyond those of `product` are padding.
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
    for codes, weights in zip(signals, conversion.weights, strict=True):
        for plane, weight in enumerate(weights):
            product.addcmul_(codes[:n, plane * out_features : (plane + 1) * out_features], weight, value=worth)
    return clipped
