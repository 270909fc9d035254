"""The tables that `memsim fit-device` prints, as parts for a console of `rich`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from memsim.fit.fit import Fit
from memsim.fit.goodness import Check, Goodness
from memsim.fit.measurements import Measurements
from memsim.units import counted

MARKS = {"pass": "✓", "noise": "≈", "warn": "⚠"}
WORDS = {"pass": "pass", "noise": "within sampling error", "warn": "warning"}
_USUAL = ("mean", "worst quantile, 1 to 99 %", "autocorrelation, lag 1")
"""The checks that are always shown, beside those that fail."""


def fit_heading(fit: Fit, measurements: Measurements) -> str:
    """Return `mine: 24 devices of cycles.csv, order 3, 1 component, I-V curves of synaptogen`."""
    return (
        f"{fit.model.name}: {counted(len(fit.devices), 'device')} of {measurements.path.name}, "
        f"order {fit.model.order}, {counted(len(fit.mixture.weights), 'component')}, "
        f"I-V curves of {fit.envelopes.source}"
    )


def fit_parts(
    fit: Fit, goodness: Goodness, measurements: Measurements, *, every_check: bool
) -> tuple[RenderableType, ...]:
    """Return the heading, the table of checks (every one, or the usual ones and all warnings) and the summary."""
    table = Table()
    for name in ("", "", "measured", "model", "difference", "tolerance", ""):
        table.add_column(name, justify="right" if name else "left")
    for check in goodness.checks:
        if every_check or check.verdict == "warn" or check.quantity in _USUAL:
            table.add_row(
                check.feature,
                f"{check.quantity} {check.where}".rstrip(),
                value_of(check.measured),
                value_of(check.generated),
                size_of(check, check.error, signed=True),
                size_of(check, check.tolerance),
                MARKS[check.verdict],
                style="yellow" if check.verdict == "warn" else "",
            )
    return fit_heading(fit, measurements), table, summary(goodness)


def summary(goodness: Goodness) -> str:
    """Return `36 checks: 33 pass, 2 within sampling error, 1 warning`."""
    counts = {verdict: sum(c.verdict == verdict for c in goodness.checks) for verdict in MARKS}
    parts = [f"{count} {WORDS[verdict]}" for verdict, count in counts.items() if count or verdict == "pass"]
    return f"{counted(len(goodness.checks), 'check')}: {', '.join(parts)}"


def answer_of_checks(fitted: str, checks: Sequence[Check], counts: str) -> tuple[str, list[tuple[str, str]]]:
    """Return what a page opens with: whether what was `fitted` agrees, how many checks say so, and what differs most.

    `counts` is the summary of the checks.
    """
    failed = sorted((check for check in checks if check.verdict == "warn"), key=_times_tolerance, reverse=True)
    if not checks:
        return f"The {fitted} was not compared with measurements that it has not seen.", [("How sure", f"{counts}.")]
    if not failed:
        return f"The {fitted} agrees with the measurements.", [("How sure", f"{counts}.")]
    worst = [
        f"{check.feature}, {check.quantity} {check.where}".rstrip()
        + f" ({size_of(check, check.error, signed=True)}; tolerance {size_of(check, check.tolerance)})"
        for check in failed[:3]
    ]
    return (
        f"The {fitted} differs from the measurements in {len(failed)} of {counted(len(checks), 'check')}.",
        [("How sure", f"{counts}."), ("What differs most", f"{'; '.join(worst)}.")],
    )


def _times_tolerance(check: Check) -> float:
    return abs(check.error) / check.tolerance if check.tolerance else math.inf


def value_of(value: float | None) -> str:
    """Return a number of the measurements or of the model with four digits; an empty text for None."""
    return "" if value is None else f"{value:.4g}"


def size_of(check: Check, value: float, signed: bool = False) -> str:
    """Return an error or a tolerance of `check`, in percent if the check is relative."""
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.2f} %" if check.is_relative else f"{value:{sign}.4f}"


def inspection_parts(facts: dict[str, Any]) -> tuple[RenderableType, ...]:
    """Return the heading, the table of features and, if there are any, the lines below it."""
    cycles = facts["cycles_a_device"]
    per_device = f"{cycles['min']:,} to " if cycles["min"] < cycles["max"] else ""
    heading = (
        f"{facts['file']}: {facts['kind']}, {counted(facts['rows'], 'row')}, {counted(facts['devices'], 'device')}, "
        f"{per_device}{counted(cycles['max'], 'cycle')} each"
    )
    table = Table()
    for name in ("", "column", "unit", "missing", "1 %", "median", "99 %"):
        table.add_column(name, justify="left" if name in ("", "column", "unit") else "right")
    for name, feature in facts["features"].items():
        factor = feature["factor"]
        times = factor if isinstance(factor, str) else f"x {factor:g}"
        unit = feature["unit"] + ("" if factor == 1.0 else f" ({times})")
        values = (f"{value:.4g}" for value in feature["quantiles"])
        table.add_row(name, feature["column"], unit, f"{feature['missing']:.1%}", *values)
    lines = []
    if sweeps := facts.get("sweeps"):
        if "lowest_volts" in sweeps:
            lines.append(
                f"sweeps 0 -> {sweeps['lowest_volts']:.4g} -> 0 -> {sweeps['highest_volts']:.4g} -> 0 V, "
                f"{sweeps['samples_a_cycle']:.0f} samples per cycle, read at {facts['read_volts']:g} V"
            )
        lines.append("cycles: " + ", ".join(f"{count:,} {outcome}" for outcome, count in sweeps["outcomes"].items()))
    if facts["unused_columns"]:
        lines.append(f"not used: {', '.join(facts['unused_columns'])}")
    lines += [*facts["how_read"], *facts["notes"]]
    lines += [f"a fit would refuse {refused}" for refused in facts["refused"]]
    return (heading, table, "\n".join(lines)) if lines else (heading, table)
