"""Every reader either accepts input or refuses it with a message; nothing else happens.

The same readers are fuzzed for longer, and guided by coverage, by ``python -m tests.fuzz`` (see there).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memsim.errors import InputError
from tests.fuzz.mutations import mutated
from tests.fuzz.readers import READERS

LINES_A_PROBLEM = ("hardware-yaml", "model-yaml", "recipe-yaml", "mapping-yaml", "chip-yaml", "device-yaml", "setting")
"""The readers that report all problems at once, a line each."""


def read(name: str, document: bytes) -> None:
    """Raises whatever is no InputError, and AssertionError for an InputError that is no line for people."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            READERS[name].read(document, Path(folder))
        except InputError as error:
            said = str(error)
            assert said.strip()
            assert "\n" not in said or name in LINES_A_PROBLEM
            assert max(map(len, said.splitlines())) < 3000


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=12, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
@given(random=st.randoms(use_true_random=False))
def test_damaged_files(name: str, random: Random) -> None:
    seeds = READERS[name].seeds()
    read(name, mutated(seeds[random.randrange(len(seeds))], random))


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("document", [b"", b"\0" * 100, b"\xff" * 9, b"\n", b"{}", b"[]", b"null", b"[" * 100_000])
def test_files_of_something_else(name: str, document: bytes) -> None:
    read(name, document)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_guided_by_coverage(name: str, tmp_path: Path) -> None:
    """A minute each. A crash of the interpreter, a minute without an answer and 4 GB of memory are findings, too."""
    pytest.importorskip("atheris")
    command = [sys.executable, "-m", "tests.fuzz", name, "--seconds", "60", "--findings", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
