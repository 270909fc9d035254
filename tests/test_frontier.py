"""The figure of recipes' errors against cells a weight, from results with known numbers."""

from __future__ import annotations

import json

import pytest

from tests.tools.frontier import draw, fewest, frontier, points_of


def _point(mapping, cells, *losses):
    return {
        "settings": {"mapping": mapping},
        "full_precision": {"loss": 1.0},
        "mapped": {"cells_per_weight": cells, "trials": [{"loss": loss, "wer": loss / 10} for loss in losses]},
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
    assert frontier(points, "loss") == {
        "nearest": [(4, [9.0]), (6, [2.0])],
        "mixed": [(5, [1.2]), (5.5, [1.02, 1.06])],
    }
    assert fewest(points, "loss", 0.05) == {"nearest": None, "mixed": 5.5}
    with pytest.raises(ValueError, match="no point has a full-precision network"):
        fewest([{"mapped": POINTS[0]["mapped"]}], "loss", 0.1)


def test_the_same_results_give_the_same_figure(tmp_path):
    for name in ("a.svg", "b.svg"):
        draw(POINTS, "loss", tmp_path / name, top=3.0)
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    assert all(words in text for words in ("cells per weight", "cross-entropy", "nearest", "mixed", "full precision"))
