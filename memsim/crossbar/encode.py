"""Weights as levels, and levels as binary planes of differential pairs.

A weight becomes a level q = round(W / scale) in +-(2^(bits-1) - 1). Plane k holds bit k of |q| with the sign of q; each
of its entries is a pair of cells, positive and negative, of which the one that the sign names is in LRS when the bit is
set (arXiv 2505.24721, section 2). 2 bits are the ternary weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from memsim.spec import Weights

# Scales tried as fractions of the MinMax scale (and refitted): densely near 1, where many bits have many local minima.
_FRACTIONS = (*(1 - 0.005 * step for step in range(20)), *(0.9 - 0.02 * step for step in range(36)))
_CHUNK_VALUES = 1 << 22


def max_level(bits: int) -> int:
    """The largest level of `bits`-bit weights: the grid is symmetric, without the extra negative code."""
    return (1 << (bits - 1)) - 1


def planes_of(bits: int) -> int:
    """How many binary planes hold the magnitudes of `bits`-bit weights."""
    return bits - 1


def fit_scale(weight: Tensor, bits: int, config: Weights) -> Tensor:
    """The value of one level, [out] (per channel) or [1] (per tensor), for `weight` [out, in]; 1 where all are 0.

    `minmax` maps the largest magnitude on the largest level; `mse` minimises the squared error of the rounded weights.
    """
    rows = weight.float() if config.scale == "per_channel" else weight.float().reshape(1, -1)
    if config.scale_method == "minmax":
        scale = rows.abs().amax(dim=1) / max_level(bits)
    else:
        parts = rows.split(max(1, _CHUNK_VALUES // rows.shape[1]))
        scale = torch.cat([_least_squares_scale(part, max_level(bits)) for part in parts])
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def _least_squares_scale(rows: Tensor, largest: int) -> Tensor:
    """The scale of each of `rows` [channels, values] that minimises ||row - scale * level||^2, by search."""
    minmax = rows.abs().amax(dim=1, keepdim=True) / largest
    best_scale, best_error = minmax, torch.full_like(minmax, torch.inf)
    for fraction in _FRACTIONS:
        levels = (rows / (minmax * fraction)).round_().clamp_(-largest, largest).nan_to_num_()
        power = levels.square().sum(dim=1, keepdim=True)
        fitted = (rows * levels).sum(dim=1, keepdim=True) / power
        error = (rows - fitted * levels).square_().sum(dim=1, keepdim=True)
        better = (error < best_error) & (power > 0)
        best_scale = torch.where(better, fitted, best_scale)
        best_error = torch.where(better, error, best_error)
    return best_scale.squeeze(1)


def quantise(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Levels [out, in] of `weight` [out, in]: int8 up to 8 bits, else int16."""
    largest = max_level(bits)
    levels = (weight.float() / scale[:, None]).round().clamp(-largest, largest)
    return levels.to(torch.int8 if bits <= 8 else torch.int16)


def to_planes(levels: Tensor, bits: int) -> Tensor:
    """[planes, out, in] int8 in {-1, 0, 1} from levels [out, in]; plane k counts 2^k."""
    magnitude = levels.abs().to(torch.int32)
    shifts = torch.arange(planes_of(bits), device=levels.device)[:, None, None]
    bit = (magnitude >> shifts) & 1
    return (bit * levels.sign()).to(torch.int8)


def from_planes(planes: Tensor) -> Tensor:
    """Levels [out, in] (int32) from planes [planes, out, in]: the inverse of `to_planes`."""
    weights = 2 ** torch.arange(len(planes), device=planes.device, dtype=torch.int32)
    return (planes.to(torch.int32) * weights[:, None, None]).sum(dim=0)


def set_mask(levels: Tensor, bits: int) -> Tensor:
    """Which cells are SET: bool [planes, 2, in, out]; polarity 0 is the positive array, rows are inputs."""
    planes = to_planes(levels, bits).transpose(1, 2)
    return torch.stack([planes > 0, planes < 0], dim=1)
