"""States of fresh cells compiled for CPUs by numba; `features.StateLaw` is their definition."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from memsim.portable.compiled import exp2, normal_pairs, random_words_of
from memsim.portable.draws import key_words
from memsim.portable.kernels import as_array, inlined, kernel

Row = tuple[np.float32, ...]


class StateArguments(NamedTuple):
    """A `features.StateLaw` in float32; its sizes are part of its type, so that loops over them are unrolled."""

    first_words: tuple[np.uint32, ...]  # [K] of each component of the mixture
    least_radius_word: np.uint32
    hrs_gamma: Row
    lrs_gamma: Row
    hrs_table: tuple[Row, ...]  # [K] rows of m_mu, m_sigma, a, b, c
    lrs_table: tuple[Row, ...]
    hrs_limits: Row  # least and greatest log10 ohm
    lrs_limits: Row
    lrs_is_log10: bool
    log2_of_siemens: np.float32  # for each decade of ohms
    open_state: np.float32
    state_per_siemens: np.float32


BLOCK = 1024
"""Cells whose random words and normals are in a core's cache together."""
_ZERO, _ONE, _FIRST = np.float32(0), np.float32(1), np.uint32(0)


def draw_states(arguments: StateArguments, set_mask: Tensor, cells: Tensor, key: int) -> Tensor:
    """Draw the states r [n] of `cells` [n] with `key`, in LRS where `set_mask` [n], else in HRS."""
    r = np.empty(len(cells), np.float32)
    _draw_states(r, as_array(set_mask), as_array(cells).view(np.uint64), *key_words(key), arguments)
    return torch.from_numpy(r)


def single_pulse(digits: Tensor, r: Tensor, set_joules: tuple[float, float], reset_joules: float) -> tuple[Tensor, ...]:
    """Return pulses, verify reads, failures and joules of cells: see `SinglePulseProgrammer.outcome_by_definition`."""
    columns = tuple(np.empty(len(digits), dtype) for dtype in (np.int32, np.int32, np.bool_, np.float32))
    energies = (np.float32(value) for value in (*set_joules, reset_joules))
    _single_pulse(*columns, as_array(digits), as_array(r), *energies)
    return tuple(torch.from_numpy(column) for column in columns)


@kernel
def _single_pulse(pulses, reads, failed, joules, digits, r, window, llrs, reset):  # type: ignore[no-untyped-def]
    for j in range(len(digits)):
        pulses[j] = np.int32(digits[j] + np.int32(1))
        reads[j] = np.int32(0)
        failed[j] = False
        joules[j] = (r[j] * window + llrs) * np.float32(digits[j]) + reset


@kernel
def _draw_states(r, set_mask, cells, key_0, key_1, law):  # type: ignore[no-untyped-def]
    words, x, z = _buffers(min(BLOCK, len(r)))
    for first in range(0, len(r), BLOCK):
        last = min(first + BLOCK, len(r))
        if last - first < len(x):
            words, x, z = _buffers(last - first)
        random_words_of(words, cells[first:last], _FIRST, _FIRST, key_0, key_1)
        _limit(words[1], law.least_radius_word)
        normal_pairs(x, z, words[1], words[2])
        _states(r[first:last], set_mask[first:last], words[0], x, z, law)


@inlined
def _buffers(n):  # type: ignore[no-untyped-def]
    # of the exact size: a slice [:, :n] would not be contiguous, and its loops would not be vectorised
    return np.empty((4, n), np.uint32), np.empty(n, np.float32), np.empty(n, np.float32)


@kernel
def _limit(words, least):  # type: ignore[no-untyped-def]
    for j in range(len(words)):
        words[j] = max(words[j], least)


@kernel
def _states(r, set_mask, words, x, z, law):  # type: ignore[no-untyped-def]
    for j in range(len(r)):
        is_set = set_mask[j] != 0
        m_mu, m_sigma, a, b, c = _row_of(words[j], is_set, law)
        g = law.lrs_gamma[0] if is_set else law.hrs_gamma[0]
        for i in range(1, len(law.lrs_gamma)):
            g = g * x[j] + (law.lrs_gamma[i] if is_set else law.hrs_gamma[i])
        of_sigma, own = a + b * g, c * g
        y = (m_mu + m_sigma * g) + np.sqrt(of_sigma * of_sigma + own * own) * z[j]
        least, most = law.lrs_limits if is_set else law.hrs_limits
        y = min(max(y, least), most)
        siemens = _ONE / y if is_set and not law.lrs_is_log10 else exp2(y * law.log2_of_siemens)
        r[j] = law.open_state - siemens * law.state_per_siemens


@inlined
def _row_of(word, is_set, law):  # type: ignore[no-untyped-def]
    # by comparisons, as processors read a table far more slowly
    m_mu = m_sigma = a = b = c = _ZERO
    for k in range(len(law.first_words)):
        if word >= law.first_words[k]:
            hrs, lrs = law.hrs_table[k], law.lrs_table[k]
            m_mu = lrs[0] if is_set else hrs[0]
            m_sigma = lrs[1] if is_set else hrs[1]
            a = lrs[2] if is_set else hrs[2]
            b = lrs[3] if is_set else hrs[3]
            c = lrs[4] if is_set else hrs[4]
    return m_mu, m_sigma, a, b, c
