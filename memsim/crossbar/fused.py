"""The matrix products of a read and the steps after them as one Triton kernel, for GPUs.

Codes and random words are the same as in `elementwise`. The column signals stay in registers, where `elementwise`
passes over [row_tiles, n, columns] in memory about a hundred times. The DAC stays outside the kernel, in which every
block of columns would look up the same inputs again.
"""

from __future__ import annotations

import logging
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from memsim.crossbar.convert import Conversion
from memsim.portable.constants import COSINE, SINE

logger = logging.getLogger("memsim")

FRAMES = 32
"""Frames of a block; signals and noise terms must have whole blocks."""
LANES = 32
"""Columns of a block in each quarter of the width: a block has the four columns that share a call of Philox."""
ROWS = 16
"""Rows that are multiplied at a time. Blocks of this size spill few registers on compute capabilities 8 to 10."""

_works = True


def multiply_and_digitise(
    signals: Tensor,
    noise_terms: Tensor | None,
    columns: Tensor,
    noise_columns: Tensor | None,
    noise_key: int,
    first_frame: int,
    conversion: Conversion,
    significance: float,
    product: Tensor,
) -> Tensor | None:
    """Compute signals @ columns and (for noise) noise_terms @ noise_columns, and digitise them as `elementwise` does.

    Signals are [row_tiles, n in whole blocks of FRAMES, rows]; noise terms and columns are those of `read.Operator`.
    The products are of full float32 precision; the second one is of bfloat16 where `noise_columns` are.

    Returns the number of clipped conversions. Where Triton cannot build or start the kernel (without a C compiler, for
    example), it logs a warning, leaves `product` as it was and returns None, then and from then on.
    """
    global _works
    if not _works:
        return None
    (tiles, padded, rows), width = signals.shape, columns.shape[2]
    (frames, out_features), planes = product.shape, conversion.planes
    assert padded % FRAMES == 0
    if noise_terms is not None and noise_columns is not None:
        noise_terms = noise_terms.to(noise_columns.dtype)
    digital = (conversion.weights, conversion.tile_factors, conversion.offsets)
    operands = (signals, noise_terms, columns, noise_columns, *digital)
    max_code = None if conversion.max_code is None else float(conversion.max_code)
    sums = columns.new_empty(frames, width)
    clipped = torch.zeros((), dtype=torch.int64, device=signals.device)
    try:
        with torch.cuda.device_of(signals):
            _kernel[padded // FRAMES, triton.cdiv(width // 4, LANES)](
                *(None if operand is None else operand.contiguous() for operand in operands),
                *(sums, clipped, noise_key, first_frame, max_code, conversion.bow or None),
                *(frames, tiles, rows, width, planes, out_features, FRAMES, LANES, ROWS),
            )
    except Exception as error:  # compiler, linker and driver raise errors of their own
        _works = False
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        logger.warning("Triton failed; reads use torch operations, which are slower (%s)", reason)
        return None
    product.add_(sums[:, : planes * out_features].unflatten(1, (planes, out_features)).sum(dim=1), alpha=significance)
    return clipped


