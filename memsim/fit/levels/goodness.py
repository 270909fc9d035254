"""Checks of a fitted law of levels on cells, and on a last time, that it was not fitted to."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import ndtri

from memsim.fit.arrays import Bools, Floats, Ints
from memsim.fit.goodness import STANDARD_ERRORS, Check
from memsim.fit.levels.changes import Changes
from memsim.fit.levels.fitting import Choice, Report, choose, fit_law, widened
from memsim.fit.levels.law import Form, Law

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
COVERAGE_TOLERANCE = {0.5: 0.08, 0.9: 0.04}
"""The largest differences of the covered share of held-out readings, over all levels, from 50 and 90 %."""
LEVEL_COVERAGE_TOLERANCE = 0.07
MEAN_TOLERANCE = 0.15
"""The largest difference of a level's mean change, in standard deviations."""
SPREAD_TOLERANCE = 0.2
_MOST_RELATIVE_ERROR = 0.5
"""A spread that is further off than this is no sampling error, however few the cells."""
_MOST_LEVELS = 6
_LEAST_CELLS_A_LEVEL = 15
_LEAST_DRAWS = 40_000


@dataclass(frozen=True, eq=False)
class LevelTimes:
    """Distributions of the change by level and time, measured and of the law.

    Attributes:
        levels: conductances at the start [levels], the median of each, in µS.
        seconds: clock of the table [times].
        counts: number of readings [times, levels].
        measured, modelled: [times, levels, 7]: the QUANTILES, the mean and the standard deviation, in µS.
    """

    levels: Floats
    seconds: Floats
    counts: Ints
    measured: Floats
    modelled: Floats

    def to_dict(self) -> dict[str, Any]:
        """Return the tables as plain values."""
        columns = [*(f"quantile_{q:g}" for q in QUANTILES), "mean", "standard_deviation"]
        return {"columns": columns} | {
            field.name: getattr(self, field.name).tolist() for field in dataclasses.fields(self)
        }


@dataclass(frozen=True, eq=False)
class Judged:
    """A law fitted to all readings, how it was chosen, and how its kind does on held-out readings.

    Attributes:
        law: fitted to all readings.
        choice: the kind, chosen on half of the cells without the last time.
        checks: of a law of that kind, fitted to that half, on the other one.
        tables: of `law`, by level and time.
        simpler: the kind of the law that is compared with.
    """

    law: Law
    choice: Choice
    checks: tuple[Check, ...]
    tables: LevelTimes
    simpler: Form


