"""`make bench`: reads as ratios to nn.Linear in the same run, programming rates, and the paper-size model.

Prints tables and JSON.

Timings are interleaved and medians are taken, as machines are shared and noisy. Threads: OMP_NUM_THREADS.
"""

from __future__ import annotations

import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import memsim
from memsim import rng
from memsim.asr.corpora import load_corpus
from memsim.asr.recogniser import build, load_model_config
from memsim.asr.tokens import CharacterTokens
from memsim.checkpoint import save_checkpoint
from memsim.crossbar.program import program
from memsim.crossbar.tiling import Tiling
from memsim.device import Cells, draw_cycling_volts, load_device
from memsim.spec import Cycling

ROUNDS = 9
NOISES: dict[str, dict[str, object]] = {
    "none": {"read_noise": None},
    "exact": {},
    "bfloat16 variances": {"read_noise.variance_product": "bfloat16"},
}


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def read_ratio(width: int, frames: int, bits: int, settings: dict[str, object]) -> float:
    """Median time of a mapped width x width linear over nn.Linear's, 128 x 128 tiles, 8-bit DAC and ADC."""
    model = nn.Sequential(nn.Linear(width, width))
    x = torch.randn(frames, width)
    spec = memsim.load_hardware("physical").with_settings(settings)
    chip = memsim.map_model(model, spec, bits=bits, calibration=[x[:64]])
    with torch.inference_mode():
        chip(x), model(x)
        ratios = []
        for _ in range(ROUNDS):
            plain = statistics.median(seconds(lambda: model(x)) for _ in range(5))
            ratios.append(seconds(lambda: chip(x)) / plain)
    return statistics.median(ratios)


CYCLED = {"cycling": {"rounds": 1, "pulses_per_round": 50}, "history": "zero"}
SCHEMES: dict[str, tuple[dict[str, object], int, int]] = {  # programming, weights, bits a cell
    "single pulse": ({}, 1 << 22, 1),
    "50 random pulses": (CYCLED, 1 << 17, 1),
    "write-verify": ({"scheme": "write_verify"}, 1 << 20, 1),
    "incremental-reset": ({"scheme": "incremental_reset"}, 1 << 19, 1),
    "multilevel, 2 bits a cell": ({"scheme": "incremental_reset"}, 1 << 20, 2),
}


def programming_rate(programming: dict[str, object], weights: int, cell_bits: int) -> float:
    """Million cells a second of programming `weights` 3-bit weights."""
    device = load_device("synaptogen")
    config = memsim.load_hardware({"programming": programming}).programming
    width = int(weights**0.5)
    levels = torch.randint(-3, 4, (width, width), dtype=torch.int8)
    tiling = Tiling(128, 128, width, width, 3, cell_bits)
    program(levels[:9, :9], Tiling(128, 128, 9, 9, 3, cell_bits), config, device, rng.generator(0))  # its tables
    times = [seconds(lambda: program(levels, tiling, config, device, rng.generator(0))) for _ in range(3)]
    return math.prod(tiling.shape) / statistics.median(times) / 1e6


def cycles_per_cell(pulses: int, tiles: int = 200) -> float:
    """How often `pulses` random pulses take a cell through SET and RESET: how often it draws a next cycle."""
    generator = rng.generator(0)
    cells = Cells(load_device("synaptogen"), 100 * tiles, generator, "zero")
    cycles = 0
    for volts in draw_cycling_volts(Cycling(rounds=1, pulses_per_round=pulses), tiles, generator):
        before = cells.features.clone()
        cells.apply(volts.repeat_interleave(100))
        cycles += int((cells.features != before).any(0).sum())
    return cycles / (100 * tiles)


def paper_size() -> list[dict[str, object]]:
    """`memsim map` and `memsim eval` of conformer-paper with random weights, as whole processes."""
    architecture, config = load_model_config("conformer-paper")
    tokens = CharacterTokens.from_texts(u.text for u in load_corpus("demo").utterances)
    recogniser = build(architecture, config, tokens, "kaldi")
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        source, mapped, result = (Path(name) / file for file in ("p.safetensors", "m.safetensors", "r.json"))
        save_checkpoint(source, recogniser.model.state_dict(), {"kind": "model", **recogniser.metadata()})
        memsim_ = [sys.executable, "-m", "memsim"]
        map_ = [*memsim_, "map", source, "--bits", "3", "--calibrate", "demo", "-o", mapped, "--quiet"]
        eval_ = [*memsim_, "eval", mapped, "--data", "demo", "--json", result, "--quiet"]
        for command in (map_, eval_):
            elapsed = seconds(lambda command=command: subprocess.run(list(map(str, command)), check=True))  # type: ignore[misc]
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
            rows.append({"command": command[3], "seconds": elapsed, "peak_gigabytes": peak})
        weights = sum(m.weight.numel() for m in recogniser.model.blocks.modules() if isinstance(m, nn.Linear))
        rows[0]["bytes_per_weight"] = mapped.stat().st_size / weights
        rows[1]["real_time_factor"] = json.loads(result.read_text())["real_time_factor"]
    return rows


def main() -> None:
    torch.manual_seed(0)
    results: dict[str, list[dict[str, object]]] = {"read": [], "programming": []}
    reads = Table(title=f"read, times nn.Linear ({torch.get_num_threads()} threads)", title_justify="left")
    for column in ("shape", "frames", "bits", "read noise", "ratio"):
        reads.add_column(column, justify="right")
    for width, frames, bits in ((512, 256, 3), (512, 1024, 3), (512, 4096, 3), (512, 1024, 8), (384, 1024, 4)):
        for noise, settings in NOISES.items():
            ratio = read_ratio(width, frames, bits, settings)
            results["read"].append({"width": width, "frames": frames, "bits": bits, "noise": noise, "ratio": ratio})
            reads.add_row(f"{width} x {width}", f"{frames}", f"{bits}", noise, f"{ratio:.1f}")
    rates = Table(title="programming", title_justify="left")
    for column in ("scheme", "million cells/s", "million cell-cycles/s"):
        rates.add_column(column, justify="right")
    for scheme, arguments in SCHEMES.items():
        rate = programming_rate(*arguments)
        row: dict[str, object] = {"scheme": scheme, "million_cells_per_second": rate}
        cycles = ""
        if arguments[0] is CYCLED:
            row["million_cell_cycles_per_second"] = rate * cycles_per_cell(50)
            cycles = f"{row['million_cell_cycles_per_second']:.1f}"
        results["programming"].append(row)
        rates.add_row(scheme, f"{rate:.1f}", cycles)
    results["paper_size"] = paper_size()
    sizes = Table(title="conformer-paper (42 M parameters), 3 bits, whole process", title_justify="left")
    for column in ("command", "seconds", "peak GB (of either)", "bytes a weight", "real-time factor"):
        sizes.add_column(column, justify="right")
    for row in results["paper_size"]:
        cells = (row.get(key) for key in ("seconds", "peak_gigabytes", "bytes_per_weight", "real_time_factor"))
        sizes.add_row(str(row["command"]), *("" if cell is None else f"{cell:.2f}" for cell in cells))
    Console().print(reads, rates, sizes)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
