"""torchaudio of another build of torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_a_build_for_another_torch_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text("raise OSError('Could not load this library: _torchaudio.so')")
    command = [sys.executable, "-m", "memsim", "map", "demo", "--dry-run"]
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("memsim: torchaudio ")
    assert done.stderr.endswith("; install both from the same place, such as PyTorch's index of CPU wheels\n")
    assert done.stderr.count("\n") == 1
