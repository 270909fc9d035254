"""The report of a sweep: one page from the points that `memsim eval --json` writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from memsim.config.changes import setting_text
from memsim.evaluation.verdicts import unfitted_note
from memsim.report.page import Html, document, heading, note, paragraph, table, verdict
from memsim.report.page import figures as pictures
from memsim.report.sections import (
    SYNTHETIC,
    Result,
    hardware_section,
    hardware_title,
    interval_name,
    loss_cells,
    loss_head,
    percent,
    run_section,
    seeds_of,
    speech_of,
)
from memsim.units import counted


def sweep_page(points: Sequence[Result], drawn: bytes, command: str) -> str:
    """The page. Each of `points` is the result of an evaluation with its `settings`, the keys that were swept.

    `drawn` is the SVG that shows the WER against them; `command` is what to type to repeat it.
    """
    first = points[0]
    data = first["data"]
    keys = list(first["settings"])
    hardware = hardware_title(first["hardware"], *keys)
    title = f"{Path(first['checkpoint']['path']).name} on {hardware}, over {', '.join(keys)}"
    blocks = [
        paragraph(f"{data['name']} {data['split']}: {counted(len(points), 'point')}, each of {speech_of(first)}."),
        verdict("warn", SYNTHETIC) if data["synthetic"] else Html(""),
        *_verdicts(points),
        pictures([(f"WER against {', '.join(keys)}", drawn)]),
        heading("Points"),
        *_full_precision(first),
        table([*keys, *_HEAD, *loss_head(first)], [_row(point) for point in points], text=0),
        note(
            f"In brackets, {first['intervals']['confidence']:.0%} bootstrap intervals over "
            f"{first['intervals']['over']}; those of the degradation are paired, utterance by utterance. "
            "std, min and max are over chips; one chip has no std."
        ),
        *run_section(first["checkpoint"], seeds_of(first), command),
        *hardware_section(first["hardware"], "Hardware of the first point"),
    ]
    return document(title, blocks)


def _verdicts(points: Sequence[Result]) -> list[Html]:
    """Warnings of the points, each with its settings, and laws that nobody has fitted."""
    found = []
    for point in points:
        settings = ", ".join(f"{key}={setting_text(value)}" for key, value in point["settings"].items())
        found += [verdict("warn", f"{settings}: {text}") for text in point.get("warnings", ())]
    laws = dict.fromkeys(key for point in points for key in point["hardware"].get("unfitted", ()))
    return found + ([verdict("warn", unfitted_note(list(laws)))] if laws else [])


def _full_precision(first: Result) -> list[Html]:
    """Its WER, which all points share, where there is one."""
    own = first["intervals"]["wer"].get("full_precision")
    if own is None:
        return []
    interval = f"{interval_name(first)}: {percent(own['low'])} to {percent(own['high'])} %"
    return [paragraph(f"Full precision: WER {percent(own['value'])} % ({interval}).")]


_HEAD = ("digital WER %", "WER %", "std", "min", "max", "to digital, relative %", "CER %", "chips")


def _row(point: Result) -> list[str]:
    wer, intervals = point["mapped"]["wer"], point["intervals"]
    compared = intervals["to_digital"]["relative"]
    relative = "unusable" if point.get("unusable") else ""
    if compared is not None and not point.get("unusable"):
        low, high = (
            "unbounded" if compared[end] is None else percent(compared[end], 1, signed=True) for end in ("low", "high")
        )
        relative = f"{percent(compared['value'], 1, signed=True)} ({low} to {high})"
    own = intervals["wer"]["mapped"]
    return [
        *(setting_text(value) for value in point["settings"].values()),
        percent(point["digital"]["wer"]),
        f"{percent(wer['mean'])} ({percent(own['low'])} to {percent(own['high'])})",
        *(percent(wer[key]) for key in ("std", "min", "max")),
        relative,
        percent(point["mapped"]["cer"]["mean"]),
        f"{len(point['mapped']['trials'])}",
        *loss_cells(point["mapped"]),
    ]
