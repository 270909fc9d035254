"""Runs of the command line in a separate process that is killed or whose disk is full."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

STEPS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate")
"""What Python's audit hooks call the steps in which files change."""
PRELOADED = (
    "memsim.cli",
    "memsim.training.initialise",
    "memsim.evaluation.run",
    "memsim.training.loop",
    "memsim.evaluation.network_cost",
)
"""What a server imports once, from which the processes are forked."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong: nothing, unless it is said."""

    kill_at_step: int = 0
    """As by `kill -9`, before the step of this number that changes a file in the folder; the first is 1."""
    kill_after_seconds: float | None = None
    most_bytes: int | None = None
    """That a file may have: beyond, writing fails as on a full disk."""
    stdout: str | None = None
    """A file that standard output goes to in place of `Ran.said`."""


class Ran(NamedTuple):
    status: int
    """As of subprocess: negative for the signal that ended it."""
    steps: int
    """In which files in the folder were changed; of a process that was killed, none."""
    said: str


def run(folder: Path, *arguments: str, fault: Fault = Fault()) -> Ran:
    """`memsim ARGUMENTS` in `folder`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    with tempfile.NamedTemporaryFile("r") as log:
        process = context.Process(target=_child, args=(folder, log.name, arguments, fault))
        process.start()
        process.join(fault.kill_after_seconds)
        if process.is_alive():
            process.kill()
            process.join()
        said, _, steps = log.read().partition("steps=")
    assert process.exitcode is not None
    return Ran(process.exitcode, int(steps or 0), said)


def _child(folder: Path, log: str, arguments: tuple[str, ...], fault: Fault) -> None:
    import torch

    from memsim.cli import main

    torch.set_num_threads(1)
    os.chdir(folder)
    said = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(said if fault.stdout is None else os.open(fault.stdout, os.O_WRONLY), 1)
    os.dup2(said, 2)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    if fault.most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault.most_bytes, fault.most_bytes))
    steps = 0

    def count(event: str, what: tuple[Any, ...]) -> None:
        nonlocal steps
        if event not in STEPS or not isinstance(what[0], str | os.PathLike):
            return
        if event == "open" and not (isinstance(what[2], int) and what[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if folder not in Path(os.path.abspath(what[0])).parents:  # noqa: PTH100 - does not look at the disk
            return
        steps += 1
        if steps == fault.kill_at_step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    sys.argv = ["memsim", *arguments]
    try:
        main()
    finally:
        os.write(said, f"steps={steps}".encode())
