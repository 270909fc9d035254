"""The functions of `elementwise`, compiled for CPUs by numba: one pass over memory each, divided among threads."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from memsim.crossbar import elementwise
from memsim.crossbar.convert import Conversion
from memsim.portable.compiled import normal_pairs, random_words
from memsim.portable.constants import split_key
from memsim.portable.kernels import as_array, float32, in_threads, int32, kernel, uint32, uint64


def look_up(
    x: Tensor, codes_per_input: float, tables: tuple[Tensor, ...], rows: int
) -> tuple[Tensor, Tensor | None, int]:
    """Look up signals and noise terms: see `elementwise.look_up`."""
    n, width = x.shape
    tiles = -(-width // rows)
    signals = torch.empty(tiles, n, rows)
    noise_terms = torch.empty(tiles, n, rows + 1) if len(tables) > 1 else torch.empty(0, 0, 0)
    arrays = (
        as_array(x),
        np.float32(codes_per_input),
        as_array(torch.stack(tables)),
        signals.numpy(),
        noise_terms.numpy(),
    )
    clipped = in_threads(lambda first, last: _look_up(*arrays, first, last), n)
    return signals, noise_terms if len(tables) > 1 else None, clipped


def variances(noise_terms: Tensor, noise_columns: Tensor) -> Tensor:
    """Multiply noise terms and columns: see `elementwise.variances`.

    In float32 the constant is added after the product of the rows, as `_digitise` does it for `many_frames`.
    """
    if noise_columns.dtype != torch.float32:
        return elementwise.variances(noise_terms, noise_columns)
    product = torch.bmm(noise_terms[..., :-1], noise_columns[:, :-1])
    arrays = (product.numpy(), as_array(noise_terms[..., -1]), as_array(noise_columns[:, -1]))
    in_threads(lambda first, last: _add_constant(*arrays, first, last), product.shape[1])
    return product


def digitise(
    signals: Tensor,
    variances: Tensor | None,
    noise_key: int,
    first_frame: int,
    conversion: Conversion,
    significance: float,
    product: Tensor,
) -> int:
    """Convert column signals and add them up: see `elementwise.digitise`. Does not overwrite its arguments."""
    spread = np.empty((0, 0, 0), np.float32) if variances is None else as_array(variances.float())
    none = np.empty((0, 0), np.float32)
    offsets = none if conversion.offsets is None else as_array(conversion.offsets)
    key = (np.uint32(word) for word in split_key(noise_key))
    weights = as_array(significance * conversion.weights)
    factors = none if conversion.tile_factors is None else as_array(conversion.tile_factors)
    adc = (weights, factors, conversion.max_code or 0, offsets, np.float32(conversion.bow))
    arrays = (as_array(signals), spread, none, none, *key, first_frame, 0, *adc, product.detach().numpy())
    return in_threads(lambda first, last: _digitise(*arrays, first, last), len(product))


_ZERO, _ONE = np.float32(0), np.float32(1)


@kernel
def _look_up(x, codes_per_input, tables, signals, noise_terms, first, last):  # type: ignore[no-untyped-def]
    tiles, _, rows = signals.shape
    width = x.shape[1]
    middle = tables.shape[1] // 2
    largest = float32(middle)
    clipped = 0
    for n in range(first, last):
        for tile in range(tiles):
            constant = _ZERO
            for row in range(rows):
                column = tile * rows + row
                code = np.rint(x[n, column] * codes_per_input) if column < width else _ZERO
                if not abs(code) <= largest:
                    clipped += abs(code) > largest
                    code = largest if code > largest else (-largest if code < -largest else _ZERO)
                index = middle + int(code)
                signals[tile, n, row] = tables[0, index]
                if len(noise_terms):
                    constant += tables[1, index]
                    noise_terms[tile, n, row] = tables[2, index]
            if len(noise_terms):
                noise_terms[tile, n, rows] = constant
    return clipped


@kernel
def _standard_normals(out, words, k0, k1, frame, tile):  # type: ignore[no-untyped-def]
    quarter = len(out) // 4
    random_words(words, uint64(frame) << np.uint64(32), tile, np.uint32(0), k0, k1)
    normal_pairs(out[:quarter], out[quarter : 2 * quarter], words[0], words[1])
    normal_pairs(out[2 * quarter : 3 * quarter], out[3 * quarter :], words[2], words[3])


@partial(kernel, fastmath={"contract"})
def _add_constant(variances, constant_terms, constant_columns, first, last):  # type: ignore[no-untyped-def]
    for tile in range(len(variances)):
        for n in range(first, last):
            constant = constant_terms[tile, n]
            for column in range(variances.shape[2]):
                variances[tile, n, column] += constant * constant_columns[tile, column]
    return 0


@partial(kernel, fastmath={"contract"})
def _digitise(  # type: ignore[no-untyped-def]
    signals,
    variances,
    constant_terms,
    constant_columns,
    k0,
    k1,
    first_frame,
    first_tile,
    weights,
    factors,
    max_code,
    offsets,
    bow,
    product,
    first,
    last,
):
    tiles, _, columns = signals.shape
    planes, out_features = weights.shape[1], product.shape[1]
    full_scale = float32(max_code)
    normals, words = np.zeros(columns, np.float32), np.empty((4, columns // 4), np.uint32)
    of_tile = np.empty(out_features, np.float32)
    clipped = 0
    for n in range(first, last):
        for tile in range(tiles):
            total = product[n]
            if len(factors):
                total = of_tile
                total[:] = _ZERO
            constant = constant_terms[tile, n] if len(constant_terms) else _ZERO
            if len(variances):
                _standard_normals(normals, words, k0, k1, uint32(first_frame + n), uint32(first_tile + tile))
            for plane in range(planes):
                weight = weights[tile, plane]
                beyond = int32(0)
                for out in range(out_features):
                    column = plane * out_features + out
                    value = signals[tile, n, column]
                    if len(variances):
                        variance = variances[tile, n, column]
                        if len(constant_terms):
                            variance += constant * constant_columns[tile, column]
                        value += np.sqrt(max(variance, _ZERO)) * normals[column]
                    if len(offsets):
                        value += offsets[tile, column]
                    if bow != _ZERO:
                        of_full_scale = min(max(value / full_scale, -_ONE), _ONE)
                        value += bow * of_full_scale * (_ONE - of_full_scale * of_full_scale)
                    if max_code:
                        value = np.rint(value)
                        beyond = int32(beyond + int32(abs(value) > full_scale))
                        value = min(max(value, -full_scale), full_scale)
                    total[out] += weight * value
                clipped += int(beyond)
            if len(factors):
                for out in range(out_features):
                    product[n, out] += factors[tile, out] * of_tile[out]
    return clipped
