"""Works of small networks for tests of chips."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from memsim import load_hardware
from memsim.chip.workload import MatrixWork
from memsim.crossbar.tiling import tiling_for
from memsim.hardware import HardwareSpec


def matrix(
    name: str = "layer",
    shape: tuple[int, int] = (8, 8),
    *,
    vectors: float = 1.0,
    rounds: float = 1.0,
    cell_joules: float | None = None,
    groups: int = 1,
    **changes: Any,
) -> MatrixWork:
    """Return the work of a matrix of `shape` (out, in / groups) under `physical` with `changes`."""
    spec = _spec(json.dumps(changes))
    return MatrixWork(name, tiling_for(shape, spec, groups), spec, vectors, rounds, cell_joules)


@cache
def _spec(changes: str) -> HardwareSpec:
    return load_hardware({"base": "physical", "weights": {"bits": 3}, **json.loads(changes)})