def judge(changes: Changes, seconds: Floats, seed: int, name: str, report: Report, *, relative: bool = True) -> Judged:
    """Choose a law on half of the cells without the last time, check it on the others, and fit it to all.

    With one time alone nothing is left out but cells.

    Args:
        changes: the readings.
        seconds: time of each group of readings.
        seed: seed of the halves and of what is drawn.
        name: name of the checks' subject.
        report: called with the fraction that is done.
        relative: whether laws of ln g are tried.
    """
    generator = np.random.default_rng(seed)
    cells = generator.permutation(np.unique(changes.cells))
    is_fitted = np.isin(changes.cells, cells[: len(cells) // 2])
    last = int(changes.group.max())
    is_last = changes.group == last
    holds_time = last > 0
    train = changes.where(is_fitted & ~is_last if holds_time else is_fitted)
    choice = choose(train, seed, relative=relative, report=lambda done: report(0.7 * done))
    law = widened(fit_law(train, choice.form, choice.knots), train, choice.knots, seed)
    simpler = Form(relative=choice.form.relative, tail="gaussian" if choice.form.relative else "laplace")
    constant = fit_law(train, simpler, choice.knots)
    report(0.8)
    checks: list[Check] = []
    held = {"held-out cells": changes.where(~is_fitted & ~is_last)} if holds_time else {}
    at_last = changes.where(~is_fitted & is_last)
    held |= {"held-out cells, held-out last time" if holds_time else "held-out cells": at_last}
    for title, some in held.items():
        checks += _checks(f"{name}, {title}", law, constant, some, holds_time)
    checks += _level_checks(f"{name}, {list(held)[-1]}", "change" if relative else "error", law, at_last, generator)
    final_choice = choice
    if last == 1:  # with two times, one was left to choose on
        final_choice = choose(changes, seed, relative=relative, in_time=False)
    final = widened(fit_law(changes, final_choice.form, final_choice.knots), changes, final_choice.knots, seed)
    report(0.95)
    tables = _tables(final, changes, seconds, generator)
    return Judged(final, final_choice, tuple(checks), tables, simpler)


def coverage(law: Law, changes: Changes, share: float) -> float:
    """Return the share of readings within the law's central interval of probability `share`."""
    return float(np.mean(np.abs(law.cdf(*changes.tensors()) - 0.5) <= share / 2))


def _checks(feature: str, law: Law, simpler: Law, held: Changes, in_time: bool) -> list[Check]:
    """Return the coverage of intervals, and the likelihood against a law that is constant in time."""
    n = len(np.unique(held.cells))
    checks = []
    for share, tolerance in COVERAGE_TOLERANCE.items():
        covered = coverage(law, held, share)
        error = float(np.sqrt(share * (1 - share) / n))
        checks.append(
            Check(
                feature, f"readings in {share:.0%} intervals", share, covered, covered - share, tolerance, error, False
            )
        )
    own, other = (np.asarray(each.log_density(*held.tensors())) for each in (law, simpler))
    gain = own - other
    where = f"above a {simpler.form.words} law" + (", constant in time" if in_time else "")
    error = float(np.std(gain) / np.sqrt(n))
    means = float(other.mean()), float(own.mean())
    checks.append(
        Check(feature, "log-likelihood a reading", *means, min(float(gain.mean()), 0.0), 0.0, error, False, where)
    )
    return checks


def _level_checks(feature: str, what: str, law: Law, held: Changes, generator: np.random.Generator) -> list[Check]:
    """Return coverage, mean and spread of the change in each level."""
    drawn = _drawn(law, held, generator)
    p = law.cdf(*held.tensors())
    checks = []
    for level, inside in level_bins(held.start):
        n = int(inside.sum())
        measured, modelled = held.now[inside] - held.start[inside], drawn[:, inside] - held.start[inside]
        deviation = float(measured.std())
        where = f"at {level:.3g} µS"
        covered = float(np.mean(np.abs(p[inside] - 0.5) <= 0.45))
        error = float(np.sqrt(0.09 / n))
        checks.append(
            Check(
                feature, "readings in 90% intervals", 0.9, covered, covered - 0.9, LEVEL_COVERAGE_TOLERANCE, error,
                False, where,
            )
        )  # fmt: skip
        mean = float(measured.mean()), float(modelled.mean())
        checks.append(
            Check(
                feature, f"mean {what} (µS)", *mean, mean[1] - mean[0], MEAN_TOLERANCE * deviation,
                deviation / np.sqrt(n), False, where,
            )
        )  # fmt: skip
        if deviation > 0:
            kurtosis = float(np.mean((measured - mean[0]) ** 4)) / deviation**4
            own = float(modelled.std())
            error = float(np.sqrt(max(kurtosis - 1, 0) / n) / 2) * max(1.0, own / deviation)
            error = min(error, _MOST_RELATIVE_ERROR / STANDARD_ERRORS)
            checks.append(
                Check(
                    feature, f"spread of the {what} (µS)", deviation, own, own / deviation - 1, SPREAD_TOLERANCE, error,
                    True, where,
                )
            )  # fmt: skip
    return checks


def _drawn(law: Law, changes: Changes, generator: np.random.Generator) -> Floats:
    """Return draws of the law [draws, n] for the readings, in µS."""
    start, seconds, _ = changes.tensors()
    times = max(1, -(-_LEAST_DRAWS // max(len(changes), 1)))
    return np.stack([np.asarray(law.draw(start, seconds, generator)) for _ in range(times)])


def level_bins(start: Floats) -> list[tuple[float, Bools]]:
    """Return (median, mask) of at most six levels with about as many readings each, of those that start in them."""
    count = max(1, min(_MOST_LEVELS, len(start) // _LEAST_CELLS_A_LEVEL))
    edges = np.unique(np.quantile(start, np.linspace(0, 1, count + 1)[1:-1]))
    place = np.searchsorted(edges, start, side="right")
    return [(float(np.median(start[place == k])), place == k) for k in np.unique(place)]


def _tables(law: Law, changes: Changes, seconds: Floats, generator: np.random.Generator) -> LevelTimes:
    _, first = np.unique(changes.cells, return_index=True)
    count = len(level_bins(changes.start[first]))
    edges = np.unique(np.quantile(changes.start[first], np.linspace(0, 1, count + 1)[1:-1]))
    place = np.searchsorted(edges, changes.start, side="right")
    levels = np.unique(place)
    drawn = _drawn(law, changes, generator)
    shape = (len(seconds), len(levels))
    counts = np.zeros(shape, dtype=int)
    measured, modelled = np.full((*shape, 7), np.nan), np.full((*shape, 7), np.nan)
    for t in range(len(seconds)):
        for k, level in enumerate(levels):
            inside = (changes.group == t) & (place == level)
            counts[t, k] = inside.sum()
            if counts[t, k]:
                start = changes.start[inside]
                measured[t, k] = _described(changes.now[inside] - start)
                modelled[t, k] = _described(drawn[:, inside] - start)
    medians = np.array([np.median(changes.start[place == level]) for level in levels])
    return LevelTimes(medians, seconds, counts, measured, modelled)


def _described(change: Floats) -> Floats:
    return np.array([*np.quantile(change, QUANTILES), change.mean(), change.std()])


@dataclass(frozen=True)
class CellPath:
    """How the change of a cell at one time goes with that at another.

    Attributes:
        kind: `frozen`, `increments` (of a Brownian path over ln(1 + t / seconds)) or `redrawn`.
        seconds: where the logarithm of the path begins.
        correlations: (time, later time, measured correlation of normal scores, that of the path).
    """

    kind: str
    seconds: float
    correlations: tuple[tuple[float, float, float, float], ...]


def path_of(law: Law, changes: Changes, group_seconds: Floats, start_seconds: float) -> CellPath:
    """Return the path that the correlations between the times fit best, in least squares."""
    scores = ndtri(np.clip(law.cdf(*changes.tensors()), 1e-4, 1 - 1e-4))
    since = group_seconds - start_seconds
    pairs: list[tuple[float, float, float]] = []
    for a in range(len(since)):
        for b in range(a + 1, len(since)):
            first, second = (_by_cell(changes, scores, group) for group in (a, b))
            both = sorted(first.keys() & second.keys())
            if len(both) >= _LEAST_CELLS_A_LEVEL:
                x, y = ([of[cell] for cell in both] for of in (first, second))
                pairs.append((since[a], since[b], float(np.corrcoef(x, y)[0, 1])))
    if not pairs:
        return CellPath("frozen", float(since[0]), ())
    early, late, measured = np.array(pairs).T
    predicted: dict[tuple[str, float], Floats] = {
        ("frozen", float(since[0])): np.ones(len(pairs)),
        ("redrawn", float(since[0])): np.zeros(len(pairs)),
    }
    for seconds in np.geomspace(1e-6 * since[0], since[0], 13):
        predicted["increments", float(seconds)] = np.sqrt(np.log1p(early / seconds) / np.log1p(late / seconds))
    (kind, seconds), best = min(predicted.items(), key=lambda item: float(np.square(item[1] - measured).sum()))
    return CellPath(kind, seconds, tuple((*pair, float(r)) for pair, r in zip(pairs, best, strict=True)))


def _by_cell(changes: Changes, scores: Floats, group: int) -> dict[int, float]:
    inside = changes.group == group
    return dict(zip(changes.cells[inside].tolist(), scores[inside].tolist(), strict=True))


def as_tensor(values: Any) -> torch.Tensor:
    """Return float64 values."""
    return torch.as_tensor(np.asarray(values, dtype=np.float64))
