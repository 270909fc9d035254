"""Reads of many frames on CPUs: each thread takes pieces of the frames through all steps.

A thread reads what it has written itself. Where threads share one step after the other instead, column signals pass
from core to core, and threads wait for each other after each step. On two threads of an EPYC, a read of 1024 frames by
a 512 x 512 matrix takes 2.85 instead of 3.15 times `nn.Linear`, and 3.05 instead of 4.0 where idle threads of torch
spin as long as they do by default. A piece takes few operations of Python: only one thread at a time can run them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from memsim.crossbar import compiled
from memsim.portable.constants import split_key
from memsim.portable.kernels import as_array, has_torch_threads, in_threads

if TYPE_CHECKING:
    from memsim.crossbar.read import Operator

Array = np.ndarray[Any, np.dtype[np.float32]]

PIECE_VALUES = 1 << 20
"""Approximate number of column values of a piece; changes speed and memory, never a result."""


def can_read(operator: Operator, blocks: int) -> bool:
    """Return whether `operator` reads by tables and float32 products alone, with one of `blocks` for each thread."""
    noise_columns = operator.noise_columns
    return (
        operator.columns.device.type == "cpu"
        and operator.ir_drop is None
        and operator.drive.phases[0].tables is not None
        and (noise_columns is None or noise_columns.dtype == torch.float32)
        and has_torch_threads()
        and blocks >= torch.get_num_threads()
    )


def read(
    operator: Operator, x: Tensor, noise_keys: list[int], first_frame: int, block: int, product: Tensor
) -> tuple[int, int]:
    """Read inputs [n, in] and add the result to `product` [up to n, out]; n is a multiple of `block`.

    Frames beyond those of `product` are padding. `noise_keys` are those of the phases. Returns the numbers of clipped
    inputs and of clipped conversions.
    """
    drive, conversion = operator.drive, operator.conversion
    inputs, outputs = as_array(x), product.numpy()
    tables = [as_array(torch.stack(phase.tables)) for phase in drive.phases if phase.tables is not None]
    weights = [as_array(phase.significance * conversion.weights) for phase in drive.phases]
    words = [tuple(np.uint32(word) for word in split_key(key)) for key in noise_keys]
    offsets = np.empty((0, 0), np.float32) if conversion.offsets is None else as_array(conversion.offsets)
    adc = (conversion.max_code or 0, offsets, np.float32(conversion.bow))
    codes_per_input = np.float32(len(tables[0][0]) // 2 / drive.input_range)
    phases = list(zip(tables, weights, words, strict=True))

    frames = _piece_frames(operator, len(x), block)
    memories = [_Memory.make(operator, frames) for _ in range(min(torch.get_num_threads(), -(-len(x) // frames)))]
    adc_clipped: list[int] = []

    def read_piece(first: int, last: int) -> int:
        memory = memories.pop()
        piece = memory if last - first == frames else memory.cut(last - first)
        dac_clipped = 0
        for table, weight, word in phases:
            dac_clipped += compiled._look_up(
                inputs[first:last], codes_per_input, table, piece.signals, piece.noise_terms, 0, last - first
            )
            piece.multiply()
            of_product = outputs[first:last]
            adc_clipped.append(
                compiled._digitise(
                    *(piece.column_signals, piece.variances, *word, first_frame + first, weight, *adc),
                    *(of_product, 0, len(of_product)),
                )
            )
        memories.append(memory)
        return dac_clipped

    return in_threads(read_piece, len(x), frames), sum(adc_clipped)


def _piece_frames(operator: Operator, n: int, block: int) -> int:
    """Return the frames of a piece, in whole blocks, such that every thread has the same number of pieces."""
    tiles, _, width = operator.columns.shape
    threads = torch.get_num_threads()
    most = block * max(1, PIECE_VALUES // (tiles * width * block))
    pieces = threads * -(-n // (threads * most))
    return block * -(-n // (pieces * block))


@dataclass(frozen=True)
class _Memory:
    """The memory of a piece.

    Attributes:
        operands: the rows' values [row_tiles, frames, rows], the columns [row_tiles, rows, columns] and the result
            [row_tiles, frames, columns] of the product of the signals and, with noise, of that of the variances.
        signals, column_signals, noise_terms, variances: the same memory in arrays; the last two are empty without
            noise.
    """

    operands: tuple[tuple[Tensor, Tensor, Tensor], ...]
    signals: Array
    column_signals: Array
    noise_terms: Array
    variances: Array

    @classmethod
    def make(cls, operator: Operator, frames: int) -> _Memory:
        operands = []
        with torch.inference_mode(False):  # other threads, which are not in this mode, could not write to its tensors
            for columns in (operator.columns, operator.noise_columns):
                if columns is not None:
                    tiles, rows, width = columns.shape
                    operands.append((torch.empty(tiles, frames, rows), columns, torch.empty(tiles, frames, width)))
        return cls._of(tuple(operands))

    @classmethod
    def _of(cls, operands: tuple[tuple[Tensor, Tensor, Tensor], ...]) -> _Memory:
        none = np.empty((0, 0, 0), np.float32)
        arrays = [tensor.numpy() for left, _, result in operands for tensor in (left, result)]
        return cls(operands, *(arrays if len(operands) > 1 else (*arrays, none, none)))

    def cut(self, frames: int) -> _Memory:
        """Return the first part of this memory, for fewer frames."""
        return self._of(
            tuple((_first(left, frames), columns, _first(result, frames)) for left, columns, result in self.operands)
        )

    def multiply(self) -> None:
        for left, columns, result in self.operands:
            torch.bmm(left, columns, out=result)


def _first(tensor: Tensor, frames: int) -> Tensor:
    tiles, _, width = tensor.shape
    return tensor.view(-1)[: tiles * frames * width].view(tiles, frames, width)
