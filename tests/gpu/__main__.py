"""`make gpu`: check a GPU against the CPU and print its speed, all in at most five minutes.

    python -m tests.gpu [--seconds 300] [--json FILE]

It runs in whatever Python has torch with CUDA; wheels.txt beside this file names what else is needed. Checks are the
tests marked `gpu`; tables are those of `make bench` on the GPU, as ratios to nn.Linear there. What does not fit in the
time is named as left out. The exit status is 1 where a check failed, and 2 where something is missing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

WHEELS = Path(__file__).with_name("wheels.txt")
REPOSITORY = Path(__file__).resolve().parents[2]
CHECKS = ("tests/gpu", "tests/crossbar/test_fused.py")
CHECK_SHARE = 0.6
"""The part of the time that the checks may take."""
LEAST_SECONDS = 10
"""The time below which no further table is begun."""


def missing_wheels() -> list[str]:
    """Return the packages of wheels.txt, with their versions, that are not installed."""
    missing = []
    for line in WHEELS.read_text().splitlines():
        name = line.partition("==")[0]
        if name and not name.startswith("#"):
            try:
                version(name)
            except PackageNotFoundError:
                missing.append(line)
    return missing


def run_checks(seconds: float) -> bool:
    """Run the tests that need a GPU, for at most `seconds`; return whether all passed."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--durations=5", "-p", "no:cacheprovider", *CHECKS]
    try:
        return subprocess.run(command, cwd=REPOSITORY, timeout=seconds, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        print(f"FAILED: the checks were stopped after {seconds:.0f} s", flush=True)
        return False


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description="memsim on a GPU: checks and speed")
    parser.add_argument("--seconds", type=float, default=300, help="time for everything (default: 300)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows of the tables there")
    arguments = parser.parse_args()
    end = time.monotonic() + arguments.seconds

    try:
        import torch
    except ImportError:
        print("make gpu: this Python has no torch; name one that has: make gpu GPU_PYTHON=/path/to/python3")
        return 2
    if not torch.cuda.is_available():
        print("make gpu: torch sees no CUDA device here; nothing was checked")
        return 2
    if missing := missing_wheels():
        print(f"make gpu: missing beside torch: {' '.join(missing)}; tests/gpu/wheels.txt says how to bring them")
        return 2
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "none"
    name = torch.cuda.get_device_name()
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}, Triton {triton}, Python {sys.version.split()[0]}"
    print(f"{name}; {versions}")

    passed = run_checks(CHECK_SHARE * arguments.seconds)

    from rich.console import Console

    from tests.benchmarks.__main__ import shown
    from tests.benchmarks.cuda import TABLES

    console, results = Console(width=120), {}
    for title, table in TABLES.items():
        rows = results[title] = []
        if end - time.monotonic() < LEAST_SECONDS:
            print(f"left out, as the time is over: {title}")
            continue
        for row in table.rows():
            rows.append(row)
            print(json.dumps(row), flush=True)
            if end - time.monotonic() < LEAST_SECONDS:
                print(f"cut short, as the time is over: {title}")
                break
        console.print(shown(table, rows))
    if arguments.json:
        arguments.json.write_text(json.dumps({"device": name, "passed": passed, "tables": results}) + "\n")
    print("all checks passed" if passed else "FAILED: see the checks above")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
