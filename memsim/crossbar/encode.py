"""Weights as levels, and levels as the digits of cells in differential pairs.

A weight becomes a level q = round(W / scale) in +-(2^(bits-1) - 1). The magnitude |q| is cut into slices of `cell_bits`
bits. Slice k holds one digit of |q|, has the significance (2^cell_bits)^k, and is a differential pair of cells: the
positive or the negative cell, by the sign of q, holds the digit, and the other cell holds 0. Slices of one bit are the
binary planes of arXiv 2505.24721, section 2; weights of 2 bits are its ternary weights.

The scale of a matrix is [out] (per channel), [1] (per tensor) or [row_tiles, out] (per tile): the ADC gives a number
for each row tile, so that each can have a step of its own, for one digital multiplication.
"""

from __future__ import annotations

import torch
from torch import Tensor

from memsim.crossbar.scale_search import least_squares_scale
from memsim.hardware import HardwareSpec, Weights


def bits_of(spec: HardwareSpec) -> int:
    """Return the weight bits of a layer's resolved spec. Raises ValueError where the spec leaves them open."""
    if spec.weights.bits is None:
        raise ValueError(f"hardware {spec.name} leaves weights.bits open; choose them before mapping")
    return spec.weights.bits


def max_level(bits: int) -> int:
    """Return the largest level of `bits`-bit weights: the grid is symmetric, without the extra negative code."""
    return (1 << (bits - 1)) - 1


def slices_of(bits: int, cell_bits: int = 1) -> int:
    """Return the number of slices of `cell_bits` bits that hold the magnitudes of `bits`-bit weights."""
    return -(-(bits - 1) // cell_bits)


def slice_significances(bits: int, cell_bits: int = 1) -> Tensor:
    """Return the significance [slices], float32, of a digit of each slice."""
    return (2.0**cell_bits) ** torch.arange(slices_of(bits, cell_bits))


def by_tile(weight: Tensor, tile_rows: int) -> Tensor:
    """Cut `weight` [out, in] into the inputs of each row tile: [row_tiles, out, tile_rows], with zeros beyond `in`."""
    out_features, in_features = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -in_features % tile_rows))
    return padded.view(out_features, -1, tile_rows).transpose(0, 1)


def scale_of_weights(scale: Tensor, in_features: int, tile_rows: int) -> Tensor:
    """Return `scale` in a shape that broadcasts with the weights [out, in], on tiles of `tile_rows` rows."""
    if scale.ndim == 1:
        return scale[:, None]
    return scale.T.repeat_interleave(tile_rows, dim=1)[:, :in_features]


def fit_scale(weight: Tensor, bits: int, config: Weights, tile_rows: int | None = None) -> Tensor:
    """Return the step between levels, [out], [1] or [row_tiles, out] as `config.scale` says, for `weight` [out, in].

    `minmax` maps the largest magnitude on the largest level; `mse` minimises the squared error of the rounded weights.
    The step is 1 where all weights are 0. Raises ValueError for scales per tile without the `tile_rows`.
    """
    values = weight.float()
    if config.scale == "per_tile":
        if tile_rows is None:
            raise ValueError("scales per tile need the rows of a tile")
        rows = by_tile(values, tile_rows).flatten(0, 1)
    else:
        rows = values if config.scale == "per_channel" else values.reshape(1, -1)
    if config.scale_method == "minmax":
        scale = rows.abs().amax(dim=1) / max_level(bits)
    else:
        scale = least_squares_scale(rows, max_level(bits))
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return scale.view(-1, len(weight)) if config.scale == "per_tile" else scale


def quantise(weight: Tensor, scale: Tensor, bits: int, tile_rows: int | None = None) -> Tensor:
    """Round `weight` [out, in] to levels [out, in], int8 up to 8 bits and int16 beyond.

    A `scale` per tile is that of tiles of `tile_rows` rows.
    """
    largest = max_level(bits)
    steps = scale_of_weights(scale, weight.shape[1], tile_rows or weight.shape[1])
    levels = (weight.float() / steps).round_().clamp_(-largest, largest)
    return levels.to(torch.int8 if bits <= 8 else torch.int16)


def without_idle_channels(scale: Tensor, levels: Tensor, tile_rows: int | None = None) -> Tensor:
    """Set `scale` to 0 for the channels of `levels` [out, in], or their parts on a tile, that hold only zeros.

    Their exact product is 0, whatever errors their cells have. A `scale` per tile is that of tiles of `tile_rows` rows.
    """
    if scale.ndim == 2:
        used = by_tile(levels, tile_rows or levels.shape[1]).any(dim=2)
    else:
        used = levels.any(dim=1) if len(scale) == len(levels) else levels.any()[None]
    return torch.where(used, scale, torch.zeros_like(scale))


def to_slices(levels: Tensor, bits: int, cell_bits: int = 1) -> Tensor:
    """Cut levels [out, in] into digits [slices, out, in], which have the sign of their weight.

    They are int8 for cells of up to 7 bits, and int16 beyond, as for whole weights of 9 to 16 bits on one pair.
    """
    magnitude = levels.abs().to(torch.int32)
    shifts = cell_bits * torch.arange(slices_of(bits, cell_bits), device=levels.device)[:, None, None]
    digit = (magnitude >> shifts) & ((1 << cell_bits) - 1)
    return (digit * levels.sign()).to(torch.int8 if cell_bits <= 7 else torch.int16)
