"""The figure and the table of configs/devices/README.md: WER against the time since programming, by device.

    python tests/tools/wer_by_time.py --keep pcm-hermes.json sonos.json
    python tests/tools/wer_by_time.py --figure tests/figures/wer-by-time.svg

The first takes results of `memsim eval --set read_at_seconds=... --set drift_compensation=...`, one file a device, into
tests/figures/wer-by-time.csv, beside those of other devices. The second draws what is there, and prints the table. Both
are run in the repository's root.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

from memsim.report.drawing import error_bars, svg_of
from memsim.storage.files import writing

KEPT = Path("tests/figures/wer-by-time.csv")
COMPENSATIONS = ("none", "layer", "column")
TIMES = {1.0: "1 s", 3600.0: "1 hour", 86400.0: "1 day", 2592000.0: "30 days"}
TOP = 12.0
"""The largest WER in % that the figure shows, so that the devices which work are told apart; the table has all."""


class Row(NamedTuple):
    """WERs in % of a device at a time, over chips."""

    device: str
    compensation: str
    seconds: float
    chips: int
    digital: float
    mean: float
    low: float
    high: float


def of_results(path: Path) -> list[Row]:
    """Return the rows of a results file as `memsim eval --json` writes it."""
    rows = []
    for point in json.loads(path.read_text())["points"]:
        settings, wer, spec = point["settings"], point["mapped"]["wer"], point["hardware"]["spec"]
        law = spec["programming"].get("relaxation")
        over_chips = (round(100 * wer[key], 2) for key in ("mean", "min", "max"))
        rows.append(
            Row(
                f"{spec['cell']}, relaxing as {law}" if law else spec["cell"],
                settings["drift_compensation"] or "none",
                float(settings["read_at_seconds"]),
                len(point["mapped"]["trials"]),
                round(100 * point["digital"]["wer"], 2),
                *over_chips,
            )
        )
    return rows


def read(path: Path) -> list[Row]:
    """Return the rows that are kept in `path`; none where it does not exist."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [
            Row(row["device"], row["compensation"], float(row["seconds"]), int(row["chips"]), *map(float, rest))
            for row in csv.DictReader(file)
            for rest in [[row[key] for key in Row._fields[4:]]]
        ]


def keep(rows: Sequence[Row], path: Path) -> None:
    """Write `rows`."""
    with writing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows([f"{value:g}" if isinstance(value, float) else value for value in row] for row in rows)


def draw(rows: Sequence[Row]) -> Figure:
    """Draw WER against time, a panel for each compensation and a line for each device; bars reach over the chips."""
    devices = list(dict.fromkeys(row.device for row in rows))
    with mpl.rc_context({"font.size": 10}):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        panels = figure.subplots(1, len(COMPENSATIONS), sharey=True)
        for axes, compensation in zip(panels, COMPENSATIONS, strict=True):
            for number, device in enumerate(devices):
                own = sorted(row for row in rows if (row.device, row.compensation) == (device, compensation))
                if not own:
                    continue
                mean, low, high = ([row[at] for row in own] for at in (5, 6, 7))
                axes.errorbar(
                    [row.seconds * 1.06 ** (number - len(devices) / 2) for row in own],
                    mean,
                    error_bars(mean, low, high),
                    marker="os^Dv<>PX*"[number % 10],
                    markersize=4,
                    capsize=2,
                    color=f"C{number % 10}",
                    label=device,
                )
            digital = {row.digital for row in rows}
            axes.axhline(min(digital), linestyle=":", color="black", label="digital, quantised")
            axes.set_xscale("log")
            axes.set_xticks(list(TIMES), list(TIMES.values()))
            axes.minorticks_off()
            title = "no compensation" if compensation == "none" else f"compensated by {compensation}"
            axes.set(title=title, xlabel="time since programming")
            axes.grid(alpha=0.3)
        panels[0].set_ylabel("WER (%)")
        panels[0].set_ylim(0, min(TOP, 1.05 * max(row.high for row in rows)))
        figure.legend(*panels[0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=5)
    return figure


def table(rows: Sequence[Row]) -> str:
    """Return the table of the guide in Markdown: a line for each device, WER in % without, by layer and by column."""
    lines = [f"| `--cell` | chips | {' | '.join(TIMES.values())} |", "|---" * (len(TIMES) + 2) + "|"]
    found = {(row.device, row.compensation, row.seconds): f"{row.mean:.1f}" for row in rows}
    for device, chips in dict.fromkeys((row.device, row.chips) for row in rows):
        cells = [" / ".join(found.get((device, how, t), "–") for how in COMPENSATIONS) for t in TIMES]
        cells = ["" if set(cell) <= set("– /") else cell for cell in cells]
        lines.append(f"| `{device}` | {chips} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--keep", type=Path, nargs="+", metavar="RESULTS", help="results to take in, one file a device")
    what.add_argument("--figure", type=Path, metavar="FILE.svg", help="the figure to draw")
    given, rows = parser.parse_args(), read(KEPT)
    if given.keep:
        fresh = [row for path in given.keep for row in of_results(path)]
        renewed = {row.device for row in fresh}
        keep([*(row for row in rows if row.device not in renewed), *fresh], KEPT)
        return
    with writing(given.figure) as temporary:
        temporary.write_bytes(svg_of(draw(rows)))
    print(table(rows))


if __name__ == "__main__":
    main()
