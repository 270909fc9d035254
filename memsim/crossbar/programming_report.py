"""Reports of programming: pulses, reads, energy and the resulting levels, counted over chunks and added over layers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memsim.device.programming import Outcome, Programmer
from memsim.hardware import Scheme


@dataclass(frozen=True)
class LevelResult:
    """The programmed cells of one level, as sums over the deviations of their currents from the target.

    Currents are fractions of the mean LRS current at the verify voltage (for single pulses, at the device's reference
    voltage), without noise and before relaxation.
    """

    target: float
    cells: int
    deviation_sum: float
    deviation_square_sum: float

    @property
    def mean(self) -> float | None:
        """The mean current; None without cells."""
        return self.target + self.deviation_sum / self.cells if self.cells else None

    @property
    def spread(self) -> float | None:
        """The standard deviation of the current; None without cells."""
        if not self.cells:
            return None
        mean = self.deviation_sum / self.cells
        return math.sqrt(max(self.deviation_square_sum / self.cells - mean**2, 0.0))


@dataclass(frozen=True)
class ProgrammingReport:
    """The programming of the cells that hold weights.

    Attributes:
        scheme: the programming scheme.
        cells: the number of cells.
        pulses: the number of SET and RESET pulses, without the random cycling that stands for a cell's past.
        max_pulses: the largest number of pulses of a cell.
        verify_reads: the number of verify reads.
        failures: the number of cells outside the tolerance at the end; None without verify.
        seconds: the time of all pulses and reads one after the other; a programmer that drives n cells at a time takes
            one n-th of it.
        joules: the energy U I t of the pulses.
        levels: the result of each level, by digit.
    """

    scheme: str
    cells: int
    pulses: int
    max_pulses: int
    verify_reads: int
    failures: int | None
    seconds: float
    joules: float
    levels: tuple[LevelResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "scheme": self.scheme,
            "cells": self.cells,
            "pulses_per_cell": {"mean": self.pulses / self.cells, "max": self.max_pulses},
            "verify_reads_per_cell": self.verify_reads / self.cells,
            "failures": self.failures,
            "seconds": self.seconds,
            "joules": self.joules,
            "levels": [
                {"target": level.target, "cells": level.cells, "mean": level.mean, "spread": level.spread}
                for level in self.levels
            ],
        }


def total(reports: Iterable[ProgrammingReport]) -> list[ProgrammingReport]:
    """Add up `reports`, into one report for each scheme and set of levels."""
    kinds: dict[tuple[object, ...], list[ProgrammingReport]] = {}
    for report in reports:
        kinds.setdefault((report.scheme, *(level.target for level in report.levels)), []).append(report)
    return [_sum(alike) for alike in kinds.values()]


def _sum(reports: list[ProgrammingReport]) -> ProgrammingReport:
    failures = [report.failures for report in reports if report.failures is not None]
    return ProgrammingReport(
        scheme=reports[0].scheme,
        cells=sum(report.cells for report in reports),
        pulses=sum(report.pulses for report in reports),
        max_pulses=max(report.max_pulses for report in reports),
        verify_reads=sum(report.verify_reads for report in reports),
        failures=sum(failures) if failures else None,
        seconds=math.fsum(report.seconds for report in reports),
        joules=math.fsum(report.joules for report in reports),
        levels=tuple(
            LevelResult(
                alike[0].target,
                sum(level.cells for level in alike),
                math.fsum(level.deviation_sum for level in alike),
                math.fsum(level.deviation_square_sum for level in alike),
            )
            for alike in zip(*(report.levels for report in reports), strict=True)
        ),
    )


class Tally:
    """A count of the outcomes of one scheme, chunk by chunk."""

    def __init__(self, config: Scheme, programmer: Programmer) -> None:
        self._config, self._programmer = config, programmer
        self._cells = self._pulses = self._max_pulses = self._reads = self._failures = 0
        self._joules = 0.0
        self._levels = torch.zeros(3, len(programmer.targets), dtype=torch.float64)  # cells, deviations, squares

    def add(self, digits: Tensor, outcome: Outcome) -> None:
        """Count the `outcome` of cells programmed to `digits` [n]."""
        self._cells += digits.numel()
        if not digits.numel():
            return
        self._pulses += int(outcome.pulses.sum())
        self._max_pulses = max(self._max_pulses, int(outcome.pulses.max()))
        self._reads += int(outcome.verify_reads.sum())
        self._failures += int(outcome.failed.sum())
        self._joules += float(outcome.joules.sum(dtype=torch.float64))
        currents = self._programmer.scale.currents(outcome.r)
        for digit, target in enumerate(self._programmer.targets.tolist()):
            here = (digits == digit).float()
            deviations = (currents - target).mul_(here)
            sums = (here.sum(), deviations.sum(), deviations.square().sum())
            self._levels[:, digit] += torch.stack(sums).to(self._levels)

    def report(self) -> ProgrammingReport:
        """Return the report of all outcomes added."""
        config = self._config
        read_seconds = 0.0 if config.verify is None else config.verify.read_seconds
        return ProgrammingReport(
            scheme=config.scheme,
            cells=self._cells,
            pulses=self._pulses,
            max_pulses=self._max_pulses,
            verify_reads=self._reads,
            failures=None if config.verify is None else self._failures,
            seconds=self._pulses * config.pulse_seconds + self._reads * read_seconds,
            joules=self._joules,
            levels=tuple(
                LevelResult(float(target), int(cells), float(deviation), float(square))
                for target, (cells, deviation, square) in zip(self._programmer.targets, self._levels.T, strict=True)
            ),
        )
