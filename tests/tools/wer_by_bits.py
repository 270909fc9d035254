"""Draw the figures of the guides: WER against weight bits, from results of several `memsim eval`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from memsim.report.drawing import error_bars, svg_of
from memsim.report.sections import hardware_title
from memsim.storage.files import writing


@dataclass(frozen=True)
class Line:
    """WERs by weight bits: several of each, such as one a chip. A dashed line has no markers."""

    label: str
    wers: Mapping[int, Sequence[float]]
    colour: int  # of matplotlib's cycle
    dashed: bool = False


def title_without_bits(hardware: Mapping[str, Any]) -> str:
    """Return the hardware's name and the keys that were changed, except for the bits."""
    return hardware_title(hardware, "weights.bits")


def wer_by_bits(results: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw WER against weight bits, a line for each hardware, from results as `memsim eval --json` writes them.

    Dashes are the quantised digital model and the dotted line is full precision.
    """
    lines = []
    titles = [title_without_bits(result["hardware"]) for result in results]
    for colour, name in enumerate(dict.fromkeys(titles)):
        own = [result for result, each in zip(results, titles, strict=True) if each == name]
        rows = {int(row["hardware"]["spec"]["weights"]["bits"]): row for row in own}
        mapped = {bits: [trial["wer"] for trial in row["mapped"]["trials"]] for bits, row in rows.items()}
        digital = {bits: [row["digital"]["wer"]] for bits, row in rows.items()}
        lines.append(Line(f"mapped on {name}", mapped, colour))
        lines.append(Line(f"digital, as {name} quantises", digital, colour, dashed=True))
    full_precision = next((r["full_precision"]["wer"] for r in results if "full_precision" in r), None)
    draw_by_bits(lines, {} if full_precision is None else {"full precision": full_precision}, path, title)


def draw_by_bits(
    lines: Sequence[Line], levels: Mapping[str, float], path: Path, title: str, *, top: float | None = None
) -> None:
    """Draw `lines`, and `levels` (WERs by what they are called) as dotted horizontal lines, up to a WER of `top`.

    Markers are means, bars reach from the least to the largest. Writes SVG, the same bytes for the same values.
    """
    with mpl.rc_context({"font.size": 10}):
        figure = Figure(figsize=(7, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            bits = sorted(line.wers)
            percents = [[100 * wer for wer in line.wers[b]] for b in bits]
            mean, low, high = ([f(values) for values in percents] for f in (fmean, min, max))
            colour = f"C{line.colour}"
            if line.dashed:
                axes.plot(bits, mean, linestyle="--", color=colour, alpha=0.6, label=line.label)
            else:
                bars = error_bars(mean, low, high)
                axes.errorbar(bits, mean, bars, marker="o", capsize=4, color=colour, label=line.label)
        for index, (label, wer) in enumerate(levels.items()):
            axes.axhline(100 * wer, linestyle=":", color=f"{0.5 * index}", label=label)
        axes.set(xlabel="weight bits", ylabel="WER (%)", title=title)
        axes.set_xticks(sorted({bits for line in lines for bits in line.wers}))
        axes.set_ylim(0, None if top is None else 100 * top)
        axes.invert_xaxis()
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
        svg = svg_of(figure)
    with writing(path) as temporary:
        temporary.write_bytes(svg)
