"""Speed of reads on a GPU relative to nn.Linear in float32: `python -m tests.benchmarks.cuda` prints lines of JSON."""

from __future__ import annotations

import copy
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import nullcontext
from unittest import mock

import torch
from torch import nn

import memsim
from memsim.crossbar import read
from tests.benchmarks.reads import NOISES

WIDTH, FRAMES = 4096, 8192
ROUNDS = 9
WAYS = {
    "Triton": nullcontext,
    "torch operations": lambda: mock.patch.object(read, "_fused", return_value=None),
}
COLUMNS = {"bits": "", "read noise": "", "way": "", "ms": ".1f", "nn.Linear ms": ".1f", "ratio": ".1f"}


def seconds(module: nn.Module, inputs: torch.Tensor) -> float:
    """How long the device takes; nothing else may be under way on it."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    module(inputs)
    torch.cuda.synchronize()
    return time.perf_counter() - started


def triton_works() -> bool:
    """Whether reads on a GPU have taken the Triton kernel so far."""
    fused = read._triton()
    return fused is not None and fused._works


def rows(device: str = "cuda", width: int = WIDTH, frames: int = FRAMES) -> Iterator[dict[str, object]]:
    """Medians of interleaved runs of a layer on `physical` hardware, by `COLUMNS`; none where there is no GPU."""
    if not torch.cuda.is_available():
        return
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(width, width)), torch.randn(frames, width)
    linear, inputs = copy.deepcopy(model).to(device), x.to(device)
    for bits, (noise, settings) in itertools.product((2, 3), NOISES.items()):
        spec = memsim.load_hardware("physical").with_settings(settings)
        chip = memsim.map_model(model, spec, bits=bits, calibration=[x[:64]]).to(device)
        for way, context in WAYS.items():
            with torch.inference_mode(), context():
                linear(inputs), chip(inputs)  # the first compiles
                if way == "Triton" and not triton_works():
                    continue
                pairs = [(seconds(chip, inputs), seconds(linear, inputs)) for _ in range(ROUNDS)]
            read_ms, linear_ms = (1e3 * statistics.median(times) for times in zip(*pairs, strict=True))
            yield dict(zip(COLUMNS, (bits, noise, way, read_ms, linear_ms, read_ms / linear_ms), strict=True))


if __name__ == "__main__":
    for row in rows():
        print(json.dumps(row), flush=True)
