"""The frontier of mapping recipes, errors against cells a weight, from results of `memsim eval`.

    memsim eval CHECKPOINT --data DATA --calibrate DATA --loss --set weights.bits=3,4,5,6,8 \\
        --mapping nearest,feedback --json uniform.json
    memsim eval CHECKPOINT --data DATA --calibrate DATA --loss --mapping mixed-5.yaml,mixed-7.yaml --json mixed.json
    python tests/tools/frontier.py uniform.json mixed.json --within 0.05
    python tests/tools/frontier.py uniform.json mixed.json --out tests/figures/frontier.csv

The first prints the fewest cells a weight at which a recipe's loss stays within that share of full precision; `--out`
keeps the losses for the figure that guide_figures.py draws. A name such as `mixed-7` is a point of the line `mixed`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from memsim.storage.files import writing

Result = Mapping[str, Any]


def points_of(paths: Iterable[Path]) -> list[Result]:
    """Read the points in results as `memsim eval --json` writes them; a single point has no settings."""
    found: list[Result] = []
    for path in paths:
        result = json.loads(path.read_text("utf-8"))
        found += result.get("points", [result])
    return found


def frontier(points: Sequence[Result]) -> dict[str, list[tuple[float, list[float]]]]:
    """Return the cells a weight and the chips' losses of each recipe's points, fewest cells first."""
    lines: dict[str, list[tuple[float, list[float]]]] = {}
    for point in points:
        name = re.sub(r"-[\d.]+$", "", str(point.get("settings", {}).get("mapping", "mapped")))
        losses = [trial["loss"] for trial in point["mapped"]["trials"]]
        lines.setdefault(name, []).append((point["mapped"]["cells_per_weight"], losses))
    return {name: sorted(line) for name, line in lines.items()}


def full_precision(points: Sequence[Result]) -> float:
    """Return the loss in full precision. Raises ValueError where no point has it."""
    for point in points:
        if "full_precision" in point:
            return float(point["full_precision"]["loss"])
    raise ValueError("no point has a full-precision network to compare with")


def fewest(points: Sequence[Result], within: float) -> dict[str, float | None]:
    """Return the fewest cells a weight at which each recipe is `within` that share of full precision; None for none."""
    most = (1 + within) * full_precision(points)
    return {
        name: next((cells for cells, losses in line if fmean(losses) <= most), None)
        for name, line in frontier(points).items()
    }


def write_csv(points: Sequence[Result], path: Path) -> None:
    """Write the losses of all recipes, and that of full precision, as the figure takes them."""
    lines = ["recipe,cells_per_weight,chips,mean,min,max", f"full precision,,,{full_precision(points):.4f},,"]
    for name, line in frontier(points).items():
        for cells, losses in line:
            of_chips = ",".join(f"{value:.4f}" for value in (fmean(losses), min(losses), max(losses)))
            lines.append(f"{name},{cells:g},{len(losses)},{of_chips}")
    with writing(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Print and write what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--within", type=float)
    arguments = parser.parse_args()
    points = points_of(arguments.results)
    if arguments.out is not None:
        write_csv(points, arguments.out)
    if arguments.within is not None:
        for name, cells in fewest(points, arguments.within).items():
            print(f"{name}: {'none' if cells is None else f'{cells:.3g} cells per weight'}")


if __name__ == "__main__":
    main()
