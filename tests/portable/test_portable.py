"""The portable random numbers and functions: known answers, accuracy, and equal bits in torch and in compiled code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from memsim.portable import compiled, elementwise
from memsim.portable.constants import split_key

WORDS = st.integers(0, 2**32 - 1)
MOST_COUNTERS = 64


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, 0xFFFFFFFFFFFFFFFF, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_published_words(counter: tuple[int, ...], key: int, words: tuple[int, ...]) -> None:
    """The known answers are those of Random123, the library of its authors."""
    c0, c1, c2, c3 = (torch.tensor(word) for word in counter)
    assert tuple(int(word) for word in elementwise.philox((c0, c1, c2, c3), key)) == words
    (drawn,) = _compiled_words(key, (counter[1] << 32) | counter[0], counter[2], counter[3], 1).T
    assert tuple(drawn.tolist()) == words


def _compiled_words(key: int, first: int, stream: int, draw: int, n: int) -> np.ndarray[Any, Any]:
    words = np.empty((4, n), np.uint32)
    low, high = (np.uint32(half) for half in split_key(key))
    compiled.random_words(words, np.uint64(first), np.uint32(stream), np.uint32(draw), low, high)
    return words


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**40), WORDS, WORDS, st.integers(1, MOST_COUNTERS))
def test_words_and_normals_have_the_same_bits_in_torch_and_compiled(
    key: int, first: int, stream: int, draw: int, n: int
) -> None:
    counters = torch.arange(first, first + n)
    expected = elementwise.random_words(key, counters, stream, draw)
    words = _compiled_words(key, first, stream, draw, n)
    assert np.array_equal(torch.stack(expected).numpy(), words)
    low, high = (np.uint32(half) for half in split_key(key))
    scattered = np.empty_like(words)
    compiled.random_words_of(
        scattered, counters.numpy().astype(np.uint64), np.uint32(stream), np.uint32(draw), low, high
    )
    assert np.array_equal(scattered, words)
    pair = np.empty((2, n), np.float32)
    compiled.normal_pairs(pair[0], pair[1], words[0], words[1])
    expected_pair = torch.stack(elementwise.normal_pair(expected[0], expected[1]))
    assert np.array_equal(expected_pair.numpy().view(np.int32), pair.view(np.int32))


@njit
def _functions(x, log, log2, exp2):  # type: ignore[no-untyped-def]
    for i in range(len(x)):
        log[i], log2[i], exp2[i] = compiled.log(x[i]), compiled.log2(x[i]), compiled.exp2(x[i])


def test_functions_are_accurate_and_have_the_same_bits_in_torch_and_compiled() -> None:
    x = torch.logspace(-30, 30, 1 << 16)
    small = torch.linspace(-130, 130, 1 << 16)
    results = np.empty((3, 2, len(x)), np.float32)
    for row, values in enumerate((x, small)):
        _functions(values.numpy(), *results[:, row])
    for name, (of_x, _) in zip(("log", "log2"), results[:2], strict=True):
        assert torch.equal(getattr(elementwise, name)(x), torch.from_numpy(of_x))
        exact = getattr(torch, name)(x.double())
        torch.testing.assert_close(torch.from_numpy(of_x).double(), exact, rtol=2e-7, atol=1e-7)
    power = torch.from_numpy(results[2, 1])
    assert torch.equal(elementwise.exp2(small), power)
    torch.testing.assert_close(power.double(), small.double().clamp(-126, 126).exp2(), rtol=2e-7, atol=0)


def test_square_roots_are_rounded_correctly() -> None:
    x = torch.rand(1 << 16, generator=torch.Generator().manual_seed(1)) * 30
    assert torch.equal(elementwise.sqrt(x), torch.from_numpy(np.sqrt(x.numpy())))


def test_uniform_numbers_are_below_1() -> None:
    words = torch.tensor([0, 255, 256, 2**31, 2**32 - 1])
    assert elementwise.uniform(words).tolist() == [0, 0, 2.0**-24, 0.5, 1 - 2.0**-24]


def test_normals_of_extreme_words_are_finite() -> None:
    extreme = torch.tensor([0, 1, 2**31 - 1, 2**31, 2**32 - 1])
    radius, angle = torch.cartesian_prod(extreme, extreme).T
    pair = torch.stack(elementwise.normal_pair(radius, angle))
    assert torch.isfinite(pair).all()
    assert 6.5 < pair.abs().max() < 6.8