@triton.jit(do_not_specialize=["noise_key"])  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    signals,
    noise_terms,
    columns,
    noise_columns,
    weights,
    tile_factors,
    offsets,
    sums,
    clipped,
    noise_key: tl.uint64,
    first_frame,
    max_code,
    bow,
    frames,
    tiles,
    rows: tl.int64,
    width: tl.int64,
    planes,
    out_features,
    FRAMES: tl.constexpr,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Fill `sums` [frames, width] with the sum over row tiles of every column's codes times their digital factors."""
    frame = tl.program_id(0) * FRAMES + tl.arange(0, FRAMES)
    padded = tl.num_programs(0) * FRAMES
    lane = tl.program_id(1) * LANES + tl.arange(0, LANES)
    quarter = width // 4
    place = tl.arange(0, 4 * LANES)
    lane_of_place = tl.program_id(1) * LANES + place % LANES
    column = place // LANES * quarter + lane_of_place
    is_column = lane_of_place < quarter
    plane = column // out_features

    total = tl.zeros((FRAMES, 4 * LANES), tl.float32)
    for tile in range(tiles):
        pair = tile * padded + frame  # index of tile and frame
        left, right = signals + pair[:, None] * rows, columns + tile * rows * width + column[None, :]
        signal = _add_product(tl.zeros_like(total), left, right, rows, width, is_column, ROWS)
        if noise_columns is not None:
            left = noise_terms + pair[:, None] * (rows + 1)
            right = noise_columns + tile * (rows + 1) * width + column[None, :]
            constant = tl.load(left + rows).to(tl.float32)
            constant_columns = tl.load(right + rows * width, mask=is_column[None, :], other=0.0).to(tl.float32)
            variance = _add_product(constant * constant_columns, left, right, rows, width, is_column, ROWS)
            normals = _standard_normals(noise_key, first_frame + frame, tile, lane)
            signal += tl.sqrt(tl.maximum(variance, 0.0)) * normals.reshape(FRAMES, 4 * LANES)
        if max_code is not None:
            if offsets is not None:
                signal += tl.load(offsets + tile * width + column, mask=is_column, other=0.0)[None, :]
            if bow is not None:
                of_full_scale = tl.clamp(signal / max_code, -1.0, 1.0)
                signal += bow * of_full_scale * (1 - of_full_scale * of_full_scale)
            code = _rounded(tl.abs(signal))
            beyond = (code > max_code) & (frame < frames)[:, None]
            tl.atomic_add(clipped, tl.sum(beyond.to(tl.int64)))
            code = tl.minimum(code, max_code)
            signal = tl.where(signal < 0, -code, code)
        weight = tl.load(weights + tile * planes + plane, mask=plane < planes, other=0.0)
        if tile_factors is not None:
            of_output = tile_factors + tile * out_features + column % out_features
            weight *= tl.load(of_output, mask=plane < planes, other=0.0)
        total += weight[None, :] * signal
    is_wanted = (frame < frames)[:, None] & is_column[None, :]
    tl.store(sums + frame[:, None] * width + column[None, :], total, mask=is_wanted)


@triton.jit  # type: ignore[untyped-decorator]
def _add_product(total, left, right, rows, width, is_column, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return `total` + [frames, rows] @ [rows, columns], given pointers to the first row's values of both."""
    for first in range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS)
        is_row = row < rows
        a = tl.load(left + row[None, :], mask=is_row[None, :], other=0.0)
        b = tl.load(right + row[:, None] * width, mask=is_row[:, None] & is_column[None, :], other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
    return total


_WHOLE_FROM = tl.constexpr(2.0**23)
_PER_WORD, _TURN_PER_WORD = tl.constexpr(2.0**-32), tl.constexpr(2 * math.pi * 2.0**-32)
_SINE, _COSINE = tl.constexpr(SINE), tl.constexpr(COSINE)


@triton.jit
def _rounded(magnitude):  # type: ignore[no-untyped-def]
    """Round to the nearest whole number, halves to even: adding 2^23 does, from where float32 has no fractions."""
    return tl.where(magnitude < _WHOLE_FROM, magnitude + _WHOLE_FROM - _WHOLE_FROM, magnitude)


@triton.jit
def _standard_normals(key, frame, tile, lane):  # type: ignore[no-untyped-def]
    """Return normals [frames, 4, lanes] as `read_noise.standard_normals` does; a lane's columns lie a quarter apart."""
    a, b, c, d = tl.philox(key, lane[None, :], frame[:, None], tile, 0)
    first, second = _box_muller(a, b)
    third, fourth = _box_muller(c, d)
    return tl.join(tl.join(first, third), tl.join(second, fourth)).permute(0, 2, 3, 1)


@triton.jit
def _box_muller(radius_word, angle_word):  # type: ignore[no-untyped-def]
    """Transform two random words to two normals, with the sine and cosine of `compiled`.

    The functions of the GPU's library also serve angles of many turns, at twice the cost.
    """
    radius = tl.sqrt(-2 * tl.log((radius_word.to(tl.float32) + 0.5) * _PER_WORD))
    quarter = (angle_word + (1 << 29)) >> 30  # in quarters of a turn; the remaining angle is within an eighth
    angle = (angle_word - (quarter << 30)).to(tl.int32, bitcast=True).to(tl.float32) * _TURN_PER_WORD
    z = angle * angle
    sine = angle + angle * z * ((_SINE[0] * z + _SINE[1]) * z + _SINE[2])
    cosine = 1 - 0.5 * z + z * z * ((_COSINE[0] * z + _COSINE[1]) * z + _COSINE[2])
    is_odd = (quarter & 1) != 0
    sine, cosine = tl.where(is_odd, cosine, sine), tl.where(is_odd, sine, cosine)
    sine = tl.where((quarter & 2) != 0, -sine, sine)
    cosine = tl.where(((quarter + 1) & 2) != 0, -cosine, cosine)
    return radius * sine, radius * cosine
