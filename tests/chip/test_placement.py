"""Placement: an example by hand, limits, and what holds for any network."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memsim.chip.architecture import load_chip
from memsim.chip.placement import CoreShare, place
from memsim.errors import InputError
from tests.chip.works import matrix

SMALL = {"tile": {"rows": 4, "cols": 4}}


@cache
def chip(arrays: int = 8):
    return load_chip({"base": "isaac", "cores": 4, "core": {"arrays": arrays}})


def test_by_hand() -> None:
    """Six inputs and five outputs at 3 bits on tiles of 4 x 4: 2 x 2 tiles x 2 slices x 2 polarities = 16 arrays.

    A core has 8: column tile 0 (both row tiles and slices) fills core 0, column tile 1 core 1. The next matrix begins
    in core 2. Chips have a grid of 2 x 2 cores with the digital part at row 1, column 1 (core 3).
    """
    first = matrix("first", (5, 6), **SMALL)
    second = matrix("second", (3, 4), **SMALL)  # one tile, 2 slices, 2 polarities
    placement = place(chip(), [first, second])
    assert placement.by_name["first"].replicas == ((CoreShare(0, 8, 6, 4), CoreShare(1, 8, 6, 1)),)
    assert placement.by_name["second"].replicas == ((CoreShare(2, 4, 4, 3),),)
    assert (placement.arrays, placement.cores, placement.chips) == (20, 3, 1)
    assert placement.array_utilisation == 20 / 24
    assert placement.cell_utilisation == pytest.approx((16 * 30 / 64 + 4 * 12 / 16) / 20)
    # core 0 is two hops from the digital part, core 1 one hop; six inputs of a byte reach both;
    # core 1 sends one sum of two bytes (8-bit ADC, one further slice, one bit for two row tiles) to core 0;
    # core 0 sends five results of a byte back
    traffic = placement.traffic(placement.by_name["first"])
    assert first.sum_bytes == 2
    assert traffic.byte_hops == 6 * 2 + 6 * 1 + 2 * 1 + 5 * 2
    assert (traffic.link_bytes, traffic.links) == (0, 0)


def test_over_two_chips_by_hand() -> None:
    """Five cores of 8 arrays on chips of 4: the last column tile is on the second chip, one link away."""
    work = matrix("layer", (20, 6), **SMALL)
    placement = place(chip(), [work])
    assert (placement.cores, placement.chips) == (5, 2)
    traffic = placement.traffic(placement.by_name["layer"])
    assert traffic.link_bytes == 6 + 4 * 2  # inputs there, sums back
    assert traffic.links == 1


def test_the_next_layer_on_another_chip_receives_its_inputs_over_a_link() -> None:
    first, second = matrix("first", (16, 4), **SMALL), matrix("second", (4, 16), **SMALL)
    placement = place(chip(arrays=4), [first, second])
    assert placement.by_name["second"].home == 4
    assert placement.crossing_bytes(placement.by_name["second"]) == 16
    assert placement.crossing_bytes(placement.by_name["first"]) == 0


def test_a_core_that_is_too_small() -> None:
    work = matrix("layer", weights={"bits": 3, "copies": 2})
    with pytest.raises(InputError, match="a core has 2 arrays, but layer needs 4 that share ADCs"):
        place(chip(arrays=2), [work])


shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))


@settings(deadline=None, max_examples=30)
@given(
    st.lists(shapes, min_size=1, max_size=5),
    st.integers(2, 20),
    st.integers(1, 2),
    st.lists(st.integers(1, 3), min_size=5, max_size=5),
)
def test_nothing_is_lost(layers: list[tuple[int, int]], arrays: int, copies: int, counts: list[int]) -> None:
    arrays = max(arrays, 2 * copies)
    works = [matrix(f"{n}", s, weights={"bits": 3, "copies": copies}, **SMALL) for n, s in enumerate(layers)]
    replicas = {work.name: count for work, count in zip(works, counts, strict=False)}
    placement = place(chip(arrays=arrays), works, replicas)
    on_core: dict[int, int] = {}
    for placed in placement.matrices:
        assert placed.arrays == replicas[placed.work.name] * placed.work.tiling.tiles
        for shares in placed.replicas:
            assert sum(share.arrays for share in shares) == placed.work.tiling.tiles
            for share in shares:
                on_core[share.core] = on_core.get(share.core, 0) + share.arrays
    assert sum(on_core.values()) == placement.arrays
    assert max(on_core.values()) <= arrays
    assert sorted(on_core) == list(range(placement.cores))
    assert 0 < placement.cell_utilisation <= 1


def test_groups_on_the_diagonal() -> None:
    """Depthwise: 6 groups of 3 inputs, one fits a tile of 4 rows: six tiles, each with its rows."""
    work = matrix("depthwise", (6, 3), groups=6, **SMALL)
    placement = place(chip(arrays=64), [work])
    (share,) = placement.by_name["depthwise"].replicas[0]
    assert (share.arrays, share.rows, share.columns) == (work.tiling.tiles, 18, 6)
