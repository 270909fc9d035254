from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from memsim.rng import derive_seed, generator

KEYS = st.lists(st.integers(-(2**70), 2**70) | st.text(max_size=5), max_size=4)


@given(KEYS)
def test_seeds_are_63_bits_and_depend_on_the_key_alone(key: list[int | str]) -> None:
    assert 0 <= derive_seed(*key) < 2**63
    assert derive_seed(*key) == derive_seed(*key)


@given(KEYS, KEYS)
def test_other_keys_have_other_seeds(one: list[int | str], other: list[int | str]) -> None:
    assert (derive_seed(*one) == derive_seed(*other)) == (one == other)


def test_keys_that_look_alike() -> None:
    keys: list[tuple[int | str, ...]] = [
        *[
            (),
            ("",),
            ("", ""),
            (1,),
            ("1",),
            (1, 1),
            (11,),
            ("a", "b"),
            ("ab",),
            ("a, b",),
            ("a', 'b",),
            (0, "a"),
            ("a", 0),
        ]
    ]
    assert len({derive_seed(*key) for key in keys}) == len(keys)


def test_seeds_are_pinned() -> None:
    # A changed seed would change every chip that was ever programmed.
    assert derive_seed(0, "blocks.0.attention.query", "programming") == PINNED
    assert generator(0, "a").initial_seed() == derive_seed(0, "a")


PINNED = 7102838490119432108


def test_no_global_generator() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = torch.rand(5, generator=generator(0, "layer"))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(torch.rand(5, generator=generator(0, "layer")), first)
    assert not torch.equal(torch.rand(5, generator=generator(1, "layer")), first)


def test_generators_of_different_keys_are_independent() -> None:
    draws = torch.stack([torch.randn(2000, generator=generator(0, "layer", i)) for i in range(50)])
    correlations = torch.corrcoef(draws) - torch.eye(50)
    assert correlations.abs().max() < 5.5 / 2000**0.5
