"""Commands on a system without what only POSIX or Linux has, as Windows and macOS are, played on this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

import memsim

REPOSITORY = Path(memsim.__file__).resolve().parents[1]

ELSEWHERE = """
import ctypes, multiprocessing, os, signal, sys  # the others ask Linux themselves, and come first
import matplotlib.pyplot, numba, numpy, pyarrow, scipy.optimize, sklearn.mixture, torch, torchaudio
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None
for name in ("fork", "O_DIRECTORY", "O_NOFOLLOW", "sched_getaffinity", "getuid", "uname", "statvfs", "killpg"):
    delattr(os, name)
for name in ("SIGHUP", "SIGUSR1", "SIGKILL"):
    delattr(signal, name)
fsync = os.fsync
def commit(descriptor):  # Windows commits only what is open for writing
    os.write(descriptor, b"")
    fsync(descriptor)
os.fsync = commit
def no_library(*names):
    raise OSError
ctypes.CDLL = no_library
from memsim.cli import main
main()
"""


def run(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_commands_run_without_what_only_linux_has(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file({"layer.weight": torch.randn(12, 30)}, tmp_path / "small.safetensors")
    assert "wrote small.mapped.safetensors" in run(tmp_path, "map", "small.safetensors", "--report", "page.html")
    evaluation = ("eval", "demo", "--data", "demo", "--limit", "1", "--hardware", "ideal")
    run(tmp_path, *evaluation, "--results", "r.jsonl", "--json", "r.json")
    assert (tmp_path / "r.json").is_file()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
