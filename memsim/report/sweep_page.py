"""The report of a sweep: one page from the points that `memsim eval --json` writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from memsim.config.changes import setting_text
from memsim.hardware.facts import unfitted_note
from memsim.report.cells import Result, interval_name, measures_of
from memsim.report.chip_cells import energy_cells, energy_head
from memsim.report.page import Html, document, heading, note, paragraph, table, verdict
from memsim.report.page import figures as pictures
from memsim.report.sections import (
    SYNTHETIC,
    hardware_section,
    hardware_title,
    loss_cells,
    loss_head,
    name_of,
    run_section,
    seeds_of,
    speech_of,
)
from memsim.report.text import percent
from memsim.units import counted


def sweep_page(points: Sequence[Result], drawn: bytes, command: str | None) -> str:
    """Return the page. Each of `points` is the result of an evaluation with its `settings`, the keys that were swept.

    `drawn` is the SVG that shows the WER against them; `command` repeats the sweep.
    """
    first = points[0]
    measure, *others = measures_of(first)
    keys = list(first["settings"])
    hardware = hardware_title(first["hardware"], *keys)
    title = f"{Path(first['checkpoint']['path']).name} on {hardware}, over {', '.join(keys)}"
    digital = f"digital {measure.title}"
    head = [*keys, digital, measure.title, "std", "min", "max", "to digital, relative %"]
    head += [*(other.title for other in others), "chips", *loss_head(first), *energy_head(first)]
    item = first["data"].get("item", "utterance")
    blocks = [
        paragraph(f"{name_of(first)}: {counted(len(points), 'point')}, each of {speech_of(first)}."),
        verdict("warn", SYNTHETIC) if first["data"].get("synthetic") else Html(""),
        *_verdicts(points),
        pictures([(f"{measure.name} against {', '.join(keys)}", drawn)]),
        heading("Points"),
        *_full_precision(first),
        table(head, [_row(point) for point in points], text=0),
        note(
            f"In brackets, {first['intervals']['confidence']:.0%} bootstrap intervals over "
            f"{first['intervals']['over']}; those of the degradation are paired, {item} by {item}. "
            "std, min and max are over chips; one chip has no std."
        ),
        *run_section(first["checkpoint"], seeds_of(first), command),
        *hardware_section(first["hardware"], "Hardware of the first point"),
    ]
    return document(title, blocks)


def _verdicts(points: Sequence[Result]) -> list[Html]:
    """Warnings of the points, each with its settings, and laws that were not fitted to measurements."""
    found = []
    for point in points:
        settings = ", ".join(f"{key}={setting_text(value)}" for key, value in point["settings"].items())
        found += [verdict("warn", f"{settings}: {text}") for text in point.get("warnings", ())]
    laws = dict.fromkeys(key for point in points for key in point["hardware"].get("unfitted", ()))
    return found + ([verdict("warn", unfitted_note(list(laws)))] if laws else [])


def _full_precision(first: Result) -> list[Html]:
    """Its WER, which all points share, where there is one."""
    measure = measures_of(first)[0]
    own = first["intervals"][measure.key].get("full_precision")
    if own is None:
        return []
    unit = " %" if measure.in_percent else ""
    interval = f"{interval_name(first)}: {measure.show(own['low'])} to {measure.show(own['high'])}{unit}"
    return [paragraph(f"Full precision: {measure.name} {measure.show(own['value'])}{unit} ({interval}).")]


def _row(point: Result) -> list[str]:
    measure, *others = measures_of(point)
    over_chips, intervals = point["mapped"][measure.key], point["intervals"]
    compared = intervals["to_digital"]["relative"]
    relative = "unusable" if point.get("unusable") else ""
    if compared is not None and not point.get("unusable"):
        low, high = (
            "unbounded" if compared[end] is None else percent(compared[end], 1, signed=True) for end in ("low", "high")
        )
        relative = f"{percent(compared['value'], 1, signed=True)} ({low} to {high})"
    own = intervals[measure.key]["mapped"]
    return [
        *(setting_text(value) for value in point["settings"].values()),
        measure.show(point["digital"][measure.key]),
        f"{measure.show(over_chips['mean'])} ({measure.show(own['low'])} to {measure.show(own['high'])})",
        *(measure.show(over_chips[key]) for key in ("std", "min", "max")),
        relative,
        *(other.show(point["mapped"][other.key]["mean"]) for other in others),
        f"{len(point['mapped']['trials'])}",
        *loss_cells(point["mapped"]),
        *energy_cells(point),
    ]
