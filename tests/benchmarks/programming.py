"""Speed of programming in cells per second, and of random pulses in cycles per second."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from memsim.crossbar.program import program
from memsim.crossbar.tiling import Tiling
from memsim.device import Cells, draw_cycling_volts, load_device
from memsim.hardware import Cycling, load_hardware
from tests.benchmarks.timing import Action, Benchmark, Row, median_seconds

BITS = 3
PULSES = 50


@dataclass(frozen=True)
class Case:
    """Programming of about `weights` weights, as a spec has it."""

    weights: int
    programming: dict[str, object] = field(default_factory=dict)
    cell_bits: int = 1

    def prepare(self, weights: int | None = None) -> tuple[int, Action]:
        """How many cells a square matrix of so many weights has, and what programs it."""
        device, width = load_device("synaptogen"), int((weights or self.weights) ** 0.5)
        config = load_hardware({"programming": self.programming}).programming
        generator = torch.Generator().manual_seed(0)
        levels = torch.randint(-3, 4, (width, width), generator=generator).to(torch.int8)
        tiling = Tiling(128, 128, width, width, BITS, self.cell_bits)
        return math.prod(tiling.shape), lambda: program(levels, tiling, config, device, 0)


SINGLE_PULSE = Case(1 << 22)
RANDOM_PULSES = Case(1 << 17, {"cycling": {"rounds": 1, "pulses_per_round": PULSES}, "history": "zero"})
CASES = {
    "single pulse": SINGLE_PULSE,
    f"{PULSES} random pulses": RANDOM_PULSES,
    "write-verify": Case(1 << 20, {"scheme": "write_verify"}),
    "incremental reset": Case(1 << 19, {"scheme": "incremental_reset"}),
    "incremental reset, 2 bits a cell": Case(1 << 20, {"scheme": "incremental_reset"}, 2),
    "incremental reset of `best`": Case(1 << 19, load_hardware("best").programming.model_dump()),
}


def cycles_per_cell(tiles: int = 200) -> float:
    """How often the random pulses take a cell through SET and RESET: how often it draws a next cycle."""
    cells = Cells(load_device("synaptogen"), torch.arange(100 * tiles), 0, "zero")
    for volts in draw_cycling_volts(Cycling(rounds=1, pulses_per_round=PULSES), tiles, 0).T:
        cells.apply(volts.repeat_interleave(100))
    return float(cells.cycle.double().mean())


def _rows() -> Iterator[Row]:
    for scheme, case in CASES.items():
        cells, action = case.prepare()
        rate = cells / median_seconds({scheme: action}, rounds=3)[scheme] / 1e6
        row: Row = {"scheme": scheme, "cells": cells, "million cells/s": rate}
        if case is RANDOM_PULSES:
            row |= {"million cell-cycles/s": rate * cycles_per_cell(), "million cell-pulses/s": rate * PULSES}
        yield row


PROGRAMMING = Benchmark(
    f"programming, {BITS}-bit weights",
    {
        **{"scheme": "", "cells": ",", "million cells/s": ".2f"},
        **{"million cell-cycles/s": ".1f", "million cell-pulses/s": ".0f"},
    },
    _rows,
)
