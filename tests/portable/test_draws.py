"""Draws on a CPU, by compiled code, against their definition; and chunks in threads."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memsim.portable import draws, elementwise
from memsim.portable.chunks import chunks, for_chunks

CPU = torch.device("cpu")


@given(st.integers(0, 2**63 - 1), st.lists(st.integers(0, 2**62), max_size=50), st.integers(1, 4))
def test_draws_have_the_bits_of_the_definition(key: int, counters: list[int], count: int) -> None:
    at = torch.tensor(counters, dtype=torch.int64)
    words = elementwise.random_words(key, at)
    drawn = draws.random_words(key, at, count)
    assert len(drawn) == count
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(drawn, words, strict=False))
    for ours, theirs in zip(draws.standard_normals(key, at), elementwise.normal_pair(*words[:2]), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_chunk_is_taken_once(threads: int) -> None:
    n = 5 * 2**15 + 3
    taken: list[slice] = []
    used: set[int] = set()

    def take(part: slice) -> None:
        used.add(threading.get_ident())
        taken.append(part)

    torch.set_num_threads(threads)
    try:
        for_chunks(take, n, CPU)
        for_chunks(take, 0, CPU)
    finally:
        torch.set_num_threads(1)
    assert sorted(taken, key=lambda part: part.start) == list(chunks(n, CPU))
    assert len(taken) == 6
    assert 1 <= len(used) <= threads


def test_an_error_in_a_chunk_is_raised() -> None:
    def fail(part: slice) -> None:
        if part.start:
            raise ValueError(part.start)

    with pytest.raises(ValueError, match="32768"):
        for_chunks(fail, 2**15 + 1, CPU)
