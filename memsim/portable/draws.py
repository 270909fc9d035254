"""Random words and normals of counters, by compiled code on CPUs and by `elementwise` elsewhere, with the same bits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from memsim.portable import compiled, elementwise
from memsim.portable.constants import split_key
from memsim.portable.kernels import as_array, is_compiled

_FIRST = np.uint32(0)


def random_words(key: int, counters: Tensor, count: int) -> tuple[Tensor, ...]:
    """Return the first `count` of the four random words, each [n] in an int64, of `counters` [n] (int64)."""
    if not is_compiled(counters):
        return elementwise.random_words(key, counters)[:count]
    return tuple(torch.from_numpy(_words(key, counters)[:count].astype(np.int64)))


def standard_normals(key: int, counters: Tensor) -> tuple[Tensor, Tensor]:
    """Return two standard normals, [n] each, float32, for each of `counters` [n] (int64)."""
    if not is_compiled(counters):
        radius_words, angle_words, _, _ = elementwise.random_words(key, counters)
        return elementwise.normal_pair(radius_words, angle_words)
    words = _words(key, counters)
    first, second = np.empty((2, len(counters)), np.float32)
    compiled.normal_pairs(first, second, words[0], words[1])
    return torch.from_numpy(first), torch.from_numpy(second)


def key_words(key: int) -> tuple[np.uint32, np.uint32]:
    """Return the two words of a 64-bit key for kernels."""
    low, high = split_key(key)
    return np.uint32(low), np.uint32(high)


def _words(key: int, counters: Tensor) -> np.ndarray[tuple[int, int], np.dtype[np.uint32]]:
    words = np.empty((4, len(counters)), np.uint32)
    compiled.random_words_of(words, as_array(counters).view(np.uint64), _FIRST, _FIRST, *key_words(key))
    return words
