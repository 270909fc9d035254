"""Reads of a few frames on CPUs, such as the one frame that a decoder of text reads at a time, without padding.

`Operator.read` pads frames to whole blocks, since `torch.bmm` rounds a product of a few rows differently from one of
many. The product here has the bits of a padded one: it adds the rows of a column in ascending order, each product and
sum rounded once (FMA), and begins another sum where the library does. `rows_of_sum` finds out where that is, and
whether the bits agree at all, for each shape of a matrix in each process. Where they do not, frames are padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from memsim.crossbar import compiled
from memsim.portable.constants import split_key
from memsim.portable.kernels import as_array, is_compiled, kernel

if TYPE_CHECKING:
    from memsim.crossbar.read import Operator

Array = np.ndarray[Any, np.dtype[np.float32]]

_NO_NOISE: Array = np.empty((0, 0, 0), np.float32)
_NONE: Array = np.empty((0, 0), np.float32)

FRAMES_OF_A_BLOCKS_TIME = 40
"""The number of frames that take one thread as long here as a padded block of 32 takes `torch.bmm`."""


@dataclass(frozen=True)
class FewFrames:
    """The arrays of an `Operator`, ready for its reads of a few frames.

    Attributes:
        codes_per_input: the DAC codes for each unit of input.
        tables: the tables [1 or 3, codes] of each phase.
        weights: the weights [row_tiles, planes] of the conversion in each phase.
        columns: [row_tiles, rows, width].
        noise_columns: [row_tiles, rows + 1, width], of which the last row is that of the constant; empty without noise.
        constant_columns: [row_tiles, width], that row; empty without noise.
        factors: [row_tiles, out], the digital factors of the tiles; empty without any.
        max_code, offsets, bow: those of the `Conversion`; 0 and empty where it has none.
    """

    codes_per_input: np.float32
    tables: tuple[Array, ...]
    weights: tuple[Array, ...]
    columns: Array
    noise_columns: Array
    constant_columns: Array
    factors: Array
    max_code: int
    offsets: Array
    bow: np.float32

    @property
    def is_noisy(self) -> bool:
        """Whether the read has noise."""
        return self.noise_columns.size > 0

    @classmethod
    def of(cls, operator: Operator) -> FewFrames | None:
        """Return the arrays of `operator`; None where it reads in another way than by tables and float32 products."""
        drive, noise_columns, conversion = operator.drive, operator.noise_columns, operator.conversion
        tables = [phase.tables for phase in drive.phases if phase.tables is not None]
        if not is_compiled(operator.columns) or operator.ir_drop is not None or not tables:
            return None
        if noise_columns is not None and noise_columns.dtype != torch.float32:
            return None
        return cls(
            np.float32(len(tables[0][0]) // 2 / drive.input_range),
            tuple(as_array(torch.stack(of_phase)) for of_phase in tables),
            tuple(as_array(phase.significance * conversion.weights) for phase in drive.phases),
            as_array(operator.columns),
            _NO_NOISE if noise_columns is None else as_array(noise_columns),
            _NONE if noise_columns is None else as_array(noise_columns[:, -1]),
            _NONE if conversion.tile_factors is None else as_array(conversion.tile_factors),
            conversion.max_code or 0,
            _NONE if conversion.offsets is None else as_array(conversion.offsets),
            np.float32(conversion.bow),
        )

    def read(self, x: Tensor, noise_keys: Sequence[int], first_frame: int, product: Tensor) -> tuple[int, int] | None:
        """Read inputs [n, in] and add the result to `product` [n, out], with the bits of a padded read.

        `noise_keys` are those of the phases. Returns the numbers of clipped inputs and of clipped conversions. Where
        the bits differ, or a padded read takes less time, it does nothing and returns None.
        """
        n = x.shape[0]
        if n > 1 and n * torch.get_num_threads() > FRAMES_OF_A_BLOCKS_TIME:
            return None
        precision = torch.get_float32_matmul_precision()
        part = rows_of_sum(*self.columns.shape, precision)
        if not part:
            return None
        inputs, outputs = as_array(x), product.numpy()
        tiles, rows, _ = self.columns.shape
        signals = np.empty((tiles, n, rows), np.float32)
        noise_terms = variances = np.empty((tiles, n, rows + 1), np.float32) if self.is_noisy else _NO_NOISE
        constant_terms = noise_terms[:, :, -1] if self.is_noisy else _NONE
        low = high = 0
        dac_clipped = adc_clipped = 0
        for tables, weights, key in zip(self.tables, self.weights, noise_keys, strict=True):
            dac_clipped += compiled._look_up(inputs, self.codes_per_input, tables, signals, noise_terms, 0, n)
            column_signals = multiply(signals, self.columns, rows, part)
            if self.is_noisy:
                variances = multiply(noise_terms, self.noise_columns, rows, part)
                low, high = split_key(key)
            noise = (variances, constant_terms, self.constant_columns, np.uint32(low), np.uint32(high), first_frame, 0)
            adc = (weights, self.factors, self.max_code, self.offsets, self.bow)
            adc_clipped += compiled._digitise(column_signals, *noise, *adc, outputs, 0, n)
        return dac_clipped, adc_clipped


def multiply(signals: Array, columns: Array, rows: int, rows_of_sum: int) -> Array:
    """Multiply [row_tiles, n, rows] @ [row_tiles, rows, width], in sums of `rows_of_sum` rows, as `torch.bmm` does.

    Both may have more than `rows` rows, which are left out.
    """
    tiles, n, _ = signals.shape
    products = np.empty((tiles, n, columns.shape[2]), np.float32)
    _multiply(signals, columns, rows, rows_of_sum, products)
    return products


@cache
def rows_of_sum(tiles: int, rows: int, width: int, precision: str) -> int:
    """Return the number of rows that `torch.bmm` adds up before it begins another sum.

    It is 0 where `multiply` does not have the bits of `torch.bmm`, judged by random numbers: products of a whole block
    of frames with [tiles, rows, width] at float32 matmul `precision`.
    """
    random = torch.Generator().manual_seed(0)
    signals = 2 * torch.rand(tiles, 32, rows, generator=random) - 1
    columns = (2 * torch.rand(1, rows, width, generator=random) - 1).expand(tiles, -1, -1)
    wanted = torch.bmm(signals, columns).numpy()
    one, frames = as_array(columns[0]), signals.numpy()
    candidates = np.array(
        [*(-(-rows // sums) for sums in range(1, 5)), *(rows // sums for sums in range(2, 5)), *_SIZES]
    )
    found = int(_rows_of_sum(frames[0, 0], as_array(columns[0, :, :16]), wanted[0, 0, :16], candidates))
    if found and all(
        np.array_equal(multiply(frames[t : t + 1], one[None], rows, found)[0], wanted[t]) for t in range(tiles)
    ):
        return found
    return 0


_contracting = partial(kernel, fastmath={"contract"})
_ZERO = np.float32(0)
_LANES = 1024
"""The number of columns at a time: the sums of two frames and four rows of columns stay in the fastest cache."""
_SIZES = range(1024, 31, -8)
"""Numbers of rows of a sum to try, besides equal parts of all rows."""


@_contracting
def _rows_of_sum(signals, columns, wanted, candidates):  # type: ignore[no-untyped-def]
    """Return the first of `candidates` that gives `wanted` [n] as the number of rows of a sum; 0 where none does."""
    rows = len(signals)
    total, part = np.empty(len(wanted), np.float32), np.empty(len(wanted), np.float32)
    for candidate in candidates:
        total[:] = _ZERO
        for first in range(0, rows, candidate):
            part[:] = _ZERO
            for row in range(first, min(first + candidate, rows)):
                _add_row(part, signals[row], columns[row])
            for i in range(len(total)):
                total[i] += part[i]
        if np.array_equal(total, wanted):
            return candidate
    return 0


@_contracting
def _multiply(signals, columns, rows, rows_of_sum, products):  # type: ignore[no-untyped-def]
    tiles, _, width = columns.shape
    frames = signals.shape[1]
    sums = np.empty((2, _LANES), np.float32)
    for tile in range(tiles):
        for left in range(0, width, _LANES):
            right = min(left + _LANES, width)
            for frame in range(0, frames, 2):
                pair = min(frame + 2, frames) - frame
                for first in range(0, rows, rows_of_sum):
                    last = min(first + rows_of_sum, rows)
                    sums[:] = _ZERO
                    fours = last - (last - first) % 4
                    for row in range(first, fours, 4):
                        c0, c1 = columns[tile, row][left:right], columns[tile, row + 1][left:right]
                        c2, c3 = columns[tile, row + 2][left:right], columns[tile, row + 3][left:right]
                        s = signals[tile, frame][row : row + 4]
                        if pair == 2:
                            _add_four_rows_of_two(
                                sums[0], sums[1], s, signals[tile, frame + 1][row : row + 4], c0, c1, c2, c3
                            )
                        else:
                            _add_four_rows(sums[0], s, c0, c1, c2, c3)
                    for row in range(fours, last):
                        for i in range(pair):
                            _add_row(sums[i], signals[tile, frame + i, row], columns[tile, row][left:right])
                    for i in range(pair):
                        product = products[tile, frame + i][left:right]
                        if first == 0:
                            product[:] = sums[i][: right - left]
                        else:
                            _add_row(product, np.float32(1), sums[i][: right - left])


@_contracting
def _add_row(sums, signal, row):  # type: ignore[no-untyped-def]
    for i in range(len(row)):
        sums[i] += signal * row[i]


@_contracting
def _add_four_rows(sums, signals, row_0, row_1, row_2, row_3):  # type: ignore[no-untyped-def]
    s0, s1, s2, s3 = signals[0], signals[1], signals[2], signals[3]
    for i in range(len(row_0)):
        total = sums[i] + s0 * row_0[i]
        total += s1 * row_1[i]
        total += s2 * row_2[i]
        total += s3 * row_3[i]
        sums[i] = total


@_contracting
def _add_four_rows_of_two(sums_s, sums_t, s, t, row_0, row_1, row_2, row_3):  # type: ignore[no-untyped-def]
    """Add four rows to the sums of two frames of signals `s` and `t`, which loads the rows once for both."""
    s0, s1, s2, s3 = s[0], s[1], s[2], s[3]
    t0, t1, t2, t3 = t[0], t[1], t[2], t[3]
    for i in range(len(row_0)):
        c0, c1, c2, c3 = row_0[i], row_1[i], row_2[i], row_3[i]
        total_s, total_t = sums_s[i] + s0 * c0, sums_t[i] + t0 * c0
        total_s += s1 * c1
        total_t += t1 * c1
        total_s += s2 * c2
        total_t += t2 * c2
        total_s += s3 * c3
        total_t += t3 * c3
        sums_s[i], sums_t[i] = total_s, total_t
