"""Work that is divided among threads: torch's own where they can be used, else those of a pool."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from memsim.portable import kernels
from memsim.portable.kernels import in_threads


@pytest.fixture(params=["torch's", "pool"])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Three threads of either kind."""
    if request.param == "pool":
        monkeypatch.setattr(kernels, "_start_torch_threads", lambda: None)
    elif not kernels.has_torch_threads():
        pytest.skip("torch has no OpenMP here")
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 100])
def test_every_place_is_taken_once(n: int, threads: str) -> None:
    places: list[int] = []

    def part(first: int, last: int) -> int:
        places.extend(range(first, last))
        return last - first

    assert in_threads(part, n) == n
    assert sorted(places) == list(range(n))


def test_parts_run_at_the_same_time(threads: str) -> None:
    """Each waits for the two others."""
    barrier = threading.Barrier(3, timeout=30)
    assert in_threads(lambda first, last: barrier.wait(), 3) == 0 + 1 + 2


def test_an_error_in_any_part_is_raised(threads: str) -> None:
    for bad in range(3):

        def part(first: int, last: int, bad: int = bad) -> int:
            if first == bad:
                raise ValueError(f"part {first}")
            return 1

        with pytest.raises(ValueError, match=f"part {bad}"):
            in_threads(part, 3)
    assert in_threads(lambda first, last: 1, 3) == 3


def test_a_part_that_asks_for_threads_gets_its_own(threads: str) -> None:
    """From a pool whose threads all wait for one of them it would never get any."""

    def part(first: int, last: int) -> int:
        here = threading.get_ident()
        return in_threads(lambda first, last: int(threading.get_ident() == here) * (last - first), 10)

    assert in_threads(part, 3) == 30


@pytest.mark.skipif(not kernels.has_torch_threads(), reason="torch has no OpenMP here")
def test_no_thread_is_started_beside_those_of_torch() -> None:
    code = """
import os, torch
from memsim.portable.kernels import in_threads
torch.set_num_threads(4)
torch.randn(512, 512) @ torch.randn(512, 512)
before = set(os.listdir("/proc/self/task"))
for _ in range(3):
    in_threads(lambda first, last: 0, 4)
assert set(os.listdir("/proc/self/task")) == before
"""
    _run(code)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_process_has_threads() -> None:
    """It inherits the threads of its parent without their bodies, and waiting for one of them would never end."""
    code = """
import os, signal, threading, torch
from memsim.portable.kernels import in_threads
torch.set_num_threads(2)
def both():
    barrier = threading.Barrier(2, timeout=30)
    return in_threads(lambda first, last: barrier.wait(), 2)
assert both() == 1
child = os.fork()
if not child:
    signal.alarm(60)
    os._exit(7 * both())
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""
    _run(code)


def _run(code: str) -> None:
    root = str(Path(kernels.__file__).parents[2])
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env={**os.environ, "PYTHONPATH": root})
