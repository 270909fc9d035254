"""Fits of laws of change to few cells."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from memsim.fit.levels.changes import Changes
from memsim.fit.levels.fitting import fit_law, place_knots
from memsim.fit.levels.law import Form

TARGETS = np.array([0.0, 5.0, 10.0, 20.0, 30.0])


def readings(cells: int) -> Changes:
    """Return readings of `cells` cells programmed to TARGETS in turn, by a meter that shows nothing below 0."""
    generator = np.random.default_rng(0)
    start = TARGETS[np.arange(cells) % len(TARGETS)]
    now = np.maximum(start + 0.5 * generator.standard_normal(cells), 0.0)
    zeros = np.zeros(cells, dtype=np.int64)
    return Changes(start=start, now=now, seconds=np.ones(cells), cells=np.arange(cells), group=zeros, first_seconds=1.0)


@pytest.mark.parametrize("knots", [1, 2, 4, 6, 12])
def test_knots_are_at_targets_and_not_between_them(knots: int) -> None:
    places = place_knots(readings(100), knots).numpy()
    assert set(places) <= set(TARGETS)
    assert len(places) == min(knots, len(TARGETS))


def test_knots_of_cells_that_differ_have_as_many_cells_between_them() -> None:
    changes = readings(101)
    apart = Changes(**{**vars(changes), "start": np.linspace(0, 10, 101)})
    np.testing.assert_allclose(place_knots(apart, 3).numpy(), [0.1, 5.0, 9.9])


def test_a_law_of_few_cells_has_no_tail_that_nobody_saw() -> None:
    """Half of the readings of the first target are cut off at 0, which takes its narrow law to no width at all."""
    law = fit_law(readings(100), Form(tail="two_laplaces"), 4)
    _, spread = law.moments(torch.from_numpy(TARGETS), torch.ones(len(TARGETS)))
    assert spread.max() < 3.0  # 0.5 was drawn; 800 without a largest factor
