"""Figures of results, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memsim.files import writing


def wer_by_bits(results: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw WER against weight bits, a line for each hardware, from results as `memsim eval --json` writes them.

    Markers are means over chips, bars reach from the best to the worst chip, dashes are the quantised digital model and
    the dotted line is full precision. Writes SVG, the same bytes for the same results.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "memsim", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(7, 3.6), layout="constrained")
        axes = figure.add_subplot()
        names = list(dict.fromkeys(result["hardware"]["name"] for result in results))
        for index, name in enumerate(names):
            rows = sorted(
                (result for result in results if result["hardware"]["name"] == name),
                key=lambda result: int(result["hardware"]["spec"]["weights"]["bits"]),
            )
            bits = [row["hardware"]["spec"]["weights"]["bits"] for row in rows]
            wers = [row["mapped"]["wer"] for row in rows]
            mean, low, high = ([100 * wer[key] for wer in wers] for key in ("mean", "min", "max"))
            bars = [[m - x for m, x in zip(mean, low, strict=True)], [x - m for m, x in zip(mean, high, strict=True)]]
            axes.errorbar(bits, mean, bars, marker="o", capsize=4, color=f"C{index}", label=f"mapped on {name}")
            digital = [100 * row["digital"]["wer"] for row in rows]
            axes.plot(
                bits, digital, linestyle="--", color=f"C{index}", alpha=0.6, label=f"digital, as {name} quantises"
            )
        full_precision = next((100 * r["full_precision"]["wer"] for r in results if "full_precision" in r), None)
        if full_precision is not None:
            axes.axhline(full_precision, linestyle=":", color="black", label="full precision")
        axes.set(xlabel="weight bits", ylabel="WER (%)", title=title)
        axes.set_xticks(sorted({int(r["hardware"]["spec"]["weights"]["bits"]) for r in results}))
        axes.set_ylim(bottom=0)
        axes.invert_xaxis()
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
        with writing(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
