"""Bootstrap intervals of word error rates, and of the differences between two systems.

A resample draws as many utterances as there are, with replacement (Bisani and Ney, Bootstrap estimates for confidence
intervals in ASR performance evaluation, ICASSP 2004). Two systems are compared on the same draws, so that the
difficulty of an utterance, which both share, cancels. Intervals are those of percentiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from memsim.rng import derive_seed

RESAMPLES = 10_000
CONFIDENCE = 0.95
"""The probability of an interval."""

_BLOCK_BYTES = 64e6
"""Memory for the counts of the resamples that are drawn at a time."""

Floats = npt.NDArray[np.float64]
Errors = npt.ArrayLike
"""Word errors of a system: [chips, utterances], or [utterances] of one chip."""


@dataclass(frozen=True)
class Interval:
    """An estimate, and the ends of its confidence interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """Return plain values for JSON; one that is not finite is None."""
        return {key: value if isfinite(value) else None for key, value in vars(self).items()}


@dataclass(frozen=True)
class Comparison:
    """A comparison of the mean WER of a system's chips with that of a baseline on the same utterances."""

    difference: Interval
    """The system's WER minus the baseline's, as a fraction: 0.01 is one percent absolute."""
    relative: Interval | None
    """The system's WER as a multiple of the baseline's, minus 1; None where the baseline makes no errors."""
    probability_worse: float
    """The fraction of the resamples in which the system makes more errors; ties count half."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "difference": self.difference.to_dict(),
            "relative": None if self.relative is None else self.relative.to_dict(),
            "probability_worse": self.probability_worse,
        }


def wer_interval(
    errors: Errors,
    words: Sequence[float],
    *,
    resample_chips: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return the mean WER of the chips of one system, with its interval; the arguments are those of `compare`."""
    system = _errors(errors, words)
    (wers,) = _resampled_wers([system], words, resample_chips, resamples, seed)
    return _interval(_wer(system, words), wers)


def compare(
    errors: Errors,
    baseline_errors: Errors,
    words: Sequence[float],
    *,
    resample_chips: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
    lower_is_better: bool = True,
) -> Comparison:
    """Compare a system with a baseline, with paired intervals.

    Args:
        errors: the system's word errors, [chips, utterances] or [utterances]; training seeds may stand for chips.
        baseline_errors: the baseline's word errors on the same utterances in the same order, on any number of chips.
        words: the number of words of each reference, [utterances].
        resample_chips: draw chips anew as well, those of each system independently. The intervals then hold for other
            chips on other speech of the kind; without it, for these chips on other speech. It needs several chips: the
            spread of C chips drawn anew is too small by a factor of sqrt((C - 1) / C).
        resamples: the number of draws that the percentiles are taken of.
        seed: all draws are a function of it and of the sizes.
        lower_is_better: whether a system with the smaller value is the better one.

    Raises ValueError when sizes differ, errors are negative or the references hold no words.
    """
    system, baseline = _errors(errors, words), _errors(baseline_errors, words)
    system_wers, baseline_wers = _resampled_wers([system, baseline], words, resample_chips, resamples, seed)
    wer, baseline_wer = _wer(system, words), _wer(baseline, words)
    differences = system_wers - baseline_wers
    relative = None
    if baseline_wer > 0:
        relative = _interval(wer / baseline_wer - 1, _ratio(differences, baseline_wers))
    return Comparison(
        _interval(wer - baseline_wer, differences),
        relative,
        float(((differences > 0) if lower_is_better else (differences < 0)).mean() + (differences == 0).mean() / 2),
    )


@dataclass(frozen=True)
class MeanChange:
    """The relative change of a mean from a baseline's, and whether it may be the largest of several systems'."""

    change: Interval
    """The mean as a multiple of the baseline's, minus 1."""
    may_be_largest: bool
    """Whether the change is beyond noise and cannot be told apart from the largest one."""

    @property
    def is_noise(self) -> bool:
        """Whether the interval holds 0."""
        return self.change.low <= 0 <= self.change.high


