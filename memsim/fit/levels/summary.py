"""Fit of a summary of levels: means and standard deviations by target and time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import ndtr, ndtri

from memsim.fit.arrays import Floats
from memsim.fit.goodness import Check
from memsim.fit.levels.device import EXTRAPOLATED_DECADES, rounded
from memsim.fit.levels.goodness import COVERAGE_TOLERANCE, MEAN_TOLERANCE, SPREAD_TOLERANCE
from memsim.fit.levels.tables import Summary

Kind = Literal["constant", "log", "sqrt"]
"""How a change goes on after the last time: not at all, in a line over ln t, or its square in one."""
WORDS = {"constant": "constant in time", "log": "linear in ln t", "sqrt": "square linear in ln t"}
_MOST_SHOWN = 8


@dataclass(frozen=True, eq=False)
class SummaryFit:
    """The sections of a device file from a summary, and how its laws predict the last time from those before.

    Attributes:
        sections: `programming`, and `relaxation` where there are several times.
        kinds: how mean and spread go on after the last time, chosen on the times before it.
        checks: predicted against given values at the last time; none without a time to leave out.
        notes: remarks for people.
    """

    sections: dict[str, Any]
    kinds: tuple[Kind, Kind]
    checks: tuple[Check, ...]
    notes: tuple[str, ...]


def fit_summary(summary: Summary) -> SummaryFit:
    """Return the laws of `summary`: tables that go through its values, and lines in ln t beyond them."""
    targets, mean, deviation = summary.targets, summary.mean, summary.deviation
    sections: dict[str, Any] = {
        "programming": {"mean": _table(targets, mean[0] - targets), "spread": _table(targets, deviation[0])}
    }
    notes = ["the shape of the distributions: not fitted, taken as normal"]
    since = summary.seconds[1:] - summary.seconds[0]
    if not len(since):
        notes.append("one time: nothing is known of relaxation and drift, so conductances stay as programmed")
        return SummaryFit(sections, ("constant", "constant"), (), tuple(notes))
    moved = mean[1:] - mean[0]
    variance = deviation[1:] ** 2 - deviation[0] ** 2
    if falling := int((variance < 0).sum()):
        notes.append(
            f"in {falling} of {variance.size} places the standard deviation is below the first one: no spread is added"
        )
    spread = np.sqrt(np.maximum(variance, 0.0))
    kinds: tuple[Kind, Kind] = (
        _chosen(moved, since, ("constant", "log")),
        _chosen(spread, since, ("constant", "log", "sqrt")),
    )
    decades = 10.0 ** np.arange(1, EXTRAPOLATED_DECADES + 1)
    later = since[-1] * decades
    rows = [np.concatenate([y, _beyond(y, since, later, kind)]) for y, kind in zip((moved, spread), kinds, strict=True)]
    grids = {
        name: {
            "grid": {
                "microsiemens": rounded(targets),
                "seconds": rounded(np.concatenate([since, later])),
                "values": rounded(values),
            },
            "beyond": "extrapolate",
        }
        for name, values in (("mean", rows[0]), ("spread", np.maximum(rows[1], 0.0)))
    }
    notes.append(
        "how a cell's change at one time goes with that at another is not in such a table: independent increments"
    )
    sections["relaxation"] = grids | {"by": "target", "path": "increments", "path_seconds": rounded(since[0])}
    return SummaryFit(sections, kinds, _checks(summary, kinds, since), tuple(notes))


def _beyond(values: Floats, since: Floats, later: Floats, kind: Kind) -> Floats:
    """Return values [later, targets], from the last ones [times, targets] on along the law of `kind`."""
    if kind == "constant" or len(since) < 2:
        return np.repeat(values[-1:], len(later), axis=0)
    power = 2 if kind == "sqrt" else 1
    u = np.log(since) - np.log(since).mean()
    raised = values**power
    slope = (u[:, None] * (raised - raised.mean(axis=0))).sum(axis=0) / (u**2).sum()
    ahead = raised[-1] + slope * np.log(later / since[-1])[:, None]
    return np.asarray(ahead if power == 1 else np.sqrt(np.maximum(ahead, 0.0)))


def _chosen(values: Floats, since: Floats, kinds: tuple[Kind, ...]) -> Kind:
    """Return the kind that predicts best the last time but one from those before, or the last from two of them."""
    known = len(since) - 1 if len(since) > 3 else len(since)
    if known < 3:
        return "log" if known == 2 else "constant"
    errors = {
        kind: float(
            np.square(
                _beyond(values[: known - 1], since[: known - 1], since[known - 1 : known], kind) - values[known - 1]
            ).sum()
        )
        for kind in kinds
    }
    return min(kinds, key=lambda kind: errors[kind])


def _checks(summary: Summary, kinds: tuple[Kind, Kind], since: Floats) -> tuple[Check, ...]:
    """Return predictions of the last time from those before it, against the values of the table."""
    if len(since) < 2:
        return ()
    moved = summary.mean[1:-1] - summary.mean[0]
    spread = np.sqrt(np.maximum(summary.deviation[1:-1] ** 2 - summary.deviation[0] ** 2, 0.0))
    mean = summary.mean[0] + _beyond(moved, since[:-1], since[-1:], kinds[0])[0]
    added = _beyond(spread, since[:-1], since[-1:], kinds[1])[0]
    deviation = np.hypot(summary.deviation[0], np.maximum(added, 0.0))
    given_mean, given = summary.mean[-1], np.maximum(summary.deviation[-1], 1e-12)
    feature, checks = "held-out last time", []
    for share, tolerance in COVERAGE_TOLERANCE.items():
        reach = ndtri(0.5 + share / 2) * deviation
        edges = [(mean + side * reach - given_mean) / given for side in (-1, 1)]
        covered = float(np.mean(ndtr(edges[1]) - ndtr(edges[0])))
        checks.append(
            Check(
                feature,
                f"cells in {share:.0%} intervals",
                share,
                covered,
                covered - share,
                tolerance,
                0.0,
                False,
                "if normal",
            )
        )
    shown = np.unique(np.linspace(0, len(given) - 1, min(_MOST_SHOWN, len(given))).round().astype(int))
    for k in shown:
        where = f"at {summary.targets[k]:.3g} µS"
        error = float(mean[k] - given_mean[k])
        tolerance = MEAN_TOLERANCE * float(given[k])
        checks.append(
            Check(feature, "mean (µS)", float(given_mean[k]), float(mean[k]), error, tolerance, 0.0, False, where)
        )
        own = float(deviation[k]), float(given[k])
        checks.append(
            Check(
                feature,
                "standard deviation (µS)",
                own[1],
                own[0],
                own[0] / own[1] - 1,
                SPREAD_TOLERANCE,
                0.0,
                True,
                where,
            )
        )
    return tuple(checks)


def _table(at: Floats, values: Floats) -> Any:
    return {"table": {"at": rounded(at), "values": rounded(values)}}
