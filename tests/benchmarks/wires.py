"""`wires: effective`: preparation for each array, and reads in times of a read without line resistance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial

import torch

from memsim.crossbar.matrix import MappedMatrix
from tests.benchmarks.reads import BASE, NOISES, Case
from tests.benchmarks.timing import Benchmark, Row, median_seconds, times_plain

EFFECTIVE = {"wires": {"ohms": 1.0, "solve": "effective"}}
CASES = (BASE, Case(frames=32), Case(bits=4), Case(tile=64))


def _rows() -> Iterator[Row]:
    for case in CASES:
        _, x = case.network()
        ratios = {}
        for noise, settings in NOISES.items():
            plain, with_wires = case.chip(settings), case.chip(settings | EFFECTIVE)
            with torch.inference_mode():
                ratios |= times_plain(partial(plain, x), {noise: partial(with_wires, x)})
        shape = f"{case.out_features} x {case.in_features}"
        yield {"out x in": shape} | asdict(case) | ratios | {"ms an array": _preparation_milliseconds(case)}


def _preparation_milliseconds(case: Case) -> float:
    """The time that an array of the layer takes to be prepared."""
    (matrix,) = (module for module in case.chip(EFFECTIVE).modules() if isinstance(module, MappedMatrix))

    def prepare() -> None:
        matrix.release()
        matrix.arrays.ir_drop_columns()

    return 1e3 * median_seconds({"": prepare}, rounds=3)[""] / matrix.tiling.tiles


WIRES = Benchmark(
    "wires: a mapped layer on `physical` with `wires: effective`, in times of the same without line resistance",
    {"out x in": "", "frames": "", "bits": "", "tile": ""} | dict.fromkeys(NOISES, ".1f") | {"ms an array": ".1f"},
    _rows,
)
