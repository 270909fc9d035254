"""Make the result tables and the figure of the README: one checkpoint on several specs and weight bits.

    python tests/tools/readme_results.py --data tedlium2 --data-root AN4 --split test --figure FIGURE.svg
    python tests/tools/readme_results.py --bits 3 --hardware physical best --set programming.relaxation=0.02

Writes one JSON a point (a point that is there already is kept, so a stopped run goes on), then the table in Markdown,
and with `--figure` FIGURE.csv and the figure that `guide_figures.py` draws from it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from guide_figures import by_bits_row, full_precision_row, readme_figure, write_figure, write_table

from memsim.report.sections import hardware_title


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="demo-float")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--split")
    parser.add_argument("--hardware", nargs="+", default=["ideal", "paper", "physical", "best"])
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 4, 3, 2])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("build/results"))
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = [point(arguments, hardware, bits) for hardware in arguments.hardware for bits in arguments.bits]
    print(table(results))
    if arguments.figure:
        csv = arguments.figure.with_suffix(".csv")
        write_table(csv, rows(results))
        write_figure(arguments.figure, readme_figure(csv))


def point(arguments: argparse.Namespace, hardware: str, bits: int) -> dict:
    """The result of one `memsim eval`. Chips on ideal hardware are all alike: one will do."""
    name = "-".join([arguments.data, arguments.split or "all", hardware, str(bits), *arguments.set])
    path = arguments.out / f"{name}.json"
    if not path.is_file():
        trials = 1 if hardware == "ideal" else arguments.trials
        command = [sys.executable, "-m", "memsim", "eval", arguments.checkpoint, "--data", arguments.data]
        command += ["--hardware", hardware, "--bits", bits, "--trials", trials]
        command += [part for setting in arguments.set for part in ("--set", setting)]
        command += ["--json", path, *(["--split", arguments.split] if arguments.split else [])]
        command += ["--data-root", arguments.data_root] if arguments.data_root else []
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    return json.loads(path.read_text())


def rows(results: list[dict]) -> list[dict]:
    """What the figure needs of the results."""
    found = [full_precision_row(results[0]["full_precision"]["wer"])]
    for result in results:
        wers = [trial["wer"] for trial in result["mapped"]["trials"]]
        bits = result["hardware"]["spec"]["weights"]["bits"]
        found.append(by_bits_row(title_without_bits(result["hardware"]), bits, result["digital"]["wer"], wers))
    return found


def title_without_bits(hardware: dict) -> str:
    """The hardware's name and the keys that were changed, except for the bits."""
    return hardware_title(hardware, "weights.bits")


def table(results: list[dict]) -> str:
    """Markdown rows of WER in percent."""
    lines = [
        "| hardware | bits | digital | mapped: mean | std | min | max | chips | CER mean |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        wer, trials = result["mapped"]["wer"], result["mapped"]["trials"]
        values = [result["digital"]["wer"], wer["mean"], wer["std"], wer["min"], wer["max"]]
        cells = ["" if value is None else f"{100 * value:.1f}" for value in values]  # one chip has no std
        name, bits = title_without_bits(result["hardware"]), result["hardware"]["spec"]["weights"]["bits"]
        cer = f"{100 * result['mapped']['cer']['mean']:.1f}"
        lines.append(f"| `{name}` | {bits} | {' | '.join(cells)} | {len(trials)} | {cer} |")
    full_precision = results[0]["full_precision"]
    return "\n".join([*lines, "", f"full precision: WER {full_precision['wer']:.2%}, CER {full_precision['cer']:.2%}"])


if __name__ == "__main__":
    main()
