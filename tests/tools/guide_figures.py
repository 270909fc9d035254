"""Draw the figures of README and guides from the results beside them in tests/figures.

    python tests/tools/guide_figures.py --out tests/figures
    python tests/tools/guide_figures.py --keep adc-dac.json sweep.json --out tests/figures

The first draws all of them. The second writes what the figure of a sweep needs from results as `memsim eval --json`
writes them (of several files, the points one after the other), and draws it.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from memsim.report.cells import measures_of
from memsim.report.chip_figures import draw_front, range_of_prices
from memsim.report.drawing import (
    BEHIND,
    BLUE,
    GOLD,
    GREY,
    MARKERS,
    RED,
    SMALL,
    Label,
    arrow_up,
    caption,
    dodged,
    error_bars,
    headline,
    ink,
    label_ends,
    label_points,
    plain_log,
    series_colours,
    style,
    svg_of,
    top_of,
)
from memsim.report.sweep_figure import sweep_figure
from memsim.storage.files import writing

FOLDER = Path(__file__).parent.parent / "figures"

COLUMNS = ("system", "bits", "chips", "digital", "mean", "min", "max")
"""The columns of results by weight bits: WER in %, of the network without a chip and over chips."""


def by_bits_row(system: str, bits: int, digital: float, wers: Sequence[float]) -> dict[str, object]:
    """Return a row of COLUMNS for the chips with these WERs."""
    values = {"digital": digital, "mean": fmean(wers), "min": min(wers), "max": max(wers)}
    shown = {key: f"{100 * wer:.2f}" for key, wer in values.items()}
    return {"system": system, "bits": bits, "chips": len(wers)} | shown


def full_precision_row(wer: float) -> dict[str, object]:
    """Return the row of COLUMNS for the network in full precision."""
    return dict.fromkeys(COLUMNS, "") | {"system": "full precision", "mean": f"{100 * wer:.2f}"}


class Series(NamedTuple):
    """The name, colour and marker of a line."""

    name: str
    colour: str
    marker: str


def by_bits(rows: Sequence[Mapping[str, str]], series: Mapping[str, Series], title: str, data: str) -> Figure:
    """Draw the WER of some systems against weight bits, each number of bits a category, the systems side by side.

    `rows` have COLUMNS; that of full precision has a mean alone. `title` is what the figure says, `data` what it is of.
    """
    full_precision = next((float(row["mean"]) for row in rows if not row["bits"]), None)
    series = {system: own for system, own in series.items() if any(row["system"] == system for row in rows)}
    bits = sorted({int(row["bits"]) for row in rows if row["bits"]}, reverse=True)
    shown = [row for row in rows if row["system"] in series]
    top = top_of([float(row["mean"]) for row in shown])
    with style():
        figure = Figure(figsize=(7, 3.8), layout="constrained")
        axes = figure.add_subplot()
        ends = []
        for shift, (system, (name, colour, marker)) in zip(dodged(len(series), 0.4), series.items(), strict=True):
            own = {int(row["bits"]): row for row in shown if row["system"] == system}
            x = [place + shift for place, count in enumerate(bits) if count in own]
            mean, low, high, digital = (
                [min(float(own[count][key]), top) for count in bits if count in own]
                for key in ("mean", "min", "max", "digital")
            )
            axes.plot(x, mean, color=colour, linewidth=1, alpha=0.5)
            axes.errorbar(x, mean, error_bars(mean, low, high), fmt=marker, color=colour)
            below = [(place, value) for place, value in zip(x, digital, strict=True) if value < top]
            axes.plot(*zip(*below, strict=True), "_", color=colour, markersize=13, markeredgewidth=2, alpha=0.5)
            last = float(own[bits[-1]]["mean"])
            if last > top:
                arrow_up(axes, x[-1], top, "", colour)
            ends.append(Label(x[-1], mean[-1], f"{name}: {last:.0f} %" if last > top else name, colour))
        if full_precision is not None:
            axes.axhline(full_precision, linestyle=":", linewidth=1.2, color="black", zorder=1)
            axes.annotate(
                "full precision", (1, full_precision), (0, -4), xycoords=("axes fraction", "data"),
                textcoords="offset points", ha="right", va="top", fontsize=SMALL,
            )  # fmt: skip
        axes.set_xticks(range(len(bits)), [f"{count} bits" for count in bits])
        axes.set_xlim(-0.45, len(bits) - 0.6)
        axes.set_ylim(0, top if top < 1000 else None)
        axes.set_ylabel("WER (%)")
        axes.grid(axis="x", visible=False)
        headline(figure, title)
        caption(
            figure,
            f"{data}. Points: mean over chips; bars: from the best to the worst chip; "
            "dashes: the same rounded weights, computed digitally.",
        )
        label_ends(axes, ends)
    return figure


def readme_figure(path: Path) -> Figure:
    """Draw the WER of the bundled recogniser on three chips, without training for few bits."""
    return by_bits(
        table_of(path),
        {
            "best": Series("closed-loop programming (best)", BLUE, "o"),
            "physical": Series("single pulses (physical)", GOLD, "s"),
            "paper": Series("published chip (paper)", RED, "D"),
        },
        "At 3 bits a good chip loses nothing; the published one nearly doubles the errors",
        "AN4 test, 590 words (differences below 1 % are chance), 5 chips each; weights rounded without training",
    )


def training_figure(path: Path) -> Figure:
    """Draw the WER after two ways of training for few bits, on three chips."""
    markers = {"paper": "D", "physical": "s", "best": "o"}
    return by_bits(
        table_of(path),
        {
            f"{recipe} on {chip}": Series(f"{recipe} on {chip}", colour, marker)
            for recipe, colour in (("robust", BLUE), ("published", RED))
            for chip, marker in markers.items()
        },
        "The recipe robust loses nothing at 3 bits, little at 2; the published one much",
        "AN4 test, 590 words, 5 chips for each of 1 to 3 trainings. Diamonds: paper, squares: physical, circles: best",
    )


def chips_figure(path: Path) -> Figure:
    """Draw the energy of networks on analog chips, as multiples of that of a digital accelerator."""
    rows = table_of(path)
    networks = list(dict.fromkeys(row["network"] for row in rows))
    chips = list(dict.fromkeys(row["chip"] for row in rows))
    with style():
        figure = Figure(figsize=(7, 1.7 + 0.55 * len(networks)), layout="constrained")
        axes = figure.add_subplot()
        for shift, chip, colour, marker in zip(dodged(len(chips)), chips, (BLUE, RED), "os", strict=True):
            own = {row["network"]: row for row in rows if row["chip"] == chip}
            y = [-networks.index(network) - shift for network in own]
            nominal, low, high, int4 = (
                [float(row[key]) for row in own.values()] for key in ("ratio", "ratio_low", "ratio_high", "ratio_int4")
            )
            axes.errorbar(nominal, y, xerr=error_bars(nominal, low, high), fmt=marker, color=colour)
            axes.annotate(
                chip, (nominal[0], y[0]), (0, 5), textcoords="offset points", ha="center", fontsize=SMALL,
                color=ink(colour), bbox=BEHIND,
            )  # fmt: skip
            axes.plot(int4, y, "|", color=colour, markersize=11, markeredgewidth=2, alpha=0.6)
        axes.axvline(1, color=GREY, linewidth=1, zorder=1)
        axes.set_xscale("log")
        ticks = (0.25, 0.5, 1, 2, 4, 8)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
        axes.set_xticks([], minor=True)
        axes.set_yticks([-place for place in range(len(networks))], networks)
        axes.set_ylim(0.5 - len(networks), 0.75)
        for text, side, x in (("analog wins", "right", -6), ("digital wins", "left", 6)):
            axes.annotate(text, (1, 0.58), (x, 0), textcoords="offset points", ha=side, va="center", color=GREY)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("energy of the analog chip, times that of int8 digital")
        headline(figure, "Analog saves energy for large networks at best, and never against int4 weights")
        caption(
            figure,
            "Points: nominal prices; bars: low and high prices of what only one side has; strokes: against int4 "
            "digital in place of int8.",
        )
    return figure


def front_figure(path: Path) -> Figure:
    """Draw the WER of the bundled recogniser against the energy of the whole chip, over cells, arrays and ADCs."""
    points = json.loads(path.read_text("utf-8"))
    measure = measures_of(points[0])[0]
    with style():
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        axes.set_ylabel("WER (%)")
        axes.margins(y=0.15)
        named = draw_front(axes, points, measure)
        headline(figure, "Energy depends on the cells first, then on the arrays; ADC bits hardly count")
        words = points[0]["data"]["words"]
        caption(
            figure,
            f"The bundled recogniser, 3 bits, demo ({words} words, differences below 1 % are chance), a chip a point. "
            "Names: cells / array / ADC bits; filled and joined: no other point beats it in both. "
            f"Energy at nominal prices; {range_of_prices(points)}.",
        )
        label_points(axes, named)
    return figure


def paper_network_figure(path: Path) -> Figure:
    """Draw the energy of the paper's network on `isaac` against its area, over sizes of arrays and bits."""
    rows = table_of(path)
    bits = list(dict.fromkeys(row["bits"] for row in rows))
    with style():
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        axes.set(xscale="log", yscale="log", xlim=(80, 8000), ylim=(400, 2500))
        for count, colour, marker in zip(bits, series_colours(len(bits)), MARKERS, strict=False):
            own = [row for row in rows if row["bits"] == count]
            sizes = list(dict.fromkeys(row["array"] for row in own))
            area = [next(float(row["square_millimetres"]) for row in own if row["array"] == size) for size in sizes]
            energies = [sorted(float(row["microjoules"]) for row in own if row["array"] == size) for size in sizes]
            low, middle, high = zip(*energies, strict=True)
            axes.errorbar(area, middle, error_bars(middle, low, high), marker=marker, color=colour)
            look: Any = {"textcoords": "offset points", "fontsize": SMALL, "color": ink(colour)}
            axes.annotate(f"{count}-bit weights", (area[0], middle[0]), (8, 0), va="center", **look)
            for size, x, y in zip(sizes, area, middle, strict=True) if count == bits[0] else ():
                axes.annotate(size, (x, y), (0, -7), ha="center", va="top", **look)
        for count, dashes in ((8, "--"), (4, ":")):
            other = float(rows[0][f"int{count}_microjoules"])
            axes.axhline(other, color=GREY, linestyle=dashes, linewidth=1.2, zorder=1)
            axes.annotate(
                f"int{count} digital", (0.01, other), (0, 3), xycoords=("axes fraction", "data"),
                textcoords="offset points", fontsize=SMALL, color=GREY,
            )  # fmt: skip
        for axis in (axes.xaxis, axes.yaxis):
            plain_log(axis)
        axes.set_xlabel("area (mm²)")
        axes.set_ylabel("µJ for a second of audio")
        headline(figure, "The paper's Conformer on isaac: large arrays save area and energy, few bits more")
        caption(
            figure,
            "42 M random weights: nominal prices alone, without the accuracy that large arrays and few bits cost. "
            "Points: arrays of 64 to 512 rows and columns, as named below the lowest line, ADCs of 6 bits; "
            "bars: ADCs of 4 and 8 bits.",
        )
    return figure


