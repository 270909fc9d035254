"""Whole models: one of the paper's size in processes, and a small one with many layers."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import nn

import memsim
from memsim.asr.corpora import load_corpus
from memsim.asr.recogniser import build, load_model_config
from memsim.asr.tokens import CharacterTokens
from memsim.crossbar.statistics import InputStatistics
from memsim.networks.programming import plan_checkpoint, program_checkpoint
from memsim.nn.mapping import measure_inputs
from memsim.nn.plan import Selection
from memsim.storage.checkpoint import load_checkpoint, save_checkpoint
from tests.benchmarks.timing import Benchmark, Row, median_seconds, seconds


def _process(*arguments: str | Path) -> Row:
    """Seconds and peak memory of `memsim ARGUMENTS` (or of `load`), start-up included."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "tests.benchmarks.child", report, *arguments]
        taken = seconds(lambda: subprocess.run(list(map(str, command)), check=True))
        return {"seconds": taken} | json.loads(report.read_text())


def save_paper_size(path: Path) -> int:
    """Save a recogniser of the paper's size with random weights; return the number of weights of its linear layers."""
    architecture, config = load_model_config("conformer-paper")
    tokens = CharacterTokens.from_texts(u.text for u in load_corpus("demo").utterances)
    torch.manual_seed(0)
    recogniser = build(architecture, config, tokens, "kaldi")
    save_checkpoint(path, recogniser.model.state_dict(), {"kind": "model", **recogniser.metadata()})
    return sum(m.weight.numel() for m in recogniser.model.blocks.modules() if isinstance(m, nn.Linear))


def _paper_size() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        source, mapped, result = (Path(name) / file for file in ("p.safetensors", "m.safetensors", "r.json"))
        weights = save_paper_size(source)
        map_ = _process("map", source, "--bits", "3", "--calibrate", "demo", "-o", mapped, "--quiet")
        yield {"step": "map, process"} | map_ | {"bytes/weight": mapped.stat().st_size / weights}
        yield {"step": "load, after imports"} | _process("load", mapped)
        eval_ = _process("eval", mapped, "--data", "demo", "--limit", "20", "--json", result, "--quiet")
        yield (
            {"step": "eval of 20 utterances, process"}
            | eval_
            | {"real-time": json.loads(result.read_text())["real_time_factor"]}
        )


PAPER_SIZE = Benchmark(
    "conformer-paper (42 M parameters, random weights), 3 bits",
    {
        "step": "",
        "seconds": ".2f",
        "peak_gigabytes": ".2f",
        "grown_gigabytes": ".3f",
        "bytes/weight": ".1f",
        "real-time": ".2f",
    },
    _paper_size,
)


def stack(layers: int, width: int) -> tuple[nn.Sequential, list[torch.Tensor]]:
    """`layers` linear layers of `width` x `width` with ReLUs between them, and batches to calibrate them on."""
    torch.manual_seed(0)
    network = nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(layers)))
    return network, [torch.randn(64, width)]


def _map_file(source: Path, target: Path, spec: memsim.HardwareSpec, statistics: Mapping[str, InputStatistics]) -> None:
    """What `memsim map` does after start-up and calibration."""
    checkpoint = load_checkpoint(source)
    mapped = program_checkpoint(checkpoint, spec, plan_checkpoint(checkpoint, spec, Selection()), statistics=statistics)
    save_checkpoint(target, mapped.tensors, mapped.metadata)


def _million() -> Iterator[Row]:
    for (layers, width), bits in product(((1, 1024), (16, 256), (250, 64)), (3, 8)):
        network, batches = stack(layers, width)
        statistics = measure_inputs(network, batches)
        spec = memsim.load_hardware("physical").with_settings({"weights.bits": bits})
        with tempfile.TemporaryDirectory() as name:
            source, target = Path(name) / "source.safetensors", Path(name) / "mapped.safetensors"
            save_checkpoint(source, network.state_dict(), {"kind": "model"})
            actions = {
                "map_model": partial(memsim.map_model, network, spec, calibration=statistics),
                "map file": partial(_map_file, source, target, spec, statistics),
            }
            yield {"layers": layers, "width": width, "bits": bits} | median_seconds(actions, rounds=3)


MANY_LAYERS = Benchmark(
    "mapping a model of 1 M parameters, after start-up, seconds",
    {"layers": "", "width": "", "bits": "", "map_model": ".2f", "map file": ".2f"},
    _million,
)
