"""`python -m tests.benchmarks.child REPORT ARGUMENTS...`: run `memsim ARGUMENTS` and report its peak memory.

`load FILE` in place of a subcommand loads a mapped file as `memsim eval` does.
A process started by another one inherits the other's peak in what `resource` says; the kernel's status file is its own.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

STATUS = Path("/proc/self/status")


def status_gigabytes(key: str) -> float | None:
    """`VmHWM` (peak), `RssAnon` or another of the memory sizes of this process; None where the system does not say."""
    lines = STATUS.read_text().splitlines() if STATUS.exists() else []
    return next((int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith(f"{key}:")), None)


def load(path: str) -> dict[str, float | None]:
    """What loading a mapped file takes beyond the imports."""
    from memsim.networks.mapped_file import load_chip
    from memsim.storage.checkpoint import load_checkpoint

    before, started = status_gigabytes("VmRSS"), time.perf_counter()
    load_chip(load_checkpoint(path))
    taken, after = time.perf_counter() - started, status_gigabytes("VmRSS")
    return {"seconds": taken, "grown_gigabytes": None if before is None or after is None else after - before}


def main() -> None:
    report = Path(sys.argv.pop(1))
    found: dict[str, float | None] = {}
    try:
        if sys.argv[1] == "load":
            found = load(sys.argv[2])
        else:
            from memsim.cli import main as memsim

            memsim()
    finally:
        report.write_text(json.dumps(found | {"peak_gigabytes": status_gigabytes("VmHWM")}))


if __name__ == "__main__":
    main()
