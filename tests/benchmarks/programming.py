"""How many cells are programmed in a second."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from memsim import rng
from memsim.crossbar.encode import set_mask
from memsim.crossbar.program import program
from memsim.crossbar.tiling import Tiling
from memsim.device import load_device
from memsim.spec import Programming
from tests.benchmarks.timing import Action, Benchmark, Row, median_seconds

BITS = 3
SINGLE_PULSE = Programming()
RANDOM_PULSES = Programming.model_validate({"cycling": {"rounds": 1, "pulses_per_round": 50}, "history": "zero"})
SCHEMES = {"single pulse": (SINGLE_PULSE, 1 << 22), "50 random pulses": (RANDOM_PULSES, 1 << 17)}
"""Programming and how many weights to measure it on."""


def programming(config: Programming, weights: int) -> tuple[int, Action]:
    """How many cells a square matrix of about `weights` weights has, and what programs them."""
    width = int(weights**0.5)
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(-3, 4, (width, width), generator=generator).to(torch.int8)
    tiling = Tiling(128, 128, width, width, BITS)
    device = load_device("synaptogen")
    return set_mask(levels, BITS).numel(), lambda: program(levels, tiling, config, device, rng.generator(0))


def _rows() -> Iterator[Row]:
    for scheme, (config, weights) in SCHEMES.items():
        cells, action = programming(config, weights)
        taken = median_seconds({scheme: action}, rounds=3)[scheme]
        yield {"scheme": scheme, "cells": cells, "million cells/s": cells / taken / 1e6}


PROGRAMMING = Benchmark(
    f"programming, {BITS}-bit weights", {"scheme": "", "cells": ",", "million cells/s": ".2f"}, _rows
)
