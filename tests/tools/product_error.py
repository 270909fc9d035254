"""Measure the error of a matrix product on each hardware: the table of configs/hardware.

    python tests/tools/product_error.py [--chips 5] [--set KEY=VALUE ...] [SPEC ...]

512 x 512 Gaussian weights at 3 bits, Gaussian inputs: the relative L2 error of the product against the same quantised
weights multiplied exactly, nothing fitted afterwards. Calibrated on other inputs than it is measured on.
"""

from __future__ import annotations

import argparse
import statistics

import torch

from memsim.crossbar import encode
from memsim.crossbar.matrix import MappedMatrix
from memsim.hardware import HardwareSpec, apply_settings, load_hardware
from memsim.nn.collect import StatisticsCollector

WIDTH = 512
SPECS = ("paper", "physical", "two-phase", "write-verify", "incremental-reset", "multilevel", "best")


def product_error(spec: HardwareSpec, seed: int) -> float:
    """Relative L2 error of one chip's product with 1024 inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight, x = torch.randn(WIDTH, WIDTH, generator=generator), torch.randn(2048, WIDTH, generator=generator)
    collector = StatisticsCollector(generator, 64)
    collector.add(x[1024:])
    bits, rows = encode.bits_of(spec), spec.tile.rows
    scale = encode.fit_scale(weight, bits, spec.weights, rows)
    levels = encode.quantise(weight, scale, bits, rows)
    matrix = MappedMatrix.from_levels("layer", levels, scale, spec, seed, collector.result())
    exact = x[:1024].double() @ (matrix.levels.double() * matrix.scale.double()[:, None]).T
    return float((matrix(x[:1024]) - exact).norm() / exact.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specs", nargs="*", default=SPECS)
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--chips", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    print("| hardware | product error: mean | std | min | max |\n|---|---|---|---|---|")
    for name in arguments.specs:
        spec = apply_settings(load_hardware(name), [f"weights.bits={arguments.bits}", *arguments.set])
        errors = [product_error(spec, seed) for seed in range(arguments.chips)]
        cells = (statistics.fmean(errors), statistics.stdev(errors), min(errors), max(errors))
        print(f"| `{name}` | " + " | ".join(f"{100 * cell:.2f} %" for cell in cells) + " |")


if __name__ == "__main__":
    main()
