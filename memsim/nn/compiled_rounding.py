"""Rounding to the steps of a grid and its gradients, compiled for CPUs by numba: one pass over memory each.

`memsim.nn.rounding` has the same in torch operations for any device and dtype; results have the same bits. Numbers of
bfloat16, which numba does not know, are the upper halves of those of float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memsim.portable.kernels import as_array, in_threads, inlined, int16, int32, is_compiled, kernel

BLOCK = 4096  # values that one thread takes at a time where all share a step
LEAST_FOR_THREADS = 1 << 19  # values; fewer are done before another thread wakes up


def can_round(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether `x` can be rounded to `dtype` here: it is float32 on a CPU."""
    return is_compiled(x) and x.dtype == torch.float32 and dtype in (torch.float32, torch.bfloat16)


def rounded(x: Tensor, step: Tensor, per_step: Tensor | None, largest: int, dtype: torch.dtype) -> Tensor:
    """Return the nearest multiples of `step` to `x`, up to `largest` steps from 0, in `dtype`.

    `x` has one `step` for all its values, or one for each of its rows; `per_step`, as many, is a factor that takes the
    place of the division by `step`.
    """
    result = torch.empty(x.shape, dtype=dtype)
    blocks, arrays = _blocks(x, step, per_step)
    _divided(lambda *part: _round(*arrays, np.float32(largest), *_in_dtype(result), *part), blocks, x.numel())
    return result


def gradients(
    gradient: Tensor,
    x: Tensor,
    step: Tensor,
    per_step: Tensor | None,
    largest: int,
    passes: Tensor | None,
    needs_step: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return the gradient of `x` and, where it `needs_step`, the terms whose sum is that of `step`: see `_Rounding`.

    Both are float32 in the shape of `x`. `passes` are truth values for each of its rows; None for none.
    """
    of_x, terms = torch.empty(x.shape), torch.empty(x.shape if needs_step else 0)
    blocks, arrays = _blocks(x, step, per_step)
    each = np.empty(0, np.bool_) if passes is None else as_array(passes.reshape(-1))
    outputs = (np.float32(largest), each, of_x.view(-1).numpy(), terms.view(-1).numpy())
    given = _in_dtype(gradient.contiguous())
    _divided(lambda *part: _gradients(*given, *arrays, *outputs, *part), blocks, x.numel())
    return of_x, terms if needs_step else None


def _blocks(x: Tensor, step: Tensor, per_step: Tensor | None) -> tuple[int, tuple[Any, ...]]:
    """Return the number of blocks of values that share a step, and the first arguments of the kernels."""
    factors = np.zeros(step.numel(), np.float32) if per_step is None else as_array(per_step.reshape(-1))
    length = BLOCK if step.numel() == 1 else x.numel() // step.numel()
    arrays = (as_array(x).reshape(-1), as_array(step.reshape(-1)), factors, length)
    return -(-x.numel() // max(1, length)), arrays


def _in_dtype(values: Tensor) -> tuple[Any, Any]:
    """Return the contiguous `values` as a flat array of float32 and one of bfloat16, of which one is empty."""
    if values.dtype == torch.bfloat16:
        return np.empty(0, np.float32), values.detach().view(torch.int16).view(-1).numpy()
    return values.detach().float().view(-1).numpy(), np.empty(0, np.int16)


def _divided(part: Callable[[int, int], int], blocks: int, values: int) -> None:
    if values < LEAST_FOR_THREADS:
        part(0, blocks)
    else:
        in_threads(part, blocks)


@inlined
def _limited(code, largest):  # type: ignore[no-untyped-def]
    code = largest if code > largest else code  # NaN stays
    return -largest if code < -largest else code


@inlined
def _to_bfloat16(value):  # type: ignore[no-untyped-def]
    bits = np.float32(value).view(np.int32)
    is_odd = int32(int32(bits >> np.int32(16)) & np.int32(1))
    nearest = int32(int32(int32(bits + np.int32(0x7FFF)) + is_odd) >> np.int32(16))
    return int16(nearest if value == value else np.int32(0x7FC0))


@inlined
def _from_bfloat16(half):  # type: ignore[no-untyped-def]
    return np.int32(int32(half) << np.int32(16)).view(np.float32)


@kernel
def _codes(x, step, factor, largest, codes):  # type: ignore[no-untyped-def]
    if factor == np.float32(0):
        for j in range(len(x)):
            codes[j] = _limited(np.rint(x[j] / step), largest)
    else:
        for j in range(len(x)):
            codes[j] = _limited(np.rint(x[j] * factor), largest)


@kernel
def _round(x, steps, factors, length, largest, out, out_halves, first, last):  # type: ignore[no-untyped-def]
    codes = np.empty(length, np.float32)
    for block in range(first, last):
        place = min(block, len(steps) - 1)
        step = steps[place]
        start, stop = block * length, min((block + 1) * length, len(x))
        _codes(x[start:stop], step, factors[place], largest, codes)
        if len(out_halves):
            halves = out_halves[start:stop]
            for j in range(len(halves)):
                halves[j] = _to_bfloat16(codes[j] * step)
        else:
            values = out[start:stop]
            for j in range(len(values)):
                values[j] = codes[j] * step
    return 0


@kernel
def _gradients(  # type: ignore[no-untyped-def]
    gradient, gradient_halves, x, steps, factors, length, largest, passes, of_x, terms, first, last
):
    codes = np.empty(length, np.float32)
    given = np.empty(length, np.float32)
    for block in range(first, last):
        place = min(block, len(steps) - 1)
        step = steps[place]
        start, stop = block * length, min((block + 1) * length, len(x))
        values, result = x[start:stop], of_x[start:stop]
        if len(gradient_halves):
            halves = gradient_halves[start:stop]
            for j in range(len(halves)):
                given[j] = _from_bfloat16(halves[j])
        else:
            given[: len(values)] = gradient[start:stop]
        if len(terms):
            _codes(values, step, factors[place], largest, codes)
            summands = terms[start:stop]
            for j in range(len(values)):
                fraction = values[j] / step
                inside = np.float32(1) if abs(fraction) <= largest else np.float32(0)
                summands[j] = given[j] * (codes[j] - fraction * inside)
        if len(passes) and passes[place]:
            for j in range(len(values)):
                result[j] = given[j]
        else:
            for j in range(len(values)):
                result[j] = given[j] * (np.float32(1) if abs(values[j] / step) <= largest else np.float32(0))
    return 0
