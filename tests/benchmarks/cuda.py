"""Speed on a GPU: reads as ratios to nn.Linear in float32, programming, and a model of the paper's size."""

from __future__ import annotations

import copy
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import torch
from torch import nn

import memsim
from memsim.crossbar import read
from memsim.crossbar.program import program_matrix
from tests.benchmarks.models import save_paper_size
from tests.benchmarks.reads import NOISES
from tests.benchmarks.timing import Benchmark, Row

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


def rows(device: str = "cuda", width: int = WIDTH, frames: int = FRAMES) -> Iterator[Row]:
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


def _programming() -> Iterator[Row]:
    """Cells per second of `program_matrix` on the GPU; none where there is no GPU."""
    if not torch.cuda.is_available():
        return
    levels = torch.randint(-3, 4, (2048, 2048), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    for name in ("physical", "write-verify", "incremental-reset", "best", "paper"):
        spec = memsim.load_hardware(name).with_settings({"weights.bits": 3})
        there = levels.cuda()
        for part in (there[:64], there):  # the first warms up
            torch.cuda.synchronize()
            started = time.perf_counter()
            states, _ = program_matrix("layer", part, spec, 0)
            torch.cuda.synchronize()
            taken = time.perf_counter() - started
        assert states is not None
        yield {"hardware": name, "cells": states.numel(), "million cells/s": states.numel() / taken / 1e6}


def _paper_size() -> Iterator[Row]:
    """The demo's real-time factors of a mapped network of the paper's size; none where there is no GPU."""
    if not torch.cuda.is_available():
        return
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "paper.safetensors"
        save_paper_size(source)
        for hardware, trials in (("physical", 2), ("best", 2)):
            started = time.perf_counter()
            result = memsim.evaluate(source, "demo", hardware=hardware, bits=3, trials=trials, limit=20, compute="cuda")
            yield {
                "hardware": hardware,
                "chips": trials,
                "seconds": time.perf_counter() - started,
                "real-time": result.to_dict()["real_time_factor"],
            }


TABLES = {
    "reads": Benchmark(f"reads on CUDA, {WIDTH} x {WIDTH}, {FRAMES} frames, in times of nn.Linear", COLUMNS, rows),
    "programming": Benchmark(
        "programming on CUDA, 3-bit weights", {"hardware": "", "cells": ",", "million cells/s": ".1f"}, _programming
    ),
    "paper_size": Benchmark(
        "conformer-paper on CUDA (42 M parameters, random weights), 3 bits: chips programmed and evaluated",
        {"hardware": "", "chips": "", "seconds": ".1f", "real-time": ".3f"},
        _paper_size,
    ),
}