def converters_figure(path: Path) -> Figure:
    """Draw the WER of the bundled recogniser against the bits of its converters."""
    figure: Figure = sweep_figure(json.loads(path.read_text("utf-8")))
    return figure


AGES = {1.0: "1 s", 3600.0: "1 hour", 86400.0: "1 day", 2592000.0: "30 days"}
"""The times since programming that are measured, and their names."""

_TECHNOLOGIES = {"pcm": RED, "sonos": GOLD, "": BLUE}
"""The colours of devices whose names begin so, the first that fits: of PCM, SONOS and RRAM."""


def ageing_figure(path: Path) -> Figure:
    """Draw the WER on devices against the time since programming, without compensation of drift and by layer."""
    rows = table_of(path)
    top = top_of([float(row["mean"]) for row in rows])
    names = list(dict.fromkeys(row["device"] for row in rows))
    chips = sorted({row["chips"] for row in rows}, key=int)
    starts = [next(start for start in _TECHNOLOGIES if name.startswith(start)) for name in names]
    markers = [MARKERS[starts[:place].count(start)] for place, start in enumerate(starts)]
    devices = list(zip(names, starts, markers, dodged(len(names)), strict=True))
    with style():
        figure = Figure(figsize=(8, 3.9), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        ends: list[list[Label]] = []
        for axes, compensation in zip(panels, ("none", "layer"), strict=True):
            ends.append([])
            for name, start, marker, shift in devices:
                own = [row for row in rows if (row["device"], row["compensation"]) == (name, compensation)]
                colour = _TECHNOLOGIES[start]
                x = [list(AGES).index(float(row["seconds"])) + shift for row in own]
                mean, low, high = ([min(float(row[key]), top) for row in own] for key in ("mean", "low", "high"))
                axes.plot(x, mean, color=colour, linewidth=1, alpha=0.5)
                axes.errorbar(x, mean, error_bars(mean, low, high), fmt=marker, color=colour)
                label, last = name.partition(" as ")[0], float(own[-1]["mean"])
                for place, row in zip(x, own, strict=True):
                    if float(row["mean"]) > top:
                        arrow_up(axes, place, top, "" if row is own[-1] else f"{float(row['mean']):.0f} %", colour)
                ends[-1].append(Label(x[-1], mean[-1], f"{label}: {last:.0f} %" if last > top else label, colour))
            axes.axhline(float(rows[0]["digital"]), linestyle=":", linewidth=1.2, color="black", zorder=1)
            axes.set_xticks(range(len(AGES)), list(AGES.values()))
            axes.set_xlim(-0.4, len(AGES) - 0.6)
            axes.set_title("one gain a layer" if compensation == "layer" else "without compensation")
            axes.grid(axis="x", visible=False)
        panels[0].set_ylim(0, top if top < 1000 else None)
        panels[0].set_ylabel("WER (%)")
        headline(figure, "With one gain a layer against drift every device survives a month; without it PCM does not")
        caption(
            figure,
            "The bundled recogniser at 4 bits over the time since programming. AN4 test, 590 words (differences below "
            f"1 % are chance), {' to '.join(chips)} chips each. Points: mean over chips; bars: from the best to the "
            "worst chip; dotted: the same rounded weights, computed digitally. synaptogen relaxes as rram-relaxation.",
        )
        for axes, labels in zip(panels, ends, strict=True):
            label_ends(axes, labels)
    return figure


def frontier_figure(path: Path) -> Figure:
    """Draw the rise of the cross-entropy over that of full precision against cells a weight, a line for each recipe."""
    rows = table_of(path)
    full = next(float(row["mean"]) for row in rows if row["recipe"] == "full precision")
    names = list(dict.fromkeys(row["recipe"] for row in rows if row["cells_per_weight"]))
    with style():
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.subplots()
        ends = []
        for name, colour, marker in zip(names, series_colours(len(names)), MARKERS, strict=False):
            own = [row for row in rows if row["recipe"] == name]
            cells = [float(row["cells_per_weight"]) for row in own]
            rises = [100 * (float(row["mean"]) / full - 1) for row in own]
            axes.plot(cells, rises, color=colour, marker=marker)
            ends.append(Label(cells[-1], rises[-1], name, colour))
        axes.axhline(0, linestyle=":", linewidth=1.2, color="black", zorder=1)
        axes.axhline(5, linestyle="--", linewidth=0.8, color="grey", zorder=1)
        axes.set_yscale("symlog", linthresh=10)
        axes.set_yticks([0, 5, 10, 100, 1000], ["0", "5", "10", "100", "1000"])
        axes.set_ylim(-2, 1000)
        axes.set_xlabel("cells per weight")
        axes.set_ylabel("rise of the cross-entropy (%)")
        headline(figure, "Error feedback keeps within 5 % of full precision at 6 cells a weight; rounding never does")
        caption(
            figure,
            "Whisper tiny.en on best without training, relative to full precision (dotted); the scale is linear up to "
            "10 %. LibriSpeech part-dev, 40 utterances, one chip each.",
        )
        label_ends(axes, ends)
    return figure


FIGURES: Mapping[str, Callable[[Path], Figure]] = {
    "wer-by-bits.csv": readme_figure,
    "qat-by-bits.csv": training_figure,
    "adc-dac.json": converters_figure,
    "chip-front.json": front_figure,
    "chips.csv": chips_figure,
    "chip-paper.csv": paper_network_figure,
    "wer-by-time.csv": ageing_figure,
    "frontier.csv": frontier_figure,
}
"""What draws each file of results; figures have their names, with .svg."""


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure as SVG."""
    drawn = svg_of(figure)
    with writing(path) as temporary:
        temporary.write_bytes(drawn)


def table_of(path: Path) -> list[dict[str, str]]:
    """Read a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_table(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows of the same columns as a CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        out = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        out.writeheader()
        out.writerows(rows)


def kept(point: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the figure of a sweep needs of a point."""

    def some(values: Mapping[str, Any], *keys: str) -> dict[str, Any]:
        return {key: values[key] for key in keys if key in values}

    own = {
        "settings": point["settings"],
        "checkpoint": {"path": Path(point["checkpoint"]["path"]).name},
        "data": some(point["data"], "name", "split", "words"),
        "hardware": some(point["hardware"], "name", "base", "changed"),
        "digital": some(point["digital"], "wer"),
        "mapped": {"wer": point["mapped"]["wer"], "trials": [some(one, "wer") for one in point["mapped"]["trials"]]},
    }
    if "full_precision" in point:
        own["full_precision"] = some(point["full_precision"], "wer")
    if "chip" in point.get("cost", {}):
        chip = point["cost"]["chip"]
        digital = [some(other, "bits", "joules") for other in chip["digital"]]
        own["cost"] = {"chip": {"joules": chip["joules"], "digital": digital}}
    return own


def main() -> None:
    """Draw the figures, or keep the results of one and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path)
    parser.add_argument("--keep", choices=[name for name in FIGURES if name.endswith(".json")])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.keep is None:
        for name, drawn in FIGURES.items():
            write_figure((arguments.out / name).with_suffix(".svg"), drawn(FOLDER / name))
        return
    points = [point for path in arguments.results for point in json.loads(path.read_text("utf-8"))["points"]]
    lines = ",\n".join(json.dumps(kept(point), ensure_ascii=False) for point in points)
    path = arguments.out / arguments.keep
    with writing(path) as temporary:
        temporary.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    write_figure(path.with_suffix(".svg"), FIGURES[arguments.keep](path))


if __name__ == "__main__":
    main()
