"""Reads as ratios to nn.Linear: by shape, frames, bits, tile, DAC and noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import nn

import memsim
from tests.benchmarks.timing import Benchmark, Row, times_plain

NOISES: dict[str, dict[str, object]] = {
    "without noise": {"read_noise": None},
    "linearised DAC, without noise": {"read_noise": None, "dac.transfer": "linearised"},  # as `best` has it
    "exact noise": {},
    "bfloat16 variances": {"read_noise.variance_product": "bfloat16"},
}


@dataclass(frozen=True)
class Case:
    """A mapped linear layer; 8-bit DAC and ADC."""

    out_features: int = 512
    in_features: int = 512
    frames: int = 1024
    bits: int = 3
    tile: int = 128

    def network(self) -> tuple[nn.Sequential, torch.Tensor]:
        """The layer and its input [frames, in_features]."""
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(self.in_features, self.out_features)), torch.randn(self.frames, self.in_features)

    def chip(self, settings: Mapping[str, object]) -> nn.Module:
        """The layer on `physical` hardware with `settings`."""
        network, _ = self.network()
        tile = {"tile.rows": self.tile, "tile.cols": self.tile}
        spec = memsim.load_hardware("physical").with_settings({**tile, **settings})
        return memsim.map_model(network, spec, bits=self.bits, calibration=[torch.randn(64, self.in_features)])


BASE = Case()
CASES = (
    BASE,
    *(replace(BASE, frames=frames) for frames in (256, 4096)),
    *(replace(BASE, bits=bits) for bits in (2, 4, 8)),
    *(replace(BASE, tile=tile) for tile in (64, 256)),
    replace(BASE, out_features=256, in_features=256),
    replace(BASE, out_features=384, in_features=384, bits=4),
    replace(BASE, out_features=1536, in_features=384),
    replace(BASE, out_features=384, in_features=1536),
    replace(BASE, out_features=1024, in_features=1024),
)


def _rows(cases: Sequence[Case], rounds: int, repeats: int) -> Iterator[Row]:
    for case in cases:
        network, x = case.network()
        chips = {name: case.chip(settings) for name, settings in NOISES.items()}
        reads = {name: partial(chip, x) for name, chip in chips.items()}
        with torch.inference_mode():
            ratios = times_plain(partial(network, x), reads, rounds, repeats)
        shape = f"{case.out_features} x {case.in_features}"
        yield {"out x in": shape} | asdict(case) | ratios


READS = Benchmark(
    "reads: a mapped layer on `physical`, in times of nn.Linear",
    {"out x in": "", "frames": "", "bits": "", "tile": ""} | dict.fromkeys(NOISES, ".1f"),
    partial(_rows, CASES, rounds=9, repeats=1),
)

FEW_FRAMES = Benchmark(
    "few frames, as decoders of text read them: a mapped layer on `physical`, in times of nn.Linear on as many",
    READS.columns,
    partial(_rows, [replace(BASE, frames=frames) for frames in (1, 2, 4, 8, 16, 32)], rounds=99, repeats=5),
)
