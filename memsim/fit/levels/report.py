"""Tables on a terminal and a page with figures, by which `memsim fit-device` shows a fit of levels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import RenderableType
from rich.table import Table

from memsim.fit.fit_report import HTML, JSON, require_folder
from memsim.fit.fit_tables import MARKS, WORDS, answer_of_checks, size_of, value_of
from memsim.fit.goodness import STANDARD_ERRORS, Check
from memsim.fit.levels.goodness import QUANTILES, CellPath, LevelTimes
from memsim.report.drawing import BAND, BLUE, GREY, drawing
from memsim.report.page import Html, document, facts, group, heading, html, listing, note, opening, row, table
from memsim.report.page import figures as pictures
from memsim.storage.outputs import write_text
from memsim.units import counted

if TYPE_CHECKING:
    from memsim.fit.levels.fit import LevelsFit

KINDS = {
    "readings": "readings of levels (cell, time, conductance)",
    "summary": "a summary of levels (target, mean, standard deviation)",
    "pulses": "levels by number of pulses (cell, pulse, conductance)",
}


def heading_of(fit: LevelsFit) -> str:
    """Return `mine: levels, of readings.csv, readings of levels (cell, time, conductance)`."""
    return f"{fit.name}: a device of levels, from {fit.source.name}: {KINDS[fit.kind]}"


def summary(fit: LevelsFit) -> str:
    """Return `26 checks: 24 pass, 1 within sampling error, 1 warning`."""
    if not fit.checks:
        return "no checks: the table leaves nothing to hold out"
    counts = {verdict: sum(c.verdict == verdict for c in fit.checks) for verdict in MARKS}
    words = [f"{count} {WORDS[verdict]}" for verdict, count in counts.items() if count or verdict == "pass"]
    return f"{counted(len(fit.checks), 'check')}: {', '.join(words)}"


def parts(fit: LevelsFit, *, every_check: bool) -> tuple[RenderableType, ...]:
    """Return the heading, the table of checks (all, or those over all levels and all warnings) and lines below it."""
    shown = Table()
    for name in ("", "", "measured", "device", "difference", "tolerance", ""):
        shown.add_column(name, justify="right" if name else "left")
    for check in fit.checks:
        if every_check or check.verdict == "warn" or not check.where.startswith("at "):
            shown.add_row(
                check.feature,
                f"{check.quantity} {check.where}".rstrip(),
                value_of(check.measured),
                value_of(check.generated),
                size_of(check, check.error, signed=True),
                size_of(check, check.tolerance),
                MARKS[check.verdict],
                style="yellow" if check.verdict == "warn" else "",
            )
    laws = [f"{name}: {facts['law']}" for name, facts in fit.laws.items()]
    lines = [*laws, *fit.notes, *(f"extrapolated or not measured: {line}" for line in fit.extrapolated)]
    return heading_of(fit), *([shown] if fit.checks else []), "\n".join([*lines, summary(fit)])


def write_report(folder: Path, fit: LevelsFit, force: bool) -> Path:
    """Write `report.html` and `report.json` into `folder`, made if it does not exist; return the path of the page.

    Raises:
        InputError: if they exist already, unless `force`, or cannot be written.
    """
    require_folder(folder, force)
    folder.mkdir(exist_ok=True)
    write_text(folder / JSON, json.dumps(fit.to_dict(), indent=1) + "\n")
    write_text(folder / HTML, page(fit))
    return folder / HTML


def page(fit: LevelsFit) -> str:
    """Return the report as an HTML page."""
    outcome = "warn" if fit.warnings else "pass"
    blocks = [
        opening(outcome, *answer_of_checks("device", fit.checks, summary(fit))),
        listing(fit.notes),
        facts(_facts(fit)),
        heading("What was extrapolated, or not measured"),
        listing(fit.extrapolated),
        heading("Goodness of fit"),
        _check_table(fit.checks),
        note(
            f"{MARKS['pass']} the device agrees with the measurements within the tolerance; {MARKS['noise']} it does "
            f"not, but so few cells scatter that much ({STANDARD_ERRORS:g} standard errors); {MARKS['warn']} it does "
            "not. A law of the kind that was chosen is fitted to half of the cells without the last time, and compared "
            "with the other half; the device is fitted to all."
        ),
    ]
    for name, tables in fit.tables.items():
        blocks += _by_level_and_time(name, tables)
    if fit.path is not None and fit.path.correlations:
        blocks += [heading("A cell at two times"), pictures([("correlations between times", _path_figure(fit.path))])]
    for name, choice in fit.choices.items():
        blocks += [
            heading(f"Laws that were tried: {name}"),
            table(
                ["stage", "law", "knots", "log-likelihood", "below the best", "std. error", ""],
                [
                    [
                        one.stage, str(one.form), str(one.knots), f"{one.score:.4f}",
                        f"{max(o.score for o in choice.candidates if o.stage == one.stage) - one.score:.4f}",
                        f"{one.standard_error:.4f}", "chosen" if one.chosen else "",
                    ]
                    for one in choice.candidates
                ],
                text=2,
            ),
        ]  # fmt: skip
    return document(f"{fit.name}: levels fitted to {fit.source.name}", blocks)


def _facts(fit: LevelsFit) -> dict[str, str]:
    limits = fit.document["microsiemens"]
    files = f"{fit.source.name}, {counted(fit.source.rows, 'row')}, sha256 {fit.source.sha256[:16]}…"
    columns = ", ".join(f"{quantity}: {name}" for quantity, name in fit.source.columns.items())
    unused = f" (not used: {', '.join(fit.source.unused)})" if fit.source.unused else ""
    return {
        "measurements": files,
        "read as": f"{KINDS[fit.kind]}; {columns}{unused}",
        "targets": f"{limits['low']:g} to {limits['high']:g} µS, cells to {fit.document['ceiling_microsiemens']:g} µS",
        **{name: own["law"] + (f", {own['knots']} knots" if "knots" in own else "") for name, own in fit.laws.items()},
    }


def _check_table(checks: tuple[Check, ...]) -> Html:
    head = ("", "", "measured", "device", "difference", "tolerance", "std. error")
    rows: list[Html] = []
    feature = None
    for check in checks:
        if check.feature != feature:
            feature = check.feature
            rows.append(group(feature, len(head)))
        cells = [
            f"{MARKS[check.verdict]} {WORDS[check.verdict]}",
            Html(f"{html(check.quantity)} <small>{html(check.where)}</small>"),
            value_of(check.measured),
            value_of(check.generated),
            size_of(check, check.error, signed=True),
            size_of(check, check.tolerance),
            size_of(check, check.standard_error),
        ]
        rows.append(row(cells, check.verdict, text=2))
    return table(head, rows, text=2, kind="checks")


def _by_level_and_time(name: str, tables: LevelTimes) -> list[Html]:
    """Return figures over time of each level, and the table of quantiles."""
    levels = list(enumerate(tables.levels)) if len(tables.seconds) > 1 else []  # one time makes no line
    drawn = [(f"{name} at {level:.3g} µS", _level_figure(tables, k)) for k, level in levels]
    head = ["µS", "time (s)", "readings", *(f"{q:.0%}" for q in QUANTILES), "mean", "std. dev."]
    rows: list[Html] = []
    for k, level in enumerate(tables.levels):
        rows.append(group(f"{level:.3g} µS at the start", len(head)))
        for t, seconds in enumerate(tables.seconds):
            if tables.counts[t, k]:
                pairs = zip(tables.measured[t, k], tables.modelled[t, k], strict=True)
                cells = [f"{level:.3g}", f"{seconds:.4g}", f"{tables.counts[t, k]:,}"]
                rows.append(row([*cells, *(f"{a:.3g} / {b:.3g}" for a, b in pairs)]))
    return [
        heading(f"{name.capitalize()} by level and time"),
        pictures(drawn) if drawn else Html(""),
        note("Bands and grey: measured, 5 to 95 %, quartiles and median. Blue: the device, the same quantiles."),
        table(head, rows, text=0),
        note("Change of the conductance in µS, measured / of the device fitted to all readings."),
    ]


def _level_figure(tables: LevelTimes, k: int) -> bytes:
    """Draw quantiles of the change of one level over time."""
    times = tables.seconds
    measured, modelled = tables.measured[:, k], tables.modelled[:, k]
    with drawing() as panel:
        axes = panel.axes
        axes.fill_between(times, measured[:, 0], measured[:, 4], color=BAND, alpha=0.45, linewidth=0)
        axes.fill_between(times, measured[:, 1], measured[:, 3], color=BAND, linewidth=0, label="measured")
        axes.plot(times, measured[:, 2], color=GREY, linewidth=1.2)
        for q, style in zip(range(len(QUANTILES)), (":", "--", "-", "--", ":"), strict=True):
            axes.plot(times, modelled[:, q], style, color=BLUE, linewidth=1.2, label="device" if q == 2 else None)
        axes.set(xscale="log", xlabel="time (s)", ylabel="change (µS)", title=f"{tables.levels[k]:.3g} µS at the start")
        panel.legend()
    return panel.svg


def _path_figure(path: CellPath) -> bytes:
    """Draw measured correlations of cells between two times against those of the path."""
    measured, own = np.array([pair[2:] for pair in path.correlations]).T
    with drawing() as panel:
        axes = panel.axes
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, label="equal")
        axes.plot(measured, own, "o", color=BLUE, markersize=4, label=path.kind)
        axes.set(xlabel="measured correlation", ylabel="of the device", title="pairs of times")
        panel.legend()
    return panel.svg