def mean_changes(
    values: npt.ArrayLike,
    baseline: Sequence[float],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[MeanChange]:
    """Compare the mean of a positive quantity, such as a loss, of several systems with a baseline's, by utterance.

    Args:
        values: the systems' values, [systems, utterances].
        baseline: the baseline's values, [utterances].
        resamples: as for `compare`.
        seed: as for `compare`.

    Raises ValueError when sizes differ, or the baseline's mean is not positive.
    """
    table, before = np.asarray(values, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != len(before) or not table.size or not before.sum() > 0:
        raise ValueError(f"values of the shape {list(table.shape)} cannot be compared with {len(before)} of a baseline")
    rng = np.random.default_rng(derive_seed(seed, "bootstrap"))
    drawn = np.empty((resamples, len(table)))
    for rows, utterances in _resamples(rng, resamples, len(before)):
        start = (utterances @ before)[:, None]
        drawn[rows] = _ratio(utterances @ table.T - start, start)
    changes = table.mean(axis=1) / before.mean() - 1
    intervals = [_interval(float(c), own) for c, own in zip(changes, drawn.T, strict=True)]
    larger = [i for i, interval in enumerate(intervals) if interval.low > 0]
    largest = drawn[:, max(larger, key=lambda i: changes[i])] if larger else drawn[:, 0]
    alike = {i for i in larger if _interval(0.0, largest - drawn[:, i]).low <= 0}
    return [MeanChange(interval, i in alike) for i, interval in enumerate(intervals)]


def _errors(errors: Errors, words: Sequence[float]) -> Floats:
    """Return `errors` as [chips, utterances]. Raises ValueError for negative ones and sizes that differ."""
    table = np.atleast_2d(np.asarray(errors, dtype=np.float64))
    if table.ndim != 2 or not table.shape[0] or table.shape[1] != len(words):
        raise ValueError(f"errors of the shape {list(np.shape(errors))} do not fit {len(words)} utterances")
    if (table < 0).any():
        raise ValueError("errors must not be negative")
    if sum(words) <= 0 or min(words) < 0:
        raise ValueError("the references must contain words")
    return table


def _wer(errors: Floats, words: Sequence[float]) -> float:
    return float(errors.mean(axis=0).sum() / sum(words))


def _resampled_wers(
    systems: Sequence[Floats], words: Sequence[float], resample_chips: bool, resamples: int, seed: int
) -> list[Floats]:
    """Return the WERs [resamples] of each system, on the same draws of utterances."""
    rng = np.random.default_rng(derive_seed(seed, "bootstrap"))
    reference = np.asarray(words, dtype=np.float64)
    wers = [np.empty(resamples) for _ in systems]
    for rows, utterances in _resamples(rng, resamples, len(words)):
        spoken = utterances @ reference
        for errors, found in zip(systems, wers, strict=True):
            sums = utterances @ errors.T  # [block, chips]
            if resample_chips:
                sums = sums * _draw_counts(rng, len(sums), len(errors))
            found[rows] = _ratio(sums.mean(axis=1), spoken)
    return wers


def _resamples(rng: np.random.Generator, resamples: int, count: int) -> Iterator[tuple[slice, Floats]]:
    """Yield the rows of a block of resamples, and how often each has each of `count` utterances [rows, count]."""
    block = max(1, int(_BLOCK_BYTES / (8 * count)))
    for start in range(0, resamples, block):
        rows = slice(start, min(start + block, resamples))
        yield rows, _draw_counts(rng, rows.stop - start, count)


def _draw_counts(rng: np.random.Generator, rows: int, count: int) -> Floats:
    """Return [rows, count]: how often each of `count` things is drawn in `count` draws with replacement."""
    picks = rng.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
    return np.bincount(picks.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Divide elementwise: 0 / 0 is 0, and any other number over 0 is infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(numerator == 0, 0.0, numerator / denominator)


def _interval(value: float, resampled: Floats) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    # Quantiles that are values of the sample, as nothing lies between a finite and an infinite value.
    low, high = np.quantile(resampled, [tail, 1 - tail], method="inverted_cdf")
    return Interval(value, float(low), float(high))
