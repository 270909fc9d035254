"""Mutations of the core, one at a time: the tests of each part must detect them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Fault:
    """In `file`, `right` (found once) becomes `wrong`; a test of `tests` must fail."""

    file: str
    right: str
    wrong: str
    tests: str


FAULTS = {
    "plane weights doubled": Fault(
        "crossbar/encode.py", "return (2.0**cell_bits) **", "return 2 * (2.0**cell_bits) **", "crossbar/test_encode.py"
    ),
    "sign of a weight lost": Fault(
        "crossbar/encode.py", "(digit * levels.sign()).to(", "(digit * 1).to(", "crossbar/test_encode.py"
    ),
    "kernel transposed": Fault(
        "nn/sources.py", "[slice(*self.rows)]).flatten(1)", "[slice(*self.rows)]).transpose(1, -1).flatten(1)",
        "nn/test_convolution.py",
    ),
    "kernel of transposed convolutions not transposed": Fault(
        "nn/sources.py", "blocks.flatten(2).transpose(1, 2).flatten(0, 1)", "blocks.flatten(2).flatten(0, 1)",
        "nn/test_convolution.py",
    ),
    "polarity of the second phase": Fault(
        "crossbar/drive.py", "significance = (sign or 1) *", "significance = abs(sign or 1) *", "crossbar/test_drive.py"
    ),
    "DAC truncates": Fault(
        "crossbar/convert.py", ".round_().clamp_(-largest, largest)\n\n\ndef dac_fractions",
        ".trunc_().clamp_(-largest, largest)\n\n\ndef dac_fractions", "crossbar/test_convert.py",
    ),
    "DAC of 256 levels": Fault(
        "crossbar/convert.py", 'levels."""\n    return (1 << (bits - 1)) - 1', 'levels."""\n    return 1 << (bits - 1)',
        "crossbar/test_convert.py",
    ),
    "ADC a bit short": Fault(
        "crossbar/convert.py", "largest = (1 << (config.bits - 1)) - 1", "largest = (1 << (config.bits - 2)) - 1",
        "crossbar/test_convert.py",
    ),
    "ADC wraps instead of clipping": Fault(
        "crossbar/compiled.py", "value = min(max(value, -full_scale), full_scale)",
        "value = value if abs(value) <= full_scale else -value", "crossbar/test_read.py",
    ),
    "noise shared across the batch": Fault(
        "crossbar/compiled.py", "uint32(first_frame + n), uint32(tile)", "uint32(first_frame), uint32(tile)",
        "crossbar/test_read_noise.py",
    ),
    "noise shared by tiles": Fault(
        "crossbar/compiled.py", "uint32(first_frame + n), uint32(tile)", "uint32(first_frame + n), uint32(0)",
        "crossbar/test_read_noise.py",
    ),
    "noise variance not scaled as a square": Fault(
        "crossbar/read.py", ".flatten(2) * codes_per_signal.square()", ".flatten(2) * codes_per_signal",
        "crossbar/test_read.py",
    ),
    "UR aliased": Fault(
        "device/cycles/cells.py", "start_volts, start_r = self.reset_volts.index_select(0, cells)",
        "start_volts, start_r = self.features[UR].index_select(0, cells)", "device/cycles/test_cells.py",
    ),
    "cells programmed in reverse": Fault(
        "crossbar/program.py", "= tiling.digits(levels, part),", "= tiling.digits(levels, part).flip(0),",
        "crossbar/test_program.py",
    ),
    "relaxation in proportion to the state": Fault(
        "crossbar/compiled_cells.py", "after[j] = (r[j] - open_state) *", "after[j] = r[j] *",
        "crossbar/test_ageing.py",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository, to plant faults in."""
    folder = tmp_path_factory.mktemp("mutated")
    for name in ("memsim", "tests", "configs"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    return folder


def run(copy: Path, tests: list[str]) -> subprocess.CompletedProcess[str]:
    """The tests of the copy, on the copy's memsim."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider"]
    command += [f"tests/{name}" for name in tests]
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)


def test_without_a_fault_they_pass(copy: Path) -> None:
    done = run(copy, sorted({fault.tests for fault in FAULTS.values()}))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", FAULTS)
def test_the_fault_is_seen(copy: Path, name: str) -> None:
    fault = FAULTS[name]
    source = copy / "memsim" / fault.file
    right = source.read_text()
    assert right.count(fault.right) == 1, "the code has changed: plant this fault anew"
    source.write_text(right.replace(fault.right, fault.wrong))
    try:
        done = run(copy, [fault.tests])
    finally:
        source.write_text(right)
    assert done.returncode == 1, f"nobody saw it:\n{done.stdout}"
