"""Scaling of time with cells, frames, tiles and layers; an exponent of 1 is linear."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

import memsim
from memsim.nn.chip import mapping_of
from tests.benchmarks.models import stack
from tests.benchmarks.programming import RANDOM_PULSES, SINGLE_PULSE
from tests.benchmarks.reads import BASE, Case
from tests.benchmarks.timing import Action, Benchmark, Row, exponent, median_seconds


def _read(case: Case) -> tuple[int, Action]:
    """The tiles of a layer, and a read of it."""
    chip, (_, x) = case.chip({}), case.network()
    (layer,) = mapping_of(chip).mapped
    return layer.tiling.tiles, lambda: chip(x)


def _frames(frames: int) -> tuple[int, Action]:
    return frames, _read(replace(BASE, frames=frames))[1]


def _tiles(width: int) -> tuple[int, Action]:
    return _read(replace(BASE, in_features=width, out_features=width, frames=512))


def _layers(layers: int) -> tuple[int, Action]:
    network, batches = stack(layers, 64)
    return layers, lambda: memsim.map_model(network, "physical", bits=3, calibration=batches)


SERIES: dict[str, tuple[Callable[[int], tuple[int, Action]], Sequence[int]]] = {
    "single pulse: cells": (
        SINGLE_PULSE.prepare,
        [1 << n for n in (16, 18, 20, 22)],
    ),
    "50 random pulses: cells": (
        RANDOM_PULSES.prepare,
        [1 << n for n in (14, 16, 18)],
    ),
    "read, 512 x 512: frames": (_frames, (256, 1024, 4096)),
    "read, 512 frames: tiles": (_tiles, (256, 512, 1024, 2048)),
    "map_model, 64 x 64: layers": (_layers, (32, 128, 512)),
}


def _rows() -> Iterator[Row]:
    for name, (make, settings) in SERIES.items():
        sizes, actions = zip(*(make(setting) for setting in settings), strict=True)
        with torch.inference_mode():
            taken = median_seconds({str(size): action for size, action in zip(sizes, actions, strict=True)}, rounds=3)
        times = list(taken.values())
        yield {
            "time against": name,
            "sizes": sizes,
            "milliseconds": [1e3 * t for t in times],
            "exponent": exponent(sizes, times),
        }


SCALING = Benchmark(
    "scaling (an exponent of 1 is linear)",
    {"time against": "", "sizes": ",", "milliseconds": ".3g", "exponent": ".2f"},
    _rows,
)
