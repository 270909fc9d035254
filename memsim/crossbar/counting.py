"""The counting of float32 numbers in the tables of `MagnitudeHistogram`, compiled for CPUs.

A table [groups, 1 + bins + 1], float64, has the counts of one group in each row. All bits of a magnitude but the last
`shift` give its bin: the leading bits `first` are those of the first bin, `first` + 1 those of the next one, and so on.
The first column counts what is below the bins, and the last one what is above them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from memsim.portable.kernels import as_array, in_threads, int32, is_compiled, kernel

WORTH_THREADS = 1 << 17
"""The number of values from which threads save more time than it takes to start them."""


def count(
    table: Tensor, largest: Tensor, values: Tensor, groups: Tensor, weights: Tensor | None, *, first: int, shift: int
) -> None:
    """Count `values` [rows, n], of which row i is of group `groups` [rows] (int32) i, in `table`.

    Each value of row i counts `weights` [rows] (float64) i times (None: once). `largest` [groups] (int32) has the bits
    of the largest magnitude so far.
    """
    if not is_compiled(values):
        _count_on_device(table, largest, values, groups[:, None], weights, first, shift)
        return
    each = np.empty(0) if weights is None else as_array(weights)
    numbers = (np.int32(first), np.int32(shift), table.numpy(), largest.numpy())
    arrays = (as_array(values.view(torch.int32)), as_array(groups), each, *numbers)

    def part(first_group: int, last_group: int) -> int:
        _count(*arrays, first_group, last_group)
        return 0

    if values.numel() < WORTH_THREADS:
        part(0, len(table))
    else:
        in_threads(part, len(table))


def count_by_sign(table: Tensor, largest: Tensor, values: Tensor, *, first: int, shift: int) -> None:
    """Count `values` [n] as `count` does: negative ones are of group 0, the others of group 1."""
    if not is_compiled(values):
        _count_on_device(table, largest, values, (values.view(torch.int32) >= 0).int(), None, first, shift)
        return
    codes, numbers = as_array(values.view(torch.int32)), (np.int32(first), np.int32(shift))
    if len(codes) < WORTH_THREADS:
        _count_by_sign(codes, *numbers, table.numpy(), largest.numpy())
        return
    found = []

    def part(first_value: int, last_value: int) -> int:
        own, most = np.zeros(table.shape), np.zeros(2, np.int32)
        _count_by_sign(codes[first_value:last_value], *numbers, own, most)
        found.append((own, most))
        return 0

    in_threads(part, len(codes))
    for own, most in found:
        table += torch.from_numpy(own)
        torch.maximum(largest, torch.from_numpy(most), out=largest)


def _count_on_device(
    table: Tensor, largest: Tensor, values: Tensor, groups: Tensor, weights: Tensor | None, first: int, shift: int
) -> None:
    """Count in torch operations; `groups` [..., 1 or n] are those of rows or of values."""
    magnitudes, columns = values.view(torch.int32) & _MAGNITUDE, table.shape[1]
    places = ((magnitudes >> shift) - (first - 1)).clamp_(0, columns - 1).long() + columns * groups
    each = None if weights is None else weights[:, None].expand_as(values).flatten()
    table += torch.bincount(places.flatten(), each, minlength=table.numel()).view(table.shape)
    largest.scatter_reduce_(0, groups.expand_as(values).flatten().long(), magnitudes.flatten(), "amax")


_MAGNITUDE = 0x7FFFFFFF


@kernel
def _count(codes, groups, weights, first, shift, table, largest, first_group, last_group):  # type: ignore[no-untyped-def]
    below, last = int32(first - int32(1)), int32(table.shape[1] - 1)
    for row in range(len(codes)):
        group = groups[row]
        if first_group <= group < last_group:
            counts, each, most = table[group], weights[row] if len(weights) else 1.0, int32(0)
            for i in range(codes.shape[1]):
                magnitude = int32(codes[row, i] & _MAGNITUDE)
                most = max(most, magnitude)
                counts[min(max(int32(int32(magnitude >> shift) - below), int32(0)), last)] += each
            largest[group] = max(largest[group], most)


@kernel
def _count_by_sign(codes, first, shift, table, largest):  # type: ignore[no-untyped-def]
    below, columns = int32(first - int32(1)), int32(table.shape[1])
    last, counts = int32(columns - int32(1)), table.reshape(-1)
    for i in range(len(codes)):
        is_negative = int32(codes[i] >> int32(31))  # all bits of it set, or none
        magnitude = int32(codes[i] & _MAGNITUDE)
        largest[0] = max(largest[0], int32(magnitude & is_negative))
        largest[1] = max(largest[1], int32(magnitude & ~is_negative))
        place = min(max(int32(int32(magnitude >> shift) - below), int32(0)), last)
        counts[int32(place + int32(columns & ~is_negative))] += 1.0
