"""Draw the frontier of mapping recipes: errors against cells a weight, from results of `memsim eval`.

    memsim eval CHECKPOINT --data DATA --calibrate DATA --loss --set weights.bits=3,4,5,6,8 \\
        --mapping nearest,feedback --json uniform.json
    memsim eval CHECKPOINT --data DATA --calibrate DATA --loss --mapping mixed-5.yaml,mixed-7.yaml --json mixed.json
    python -m tests.tools.frontier uniform.json mixed.json -o tests/figures/frontier.svg --within 0.05

With `--within`, the fewest cells a weight are printed at which a recipe stays within that share of full precision. A
name such as `mixed-7` is a point of the line `mixed`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from memsim.report.drawing import MARKERS, Label, caption, drawing, error_bars, label_ends, series_colours
from memsim.storage.files import writing

Result = Mapping[str, Any]

UNITS = {"loss": "cross-entropy", "wer": "WER (%)"}
"""The measures that can be drawn, with the titles of their axes."""


def points_of(paths: Iterable[Path]) -> list[Result]:
    """Read the points in results as `memsim eval --json` writes them; a single point has no settings."""
    found: list[Result] = []
    for path in paths:
        result = json.loads(path.read_text("utf-8"))
        found += result.get("points", [result])
    return found


def frontier(points: Sequence[Result], measure: str) -> dict[str, list[tuple[float, list[float]]]]:
    """Return the cells a weight and the chips' values of `measure` of each recipe's points, fewest cells first."""
    lines: dict[str, list[tuple[float, list[float]]]] = {}
    for point in points:
        name = re.sub(r"-[\d.]+$", "", str(point.get("settings", {}).get("mapping", "mapped")))
        values = [trial[measure] for trial in point["mapped"]["trials"]]
        lines.setdefault(name, []).append((point["mapped"]["cells_per_weight"], values))
    return {name: sorted(line) for name, line in lines.items()}


def fewest(points: Sequence[Result], measure: str, within: float) -> dict[str, float | None]:
    """Return the fewest cells a weight at which each recipe is `within` that share of full precision; None for none."""
    full = next((point["full_precision"][measure] for point in points if "full_precision" in point), None)
    if full is None:
        raise ValueError("no point has a full-precision network to compare with")
    return {
        name: next((cells for cells, values in line if fmean(values) <= (1 + within) * full), None)
        for name, line in frontier(points, measure).items()
    }


def draw(points: Sequence[Result], measure: str, path: Path, top: float | None = None) -> None:
    """Draw `measure` against cells a weight, a line for each recipe, as SVG; `top` is the largest value shown."""
    factor = 100 if measure == "wer" else 1
    lines = frontier(points, measure)
    with drawing(height=3.6, width=6.4) as made:
        ends = []
        for number, (name, line) in enumerate(lines.items()):
            colour, marker = series_colours(len(lines))[number], MARKERS[number % len(MARKERS)]
            cells = [cells for cells, _ in line]
            mean, low, high = ([factor * f(values) for _, values in line] for f in (fmean, min, max))
            made.axes.errorbar(cells, mean, error_bars(mean, low, high), marker=marker, color=colour)
            ends.append(Label(cells[-1], mean[-1] if top is None else min(mean[-1], top), name, colour))
        full = next((point["full_precision"][measure] for point in points if "full_precision" in point), None)
        if full is not None:
            made.axes.axhline(factor * full, linestyle=":", color="black")
            ends.append(Label(0, factor * full, "full precision", "black"))
        made.axes.set(xlabel="cells per weight", ylabel=UNITS[measure])
        made.axes.set_ylim(0, top)
        caption(made.figure, "points: means over chips; bars: from the best to the worst chip")
        label_ends(made.axes, ends)
    with writing(path) as temporary:
        temporary.write_bytes(made.svg)


def main() -> None:
    """Draw the figure that the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--measure", choices=UNITS, default="loss")
    parser.add_argument("--top", type=float)
    parser.add_argument("--within", type=float)
    arguments = parser.parse_args()
    points = points_of(arguments.results)
    draw(points, arguments.measure, arguments.out, arguments.top)
    if arguments.within is not None:
        for name, cells in fewest(points, arguments.measure, arguments.within).items():
            print(f"{name}: {'none' if cells is None else f'{cells:.3g} cells per weight'}")


if __name__ == "__main__":
    main()
