"""Pulse tables: levels that are numbers of equal pulses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from memsim.errors import InputError
from memsim.fit.levels.fit import fit_levels
from memsim.fit.levels.pulses import LEVELS, read_pulses
from tests.tools.example_levels import pulses, write


def table(path: Path, cells: int = 40) -> Path:
    write(pulses(cells, 1), path)
    return path


def test_levels_are_the_means_after_numbers_of_pulses(tmp_path: Path) -> None:
    read = read_pulses(table(tmp_path / "a.csv"))
    assert read.kind == "pulses"
    made = pulses(40, 1)["conductance_microsiemens"].reshape(40, -1)
    means = made.mean(axis=0)
    assert len(read.targets) <= LEVELS
    assert (np.diff(read.targets) > 0).all()
    np.testing.assert_allclose(read.targets[[0, -1]], [means.min(), means.max()], rtol=1e-4)
    at = [int(np.abs(means - target).argmin()) for target in read.targets]
    np.testing.assert_allclose(read.mean[0], means[at], rtol=1e-4)
    np.testing.assert_allclose(read.deviation[0], made[:, at].std(axis=0, ddof=1), rtol=1e-3)
    # nearest to equal steps: no gap is wider than two of them, though means after few pulses are far apart
    assert np.diff(read.targets).max() < 2 * (means.max() - means.min()) / (LEVELS - 1)


def test_a_device_programs_with_the_spread_of_the_cells(tmp_path: Path) -> None:
    fit = fit_levels(table(tmp_path / "a.csv"), "pulses", tmp_path / "a.yaml")
    spread = fit.document["programming"]["spread"]["table"]
    read = read_pulses(tmp_path / "a.csv")
    np.testing.assert_allclose(spread["values"], read.deviation[0], rtol=1e-3)
    assert fit.kind == "pulses"
    assert any("without verify" in note for note in fit.notes)
    assert "levels by number of pulses" in str(fit)
    assert "┏" not in str(fit), "a table of no checks"


def test_too_few_cells_are_refused_with_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at most 12 cells after a number of pulses, and a spread of levels needs 20"):
        read_pulses(table(tmp_path / "a.csv", cells=12))
