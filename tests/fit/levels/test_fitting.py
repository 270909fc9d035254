"""Fits of laws of change to few cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from memsim.fit.levels.changes import Changes
from memsim.fit.levels.fitting import choose, fit_law, place_knots, widened
from memsim.fit.levels.goodness import coverage
from memsim.fit.levels.law import Form, Tail
from memsim.fit.levels.tables import read_readings
from tests.tools import example_levels

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


@pytest.mark.parametrize("tail", ["two_laplaces", "gaussian_laplace"])
def test_a_law_of_few_cells_has_no_tail_that_nobody_saw(tail: Tail) -> None:
    """Half of the readings of the first target are cut off at 0, which takes its narrow law to no width at all."""
    law = fit_law(readings(100), Form(tail=tail), 4)
    _, spread = law.moments(torch.from_numpy(TARGETS), torch.ones(len(TARGETS)))
    assert spread.max() < 3.0  # 0.5 was drawn; 800 without a largest factor


def moved(cells: int, seed: int) -> Changes:
    """Return readings of cells that are read with Gaussian noise, of which one in ten has moved by far more."""
    generator = np.random.default_rng(seed)
    start = generator.uniform(5, 30, cells)
    has_moved = generator.random(cells) < 0.1
    change = 0.5 * generator.standard_normal(cells) + np.where(has_moved, generator.laplace(0, 4, cells), 0)
    zeros = np.zeros(cells, dtype=np.int64)
    return Changes(np.arange(cells), start, np.ones(cells), start + change, zeros, 1.0)


def test_cells_that_stay_are_gaussian_beside_cells_that_have_moved() -> None:
    """Two Laplaces put 47 % of the readings in intervals of 50 %, and lose 0.03 nats a reading."""
    found = choose(moved(1200, 0), 0, relative=False)
    assert found.form.tail == "gaussian_laplace"
    law, other = (fit_law(moved(1200, 0), Form(tail=tail), 1) for tail in ("gaussian_laplace", "two_laplaces"))
    fresh = moved(20_000, 1)
    assert coverage(law, fresh, 0.5) == pytest.approx(0.5, abs=0.02)
    assert coverage(law, fresh, 0.9) == pytest.approx(0.9, abs=0.025)
    gain = float((law.log_density(*fresh.tensors()) - other.log_density(*fresh.tensors())).mean())
    assert gain > 0.02


def test_a_law_of_few_cells_is_as_wide_as_other_cells_need() -> None:
    """Fitted to 60 cells, 90 % intervals cover 86 % of others, and with the uncertainty of the parameters 90 %."""
    form, fresh = Form(tail="gaussian_laplace"), moved(4000, 100)
    found = []
    for seed in range(6):
        train = moved(60, seed)
        law = fit_law(train, form, 4)
        wide = widened(law, train, 4, 0)
        densities = (float(each.log_density(*fresh.tensors()).mean()) for each in (law, wide))
        found.append((*(coverage(each, fresh, 0.9) for each in (law, wide)), *densities))
    before, after, density_before, density_after = np.mean(found, axis=0)
    assert before < 0.875
    assert after == pytest.approx(0.9, abs=0.02)
    assert density_after > density_before


def test_a_law_of_many_cells_stays_as_it_was_fitted() -> None:
    train = moved(600, 0)
    law = fit_law(train, Form(tail="gaussian_laplace"), 1)
    assert widened(law, train, 1, 0) is law


@pytest.mark.parametrize("seed", [0, 1])
def test_outliers_do_not_decide_the_dependence_on_time(seed: int) -> None:
    """Cells drift slowly under a noise that is constant; under the tails of one Laplace law it seems to grow."""
    generator, cells, seconds = np.random.default_rng(seed), 300, np.array([1.0, 10.0, 100.0, 1e3, 1e4])
    start, has_moved = generator.uniform(5, 30, cells), generator.random(cells) < 0.2
    move = np.where(has_moved, generator.laplace(0, 5, cells), 0)
    change = -0.03 * np.log(seconds) + 0.2 * generator.standard_normal((cells, 5)) + move[:, None]
    changes = Changes(
        cells=np.repeat(np.arange(cells), 5),
        start=np.repeat(start, 5),
        seconds=np.tile(seconds, cells),
        now=(start[:, None] + change).reshape(-1),
        group=np.tile(np.arange(5), cells),
        first_seconds=1.0,
    )
    form = choose(changes, 0, relative=False).form
    assert (form.tail, form.location, form.scale) == ("gaussian_laplace", "log", "constant")


def test_middle_levels_that_are_worse_have_knots_of_their_own(tmp_path: Path) -> None:
    """Cells in the middle change by far more: two knots have nothing there, and lose 0.1 nats a reading."""
    example_levels.write(example_levels.readings("rram", 300, 0), tmp_path / "cells.csv")
    changes = read_readings(tmp_path / "cells.csv").changes
    fitted = np.random.default_rng(0).permutation(np.unique(changes.cells))[:150]
    found = choose(changes.where(np.isin(changes.cells, fitted) & (changes.group < changes.group.max())), 0)
    assert found.knots >= 4
