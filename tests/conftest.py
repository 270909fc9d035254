"""Fixtures that more than one test file uses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def an4_root() -> Path:
    """The folder of AN4 in TED-LIUM's layout (../shared/data/an4, else $MEMSIM_DATA/tedlium2); skips without it."""
    candidates = [Path(__file__).resolve().parents[2] / "shared" / "data" / "an4"]
    if home := os.environ.get("MEMSIM_DATA"):
        candidates.append(Path(home) / "tedlium2")
    for root in candidates:
        if (
            root / "TEDLIUM_release2" / "dev" / "stm" / "fwxs.stm"
        ).is_file():  # an AN4 speaker: TED-LIUM itself has none
            return root
    pytest.skip(f"AN4 is not in {' or '.join(map(str, candidates))}")
