"""The columns of the cells of a training step, compiled for CPUs by numba: one pass from levels to a product's factors.

`memsim.nn.transfer` has the same in torch operations for any device; results have the same bits.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from memsim.portable.kernels import as_array, in_threads, kernel, uint32

BLOCK_ROWS = 16  # inputs at a time: their levels of one output lie in a cache line


def columns(
    levels: Tensor, rows_of_states: Tensor, draws: Tensor | None, states: Tensor, factors: Tensor, result: Tensor
) -> None:
    """Write the states of the cells that hold `levels` [out, in], times `factors` [row_tiles, slices * out].

    The `result` [row_tiles, rows, at least slices * out] is 0 elsewhere. `rows_of_states` [slices, levels] are the rows
    of `states` [signed digits, pairs] for each level from the most negative one, and the last bits of `draws` [slices,
    in, out], int16, are the pairs; there are as many as a power of 2. None draws the first.
    """
    chosen = np.empty((0, 0, 0), np.uint16) if draws is None else draws.numpy().view(np.uint16)
    arrays = (
        as_array(levels.float()),
        as_array(rows_of_states),
        chosen,
        as_array(states),
        as_array(factors.float()),
        result.numpy(),
    )
    in_threads(lambda first, last: _columns(*arrays, first, last), -(-levels.shape[1] // BLOCK_ROWS))


@kernel
def _columns(levels, rows_of_states, draws, states, factors, result, first, last):  # type: ignore[no-untyped-def]
    outputs, inputs = levels.shape
    slices, middle, rows = len(rows_of_states), rows_of_states.shape[1] // 2, result.shape[1]
    pairs = states.shape[1]
    values, mask = states.reshape(-1), np.uint32(pairs - 1)
    starts = (rows_of_states * pairs).astype(np.uint32)
    places = np.empty((BLOCK_ROWS, outputs), np.uint32)
    largest = np.float32(middle)
    for block in range(first, last):
        start, stop = block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, inputs)
        for output in range(outputs):
            for row in range(start, stop):
                level = levels[output, row]
                known = level if abs(level) <= largest else np.float32(0)  # NaN has no cells; gradients still show it
                places[row - start, output] = uint32(middle + int(known))
        for row in range(start, stop):
            tile = row // rows
            for index in range(slices):
                part = slice(index * outputs, (index + 1) * outputs)
                cells, factor = result[tile, row - tile * rows, part], factors[tile, part]
                start_of, place = starts[index], places[row - start]
                if len(draws):
                    drawn = draws[index, row]
                    for output in range(outputs):
                        cells[output] = values[start_of[place[output]] + uint32(drawn[output] & mask)] * factor[output]
                else:
                    for output in range(outputs):
                        cells[output] = values[start_of[place[output]]] * factor[output]
    return 0
