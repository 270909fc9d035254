"""Make measurements of levels for `memsim fit-device` from laws that are known, so that the truth is known.

    python tests/tools/example_levels.py readings.csv                    # cell, time, conductance, target of RRAM cells
    python tests/tools/example_levels.py readings.csv --kind pcm
    python tests/tools/example_levels.py summary.csv --kind summary      # target, mean, standard deviation, time
    python tests/tools/example_levels.py pulses.csv --kind pulses --cells 40    # conductance after each pulse

The kinds are made up, each for one way in which technologies differ: `rram` (middle levels relax in log time, and the
share of the cells that have moved grows), `pcm` (a power law, each cell with its own exponent, first read after 20 s),
`stable` (read noise alone) and `two_levels` (few levels, one of which drifts).
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Columns = dict[str, Floats]
SECONDS = (0.0, 1.0, 10.0, 100.0, 1e3, 1e4)
KINDS = ("rram", "pcm", "stable", "two_levels")


def readings(kind: str, cells: int, seed: int, seconds: tuple[float, ...] = SECONDS) -> Columns:
    """One row a cell and time: cell, time_seconds, target and conductance in uS."""
    generator = np.random.default_rng(seed)
    targets = {"two_levels": [8.0, 90.0], "pcm": np.linspace(2, 24, 12)}.get(kind, np.linspace(5, 120, 16))
    target = generator.choice(np.asarray(targets, dtype=float), cells)
    start = np.maximum(target + (0.3 + 0.01 * target) * generator.standard_normal(cells), 0.05 * target)
    times = np.array(seconds)
    if kind == "pcm":
        times = times[times > 0] * 20
    exponent = np.abs(0.06 - 0.001 * target + 0.015 * generator.standard_normal(cells))
    middle = np.exp(-(((target - 50) / 30) ** 2))
    direction = np.where(generator.random(cells) < 0.7, -1.0, 1.0) * generator.exponential(1.0, cells)
    moves = generator.random(cells)
    standard = generator.standard_normal(cells)
    now = []
    for time in times:
        since = np.log(max(time, 1.0))
        noise = 0.05 * np.sqrt(start) * generator.standard_normal(cells)
        if kind == "pcm":
            change = start * ((time / times[0]) ** -exponent - 1)
        elif kind == "rram":
            moved = moves < middle * (0.2 + 0.06 * since)
            change = np.where(moved, (2 + 0.7 * since) * direction, 0) if time > 0 else np.zeros(cells)
        elif kind == "two_levels":
            change = np.where(target > 50, -(0.5 + 0.1 * standard) * since, 0)
        else:
            change = np.zeros(cells)
        now.append(np.clip(start + change + noise, 0.02 * start, 130))
    order = np.arange(cells).repeat(len(times))
    return {
        "cell": order.astype(float),
        "time_seconds": np.tile(times, cells),
        "target_microsiemens": target[order],
        "conductance_microsiemens": np.stack(now, axis=1).reshape(-1),
    }


def summary(cells: int, seed: int, seconds: tuple[float, ...] = SECONDS) -> Columns:
    """One row a target and time: the mean and standard deviation of `cells` cells a target, in uS, of kind `rram`."""
    table = readings("rram", 16 * cells, seed, seconds)
    keys = np.stack([table["target_microsiemens"], table["time_seconds"]], axis=1)
    found, place = np.unique(keys, axis=0, return_inverse=True)
    values = [table["conductance_microsiemens"][place == i] for i in range(len(found))]
    return {
        "target_microsiemens": found[:, 0],
        "time_seconds": found[:, 1],
        "mean_microsiemens": np.array([v.mean() for v in values]),
        "standard_deviation_microsiemens": np.array([v.std() for v in values]),
    }


def pulses(cells: int, seed: int, count: int = 64) -> Columns:
    """One row a cell and pulse, from none to `count`: conductance in uS, which rises from 2 to 50 and saturates.

    Each cell has a pulse constant of its own, and each pulse a step of its own.
    """
    generator = np.random.default_rng(seed)
    constant = 16 * np.exp(0.15 * generator.standard_normal((cells, 1)))
    steps = np.exp(0.4 * generator.standard_normal((cells, count)) - 0.08).cumsum(axis=1)
    travelled = np.concatenate([np.zeros((cells, 1)), steps], axis=1)
    conductance = 2 + 48 * (1 - np.exp(-travelled / constant)) + 0.2 * generator.standard_normal((cells, count + 1))
    return {
        "cell": np.arange(cells).repeat(count + 1).astype(float),
        "pulse": np.tile(np.arange(count + 1.0), cells),
        "conductance_microsiemens": conductance.reshape(-1),
    }


def write(table: Columns, path: Path) -> None:
    """Write a table as CSV, with five digits."""
    lines = [",".join(table), *(",".join(f"{value:.5g}" for value in row) for row in zip(*table.values(), strict=True))]
    path.write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kind", choices=[*KINDS, "summary", "pulses"], default="rram")
    parser.add_argument("--cells", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    make = {"summary": summary, "pulses": pulses}.get(given.kind, partial(readings, given.kind))
    write(make(given.cells, given.seed), given.out)


if __name__ == "__main__":
    main()
