"""Counts of programming, by chunks and by layers."""

from __future__ import annotations

import json
import math

import pytest
import torch

from memsim.crossbar import compiled_cells
from memsim.crossbar.programming_report import BLOCK, ProgrammingReport, Tally, count, total
from memsim.device import DeviceModel
from memsim.device.cycles.programming import make_programmer
from memsim.device.interface import Outcome
from memsim.hardware import IncrementalReset, Scheme, SinglePulse, Verify, WriteVerify

SCHEMES: dict[str, tuple[Scheme, int]] = {
    "single_pulse": (SinglePulse(pulse_seconds=2e-6), 2),
    "write_verify": (WriteVerify(scheme="write_verify", verify=Verify(read_seconds=3e-7)), 2),
    "incremental_reset": (IncrementalReset(scheme="incremental_reset", pulse_seconds=2e-6), 4),
}


def programmed(config: Scheme, device: DeviceModel, levels: int, n: int = 5000) -> tuple[torch.Tensor, Outcome]:
    digits = torch.arange(n, dtype=torch.int32) ** 2 % levels
    return digits, make_programmer(config, device, levels)(digits, torch.arange(n), 1)


def report_of(config: Scheme, device: DeviceModel, levels: int, parts: list[slice]) -> ProgrammingReport:
    digits, outcome = programmed(config, device, levels)
    tally = Tally(config, make_programmer(config, device, levels), len(digits))
    for part in parts:
        of_part = Outcome(*(getattr(outcome, key)[part] for key in Outcome.__dataclass_fields__))
        tally.add(part.start, digits[part], of_part)
    return tally.report()


@pytest.mark.parametrize(("config", "levels"), SCHEMES.values(), ids=SCHEMES)
def test_everything_is_counted(config: Scheme, levels: int, device: DeviceModel) -> None:
    digits, outcome = programmed(config, device, levels)
    programmer = make_programmer(config, device, levels)
    report = report_of(config, device, levels, [slice(2048, None), slice(0, 2048)])
    assert (report.scheme, report.cells) == (config.scheme, 5000)
    assert report.pulses == outcome.pulses.sum()
    assert report.max_pulses == outcome.pulses.max()
    assert report.verify_reads == outcome.verify_reads.sum()
    read_seconds = 0.0
    if isinstance(config, SinglePulse):
        assert report.failures is None
    else:
        assert report.failures == outcome.failed.sum()
        read_seconds = config.verify.read_seconds
    assert report.seconds == pytest.approx(report.pulses * config.pulse_seconds + report.verify_reads * read_seconds)
    assert report.joules == pytest.approx(outcome.joules.double().sum().item())
    currents = programmer.scale.currents(outcome.r.double())
    assert len(report.levels) == levels
    for digit, level in enumerate(report.levels):
        here = currents[digits == digit]
        assert level.target == pytest.approx(programmer.targets[digit].item())
        assert level.cells == len(here)
        if len(here):  # squares are never 2 or 3 modulo 4
            assert level.mean == pytest.approx(here.mean().item(), rel=1e-5)
            assert level.spread == pytest.approx(here.std(correction=0).item(), rel=1e-3)
        else:
            assert level.mean is level.spread is None


def test_reports_of_one_scheme_and_its_levels_are_added_up(device: DeviceModel) -> None:
    whole = {name: report_of(config, device, levels, [slice(0, None)]) for name, (config, levels) in SCHEMES.items()}
    parts = [
        report_of(config, device, levels, [part])
        for part in (slice(0, 1024), slice(1024, None))
        for config, levels in SCHEMES.values()
    ]
    other_levels = report_of(SCHEMES["incremental_reset"][0], device, 2, [slice(0, None)])
    added = total([*parts, other_levels])
    assert [report.scheme for report in added] == [*SCHEMES, "incremental_reset"]
    assert added[3] == other_levels
    for report, expected in zip(added, whole.values(), strict=False):
        assert (report.cells, report.pulses, report.max_pulses, report.verify_reads, report.failures) == (
            expected.cells,
            expected.pulses,
            expected.max_pulses,
            expected.verify_reads,
            expected.failures,
        )
        assert report.seconds == pytest.approx(expected.seconds)
        assert report.joules == pytest.approx(expected.joules)
        for level, one in zip(report.levels, expected.levels, strict=True):
            assert (level.target, level.cells) == (one.target, one.cells)
            if level.cells:
                assert level.mean == pytest.approx(one.mean, rel=1e-5)
                assert level.spread == pytest.approx(one.spread, rel=1e-3)
    assert total([]) == []


@pytest.mark.parametrize(("config", "levels"), SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("n", [1, BLOCK, 3 * BLOCK + 7])
def test_compiled_counts_are_those_of_the_definition(config: Scheme, levels: int, n: int, device: DeviceModel) -> None:
    digits, outcome = programmed(config, device, levels, n)
    programmer = make_programmer(config, device, levels)
    law = (digits, outcome, programmer.scale.slope, programmer.scale.offset, programmer.targets)
    ours, theirs = torch.zeros(2, -(-n // BLOCK), 1 + 2 * levels, dtype=torch.float64)
    assert compiled_cells.count(ours, *law) == count(theirs, *law)
    assert torch.equal(ours, theirs)
    assert ours.all(dim=0)[0]


@pytest.mark.parametrize(("config", "levels"), SCHEMES.values(), ids=SCHEMES)
def test_a_report_does_not_depend_on_chunks(config: Scheme, levels: int, device: DeviceModel) -> None:
    whole = report_of(config, device, levels, [slice(0, None)])
    cut = [slice(BLOCK, 4 * BLOCK), slice(4 * BLOCK, None), slice(0, BLOCK)]
    assert report_of(config, device, levels, cut) == whole


def test_a_report_is_json(device: DeviceModel) -> None:
    report = report_of(SCHEMES["incremental_reset"][0], device, 4, [slice(0, None)])
    again = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert again["pulses_per_cell"] == {"mean": report.pulses / 5000, "max": report.max_pulses}
    assert again["verify_reads_per_cell"] == report.verify_reads / 5000
    assert [level["cells"] for level in again["levels"]] == [2500, 2500, 0, 0]
    assert again["levels"][3] == {"target": pytest.approx(0.85), "cells": 0, "mean": None, "spread": None}
    assert math.isfinite(again["joules"])
