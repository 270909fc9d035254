"""Recipes' errors against cells a weight, from results with known numbers."""

from __future__ import annotations

import json

import pytest

from tests.tools.frontier import fewest, frontier, points_of, write_csv


def _point(mapping, cells, *losses):
    return {
        "settings": {"mapping": mapping},
        "full_precision": {"loss": 1.0},
        "mapped": {"cells_per_weight": cells, "trials": [{"loss": loss} for loss in losses]},
    }


POINTS = [
    _point("nearest", 6, 2.0),
    _point("nearest", 4, 9.0),
    _point("mixed-5.5", 5.5, 1.02, 1.06),
    _point("mixed-5", 5, 1.2),
]


def test_recipes_of_one_name_and_several_budgets_are_a_line(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"points": POINTS[:2]}))
    (tmp_path / "b.json").write_text(json.dumps({"points": POINTS[2:]}))
    points = points_of([tmp_path / "a.json", tmp_path / "b.json"])
    assert frontier(points) == {
        "nearest": [(4, [9.0]), (6, [2.0])],
        "mixed": [(5, [1.2]), (5.5, [1.02, 1.06])],
    }
    assert fewest(points, 0.05) == {"nearest": None, "mixed": 5.5}
    with pytest.raises(ValueError, match="no point has a full-precision network"):
        fewest([{"mapped": POINTS[0]["mapped"]}], 0.1)


def test_the_losses_are_kept_for_the_figure(tmp_path):
    write_csv(POINTS, tmp_path / "frontier.csv")
    assert (tmp_path / "frontier.csv").read_text().splitlines() == [
        "recipe,cells_per_weight,chips,mean,min,max",
        "full precision,,,1.0000,,",
        "nearest,4,1,9.0000,9.0000,9.0000",
        "nearest,6,1,2.0000,2.0000,2.0000",
        "mixed,5,1,1.2000,1.2000,1.2000",
        "mixed,5.5,2,1.0400,1.0200,1.0600",
    ]
