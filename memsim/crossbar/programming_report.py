"""Reports of programming: pulses, reads, energy and the resulting levels, counted over chunks and added over layers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from memsim.crossbar import compiled_cells
from memsim.crossbar.compiled_cells import BLOCK
from memsim.device.interface import Outcome, Programmer
from memsim.hardware import Scheme
from memsim.portable.kernels import is_compiled


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
        verify_reads: the number of verify reads, those that read cells back included.
        failures: the number of cells outside the tolerance at the end; None without verify.
        seconds: the time of all pulses and reads one after the other; a programmer that drives n cells at a time takes
            one n-th of it.
        joules: the energy U I t of the pulses.
        levels: the result of each level, by digit.
        read_back: the number of cells that were read back for error feedback, once each after they were programmed;
            rows are then programmed one after the other.
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
    read_back: int = 0

    def with_read_back(self, read_seconds: float) -> ProgrammingReport:
        """Return the report with one more read of every cell, of `read_seconds` each."""
        reads, seconds = self.verify_reads + self.cells, self.seconds + self.cells * read_seconds
        return replace(self, verify_reads=reads, seconds=seconds, read_back=self.cells)

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
            **({"read_back": self.read_back} if self.read_back else {}),
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
        read_back=sum(report.read_back for report in reports),
    )


class Tally:
    """The counts of the outcomes of `cells` cells, in parts that may come in any order and from several threads."""

    def __init__(self, config: Scheme, programmer: Programmer, cells: int) -> None:
        self._config, self._programmer = config, programmer
        self._counts: list[tuple[int, ...]] = []
        self._targets = reported_targets(programmer.targets)
        self._sums = torch.zeros(-(-cells // BLOCK), 1 + 2 * len(self._targets), dtype=torch.float64)

    def add(self, first: int, digits: Tensor, outcome: Outcome) -> None:
        """Count the `outcome` of the cells from `first`, a multiple of BLOCK, on, programmed to `digits` [n]."""
        assert first % BLOCK == 0
        sums = self._sums[first // BLOCK : -(-(first + len(digits)) // BLOCK)]
        scale, targets, own = self._programmer.scale, self._targets, self._programmer.targets
        if len(targets) < len(own):  # a cell counts to its band, by its deviation from its own target
            bands = digits * len(targets) // len(own)
            moved = (targets.index_select(0, bands) - own.index_select(0, digits)) / scale.slope
            digits, outcome = bands, replace(outcome, r=outcome.r + moved)
        count_cells = compiled_cells.count if is_compiled(digits) else count
        self._counts.append(count_cells(sums, digits, outcome, scale.slope, scale.offset, targets))

    def report(self) -> ProgrammingReport:
        """Return the report of all outcomes added, whose sums are rounded once."""
        config, targets = self._config, self._targets.tolist()
        most, totals = (
            max(counts[0] for counts in self._counts),
            [sum(column) for column in zip(*self._counts, strict=True)],
        )
        _, pulses, verify_reads, failures, *cells = totals
        joules, *sums = (math.fsum(column) for column in self._sums.T.tolist())
        read_seconds = 0.0 if config.verify is None else config.verify.read_seconds
        levels = zip(targets, cells, sums[: len(cells)], sums[len(cells) :], strict=True)
        return ProgrammingReport(
            scheme=config.scheme,
            cells=sum(cells),
            pulses=pulses,
            max_pulses=most,
            verify_reads=verify_reads,
            failures=None if config.verify is None else failures,
            seconds=pulses * config.pulse_seconds + verify_reads * read_seconds,
            joules=joules,
            levels=tuple(LevelResult(*level) for level in levels),
        )


MOST_LEVELS = 16
"""The most levels that are counted one by one; more are counted in so many bands of neighbours."""


def reported_targets(targets: Tensor) -> Tensor:
    """Return the targets [levels or bands] of a report: those of the levels, or the means over bands of them."""
    if len(targets) <= MOST_LEVELS:
        return targets
    bands = torch.arange(len(targets), device=targets.device) * MOST_LEVELS // len(targets)
    return torch.stack([targets[bands == band].mean() for band in range(MOST_LEVELS)])


def count(
    sums: Tensor, digits: Tensor, outcome: Outcome, slope: float, offset: float, targets: Tensor
) -> tuple[int, ...]:
    """Count the `outcome` of cells programmed to `digits` [n]; `compiled_cells.count` has the same for CPUs.

    A current is `slope` r + `offset`, and `targets` [levels] are those of the digits. Sets `sums` [blocks, 1 + 2
    levels] (float64, on a CPU) to the sums over each BLOCK of cells: of the energy in joules, of the deviations of each
    digit's currents from its target, and of their squares. Returns the largest number of pulses of a cell, the numbers
    of pulses, verify reads and failed cells, and the number of cells of each digit.
    """
    deviations = outcome.r * slope + offset - targets.index_select(0, digits)
    here = digits == torch.arange(len(targets), device=digits.device)[:, None]
    by_digit = torch.where(here, deviations.double(), 0.0)
    terms = torch.cat([outcome.joules.double()[None], by_digit, by_digit * by_digit])
    terms = torch.nn.functional.pad(terms, (0, -terms.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    while (half := terms.shape[2] // 2) > 0:  # in a fixed order, which torch's own sums do not have
        terms = terms[..., :half] + terms[..., half:]
    sums.copy_(terms[..., 0].T)
    counts = (outcome.pulses.max(), outcome.pulses.sum(), outcome.verify_reads.sum(), outcome.failed.sum())
    return *(int(number) for number in counts), *here.sum(dim=1).tolist()
