"""Without numba, torch operations take the place of the kernels: slower, with the same bits, and said once."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

import memsim
from memsim.portable import kernels
from memsim.portable.elementwise import fused
from memsim.post_training.feedback import feedback
from memsim.post_training.read_back import CellOutcomes
from memsim.post_training.refinement import descend
from memsim.post_training.scales import weighted_scale

REPOSITORY = Path(memsim.__file__).resolve().parents[1]
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**60), max_value=2.0**60)


@given(FLOATS, FLOATS, FLOATS)
@example(1 + 2**-12, 1 + 2**-12, 2.0**-60)  # a tie of float32, but for the last bits of the sum
@example(1 + 2**-12, 1 + 2**-12, -(2.0**-60))
@example(1.5, 2.0**-20, -1.5 * 2.0**-20)
def test_a_fused_product_is_rounded_once(a: float, b: float, c: float) -> None:
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    found = np.float32(fused(*(torch.tensor(x, dtype=torch.float32) for x in (a, b, c))).item())
    error = abs(Fraction(float(found)) - exact)
    for other in (np.nextafter(found, np.float32(-np.inf)), np.nextafter(found, np.float32(np.inf))):
        beside = abs(Fraction(float(other)) - exact)
        assert error < beside or (error == beside and found.view(np.int32) % 2 == 0)


def test_a_fused_product_of_infinities_is_theirs() -> None:
    infinity = torch.tensor([torch.inf, torch.inf, 1.0, torch.nan])
    assert fused(infinity, torch.ones(4), torch.tensor([1.0, -torch.inf, torch.inf, 0.0])).tolist()[::2] == [
        torch.inf,
        torch.inf,
    ]


def without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "numba", None)
    monkeypatch.setattr(kernels, "warn_if_slow", lambda: None)


CHIPS: list[tuple[str, dict[str, Any]]] = [
    ("physical", {}),
    ("paper", {}),
    ("best", {}),
    ("write-verify", {}),
    ("multilevel", {}),
    ("two-phase", {"programming.relaxation": 0.02}),
    (
        "physical",
        {"tile.rows": 16, "weights.scale": "per_tile", "adc.nonlinearity_codes": 0.5, "adc.offset_error_codes": 0.5},
    ),
    ("physical", {"cell": "pcm-nandakumar", "programming": {"scheme": "write_verify"}, "read_at_seconds": 3600}),
    ("physical", {"read_disturb": "settle", "faults": {"stuck_lrs": 0.01}}),
]


@pytest.mark.parametrize(("hardware", "settings"), CHIPS)
def test_chips_and_reads_have_the_same_bits(
    hardware: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = memsim.load_hardware(hardware).with_settings(settings)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 5))
    batches = [torch.randn(70, 40), torch.randn(3, 40)]

    def outputs() -> list[Tensor]:
        chip = memsim.map_model(model, spec, bits=4, seed=0, calibration=batches)
        with torch.no_grad():
            read = []
            for index, batch in enumerate(batches):
                with chip.mapping.batch(f"batch {index}"):
                    read.append(chip(batch))
            return read

    expected = outputs()
    without_numba(monkeypatch)
    assert all(map(torch.equal, outputs(), expected))


def test_fitted_levels_have_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weight, inputs = torch.randn(7, 150), torch.randn(300, 150) @ torch.randn(150, 150)
    inputs[:, 3] = 0
    moments = inputs.T.double() @ inputs.double()
    step = weight.abs().amax(dim=1, keepdim=True).expand(7, 150) / 7
    cells = CellOutcomes(torch.rand(2, 3, 2, 1, 150, 7), torch.tensor([1.0, 2.0, 4.0]), 1)

    def levels() -> list[Tensor]:
        found, _ = feedback(weight, step, moments, 7, 0.01)
        read_back, _ = feedback(weight, step, moments, 7, 0.01, cells=cells)
        better, changed = descend(weight, found, step, moments, 7)
        scale = weighted_scale(weight.T, moments.diagonal(), 7)
        return [found, read_back, better, torch.tensor(changed), scale]

    expected = levels()
    assert expected[3] > 0
    without_numba(monkeypatch)
    assert all(map(torch.equal, levels(), expected))


def run(tmp_path: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    hidden = tmp_path / "hidden"
    hidden.mkdir(exist_ok=True)
    own = {"PYTHONPATH": os.pathsep.join([str(hidden), str(REPOSITORY)]), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(
        [sys.executable, "-m", "memsim", *command],
        cwd=tmp_path,
        env=os.environ | own,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def small_checkpoint(tmp_path: Path) -> Path:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file({"layer.weight": torch.randn(12, 30)}, tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


def test_commands_run_without_numba_and_say_so_once(tmp_path: Path) -> None:
    small_checkpoint(tmp_path)
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "numba.py").write_text("raise ImportError('hidden')\n")
    done = run(tmp_path, "map", "small.safetensors", "-o", "slow.safetensors")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("numba is not installed") == 1
    done = run(tmp_path, "map", "small.safetensors", "-o", "quiet.safetensors", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "hidden" / "numba.py").unlink()
    done = run(tmp_path, "map", "small.safetensors", "-o", "fast.safetensors")
    assert "numba" not in done.stderr
    assert (tmp_path / "slow.safetensors").read_bytes() == (tmp_path / "fast.safetensors").read_bytes()


def test_processes_that_share_the_work_leave_the_warning_to_the_first(tmp_path: Path) -> None:
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "numba.py").write_text("raise ImportError('hidden')\n")
    digital = 'digital=["output*", "frontend.*", "blocks.[1-5].*", "*.feed_forward_*", "*.pointwise_*", "*.depthwise"]'
    done = run(tmp_path, "eval", "demo", "--data", "demo", "--limit", "2", "--jobs", "2", "--set", digital)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("numba is not installed") == 1


def test_a_full_disk_for_compiled_code_is_said_once(tmp_path: Path) -> None:
    """numba compiles and cannot write: here a file size of 0 stands for the full disk."""
    pytest.importorskip("resource")
    code = """
import resource
import memsim, torch
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
chip = memsim.map_model(torch.nn.Linear(8, 8), "ideal", bits=3, calibration=[torch.ones(1, 8)])
print(chip(torch.ones(1, 8)).shape)
"""
    (tmp_path / "cache").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "NUMBA_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("compiled code cannot be kept on disk") == 1
