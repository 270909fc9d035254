"""Keep results of devices over time in tests/figures/wer-by-time.csv, and print the table of configs/devices/README.md.

    python tests/tools/wer_by_time.py --keep pcm-hermes.json sonos.json

takes in results of `memsim eval --set read_at_seconds=... --set drift_compensation=...`, beside those of other devices,
and prints the table: WER against the time since programming, by device. `guide_figures.py` draws the figure.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from guide_figures import AGES, FOLDER, table_of, write_table

KEPT = FOLDER / "wer-by-time.csv"
COMPENSATIONS = ("none", "layer", "column")


def of_results(path: Path) -> list[dict[str, object]]:
    """Return the rows of a results file as `memsim eval --json` writes it: WERs in %, over chips."""
    rows = []
    for point in json.loads(path.read_text("utf-8"))["points"]:
        settings, wer, spec = point["settings"], point["mapped"]["wer"], point["hardware"]["spec"]
        law = spec["programming"].get("relaxation")
        shown = {"digital": point["digital"]["wer"], "mean": wer["mean"], "low": wer["min"], "high": wer["max"]}
        rows.append(
            {
                "device": f"{spec['cell']}, relaxing as {law}" if law else spec["cell"],
                "compensation": settings["drift_compensation"] or "none",
                "seconds": f"{settings['read_at_seconds']:g}",
                "chips": len(point["mapped"]["trials"]),
            }
            | {key: f"{100 * value:.2f}" for key, value in shown.items()}
        )
    return rows


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return the table of the guide in Markdown: a line for each device, WER in % without, by layer and by column."""
    lines = [f"| `--cell` | chips | {' | '.join(AGES.values())} |", "|---" * (len(AGES) + 2) + "|"]
    found = {(row["device"], row["compensation"], float(row["seconds"])): f"{float(row['mean']):.1f}" for row in rows}
    for device, chips in dict.fromkeys((row["device"], row["chips"]) for row in rows):
        cells = [" / ".join(found.get((device, how, age), "–") for how in COMPENSATIONS) for age in AGES]
        cells = ["" if set(cell) <= set("– /") else cell for cell in cells]
        lines.append(f"| `{device}` | {chips} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, nargs="+", default=[], metavar="RESULTS", help="results to take in")
    parser.add_argument(
        "--table", type=Path, default=KEPT, metavar="CSV", help="table that keeps them (default: %(default)s)"
    )
    arguments = parser.parse_args()
    fresh = [row for path in arguments.keep for row in of_results(path)]
    renewed = {row["device"] for row in fresh}
    rows = table_of(arguments.table) if arguments.table.exists() else []
    if fresh:
        kept = [row for row in rows if row["device"] not in renewed]
        write_table(arguments.table, sorted([*kept, *fresh], key=lambda row: str(row["device"])))
    print(table(table_of(arguments.table)))


if __name__ == "__main__":
    main()
