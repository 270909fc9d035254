"""Reads of many frames on CPUs: each thread takes pieces of the frames through all steps.

A thread reads what it has written itself, one tile after the other, so that pieces of many frames need little memory.
On two threads of an EPYC, a read of 4096 frames by a 512 x 512 matrix with noise takes 5.4 times `nn.Linear` in pieces
of 512 frames, and 5.8 times in pieces of 128. A piece takes few operations of Python: only one thread at a time can run
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from memsim.crossbar import compiled
from memsim.portable.constants import split_key
from memsim.portable.kernels import as_array, has_torch_threads, in_threads, is_compiled

if TYPE_CHECKING:
    from memsim.crossbar.read import Operator

Array = np.ndarray[Any, np.dtype[np.float32]]

PIECE_VALUES = 1 << 19
"""Approximate number of inputs of a piece, and of column values of a tile; changes speed and memory, never a result."""
_NONE: Array = np.empty((0, 0), np.float32)


def can_read(operator: Operator, blocks: int) -> bool:
    """Return whether `operator` reads by tables and float32 products alone, with one of `blocks` for each thread."""
    noise_columns = operator.noise_columns
    return (
        is_compiled(operator.columns)
        and operator.ir_drop is None
        and operator.drive.phases[0].tables is not None
        and (noise_columns is None or noise_columns.dtype == torch.float32)
        and has_torch_threads()
        and blocks >= torch.get_num_threads()
    )


@dataclass(frozen=True)
class Tile:
    """The tensors of a row tile that the kernels and products take.

    Attributes:
        columns: [1, rows, columns].
        noise_columns: those of the rows, likewise; None without noise.
        constant: [1, columns], the last row of the noise columns; empty without noise.
        weights: for each phase, the weights [1, planes].
        factors: [1, out], the digital factors of the tile; empty without any.
        offsets: [1, columns], those of the ADC; empty without any.
    """

    columns: Tensor
    noise_columns: Tensor | None
    constant: Array
    weights: tuple[Array, ...]
    factors: Array
    offsets: Array


@dataclass(frozen=True)
class Prepared:
    """An operator in the form that the kernels take.

    Attributes:
        tiles: the row tiles.
        tables: for each phase, the signal and the variances of each code of the DAC.
        codes_per_input: the codes of the DAC for a unit of input.
        max_code: that of the ADC; 0 without one.
        bow: that of the ADC, in codes.
    """

    tiles: tuple[Tile, ...]
    tables: tuple[Array, ...]
    codes_per_input: np.float32
    max_code: int
    bow: np.float32

    @classmethod
    def make(cls, operator: Operator) -> Prepared:
        """Prepare `operator`, which `can_read` accepts."""
        conversion, noise, offsets = operator.conversion, operator.noise_columns, operator.conversion.offsets
        factors = conversion.tile_factors
        tables = tuple(as_array(torch.stack(phase.tables)) for phase in operator.drive.phases if phase.tables)
        weights = [as_array(phase.significance * conversion.weights) for phase in operator.drive.phases]
        tiles = tuple(
            Tile(
                operator.columns[i : i + 1],
                None if noise is None else noise[i : i + 1, :-1],
                _NONE if noise is None else as_array(noise[i : i + 1, -1]),
                tuple(weight[i : i + 1] for weight in weights),
                _NONE if factors is None else as_array(factors[i : i + 1]),
                _NONE if offsets is None else as_array(offsets[i : i + 1]),
            )
            for i in range(len(operator.columns))
        )
        codes_per_input = np.float32(len(tables[0][0]) // 2 / operator.drive.input_range)
        return cls(tiles, tables, codes_per_input, conversion.max_code or 0, np.float32(conversion.bow))


def read(
    operator: Operator, x: Tensor, noise_keys: list[int], first_frame: int, block: int, product: Tensor
) -> tuple[int, int]:
    """Read inputs [n, in] into `product` [up to n, out], whatever it holds; n is a multiple of `block`.

    Frames beyond those of `product` are padding. `noise_keys` are those of the phases. Returns the numbers of clipped
    inputs and of clipped conversions.
    """
    prepared, inputs, outputs = operator.prepared, as_array(x), product.numpy()
    words = [tuple(np.uint32(word) for word in split_key(key)) for key in noise_keys]
    adc_clipped: list[int] = []
    shape, is_noisy = tuple(operator.columns.shape), operator.noise_columns is not None
    frames = _piece_frames(len(x), shape, block)

    def read_piece(first: int, last: int) -> int:
        spare = _spare_memories(shape, last - first, is_noisy)
        memory = spare.pop() if spare else _Memory.make(shape, last - first, is_noisy)
        of_inputs, of_product = inputs[first:last], outputs[first:last]
        of_product.fill(0)
        frame, n = first_frame + first, len(of_product)
        dac_clipped = 0
        for phase, (table, key) in enumerate(zip(prepared.tables, words, strict=True)):
            dac_clipped += compiled._look_up(
                of_inputs, prepared.codes_per_input, table, memory.signals, memory.noise_terms, 0, last - first
            )
            for index, (tile, rows) in enumerate(zip(prepared.tiles, memory.rows, strict=True)):
                torch.bmm(rows.signals, tile.columns, out=memory.product)
                if tile.noise_columns is not None:
                    torch.bmm(rows.slopes, tile.noise_columns, out=memory.variance_product)
                noise = (memory.variances, rows.constants, tile.constant, *key, frame, index)
                adc = (tile.weights[phase], tile.factors, prepared.max_code, tile.offsets, prepared.bow)
                adc_clipped.append(compiled._digitise(memory.column_signals, *noise, *adc, of_product, 0, n))
        spare.append(memory)
        return dac_clipped

    return in_threads(read_piece, len(x), frames), sum(adc_clipped)


def _piece_frames(n: int, shape: tuple[int, ...], block: int) -> int:
    """Return the frames of a piece, in whole blocks, such that every thread has the same number of pieces."""
    tiles, rows, width = shape
    threads = torch.get_num_threads()
    most = block * max(1, PIECE_VALUES // (max(tiles * rows, width) * block))
    pieces = threads * -(-n // (threads * most))
    return block * -(-n // (pieces * block))


@lru_cache(maxsize=2)
def _spare_memories(shape: tuple[int, ...], frames: int, is_noisy: bool) -> list[_Memory]:
    """Return the memories that no thread uses, for columns of `shape`; threads take from them and give back to them.

    Two kinds of pieces are kept: for each thread at most 2 or, with noise, 4 times PIECE_VALUES numbers for each.
    """
    return []


@dataclass(frozen=True)
class _Rows:
    """The rows of a tile in the memory of a piece.

    Attributes:
        signals: [1, frames, rows].
        slopes: the noise terms of the rows, likewise; empty without noise.
        constants: the last noise term [1, frames]; empty without noise.
    """

    signals: Tensor
    slopes: Tensor
    constants: Array


@dataclass(frozen=True)
class _Memory:
    """The memory of a piece.

    Attributes:
        signals: [row_tiles, frames, rows].
        noise_terms: [row_tiles, frames, rows + 1]; empty without noise.
        rows: the same memory, for each tile.
        product: [1, frames, columns], the column signals of a tile.
        variance_product: likewise, the variances but for the constant; empty without noise.
        column_signals: the memory of `product`.
        variances: the memory of `variance_product`.
    """

    signals: Array
    noise_terms: Array
    rows: tuple[_Rows, ...]
    product: Tensor
    variance_product: Tensor
    column_signals: Array
    variances: Array

    @classmethod
    def make(cls, shape: tuple[int, ...], frames: int, is_noisy: bool) -> _Memory:
        """Take memory for `frames` of columns of `shape` [row_tiles, rows, columns]."""
        tiles, rows, width = shape
        noisy = int(is_noisy)
        with torch.inference_mode(False):  # other threads, which are not in this mode, could not write to its tensors
            signals, noise_terms = torch.empty(tiles, frames, rows), torch.empty(noisy * tiles, frames, rows + 1)
            product, variances = torch.empty(1, frames, width), torch.empty(noisy, frames, width)
            of_tiles = tuple(
                _Rows(signals[i : i + 1], noise_terms[i : i + 1, :, :-1], noise_terms[i : i + 1, :, -1].numpy())
                for i in range(tiles)
            )
        arrays = (product.numpy(), variances.numpy())
        return cls(signals.numpy(), noise_terms.numpy(), of_tiles, product, variances, *arrays)
