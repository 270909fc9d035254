"""Timing of the benchmarks: medians of interleaved runs, as machines are shared and noisy."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

Row = dict[str, object]
Action = Callable[[], object]


@dataclass(frozen=True)
class Benchmark:
    """A table: `columns` are keys of the rows and the formats of their values, or of each value of a list."""

    title: str
    columns: Mapping[str, str]
    rows: Callable[[], Iterable[Row]]


def seconds(action: Action) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def median_seconds(actions: Mapping[str, Action], rounds: int = 5) -> dict[str, float]:
    """The median time of each action over `rounds`, taken in turns after one round that is not counted."""
    for action in actions.values():
        action()
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            times[name].append(seconds(action))
    return {name: statistics.median(taken) for name, taken in times.items()}


def times_plain(plain: Action, actions: Mapping[str, Action], rounds: int = 9, repeats: int = 1) -> dict[str, float]:
    """The median time of each action in times of `plain`, which is run five times before each.

    Actions of microseconds need several `repeats` in a round: the first finds the caches full of the others' data.
    """
    plain()
    for action in actions.values():
        action()
    ratios: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            unit = statistics.median(seconds(plain) for _ in range(5))
            ratios[name].append(statistics.median(seconds(action) for _ in range(repeats)) / unit)
    return {name: statistics.median(taken) for name, taken in ratios.items()}


def exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """The slope of log time against log size, by least squares: 1 is linear."""
    slope, _ = statistics.linear_regression([math.log(s) for s in sizes], [math.log(t) for t in times])
    return slope
