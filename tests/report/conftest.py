"""Results of the commands, for a tiny recogniser."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from memsim.cli import main

Written = tuple[dict[str, Any], str]
"""A result, and the page that shows it."""


def run(folder: Path, command: str, *arguments: str | Path) -> Written:
    """The JSON and the page of a command that is run in `folder`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MEMSIM_DATA", raising=False)
        outputs = ("--json", f"{command}.json", "--report", f"{command}.html", "--quiet")
        patch.setattr(sys, "argv", ["memsim", command, *map(str, arguments), *outputs])
        with pytest.raises(SystemExit) as exit_:
            main()
    assert not exit_.value.code
    return json.loads((folder / f"{command}.json").read_text()), (folder / f"{command}.html").read_text("utf-8")


@pytest.fixture(scope="session")
def evaluation(tiny_recogniser: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """With everything that eval can add, on hardware with many effects."""
    hardware = {
        "weights.bits": "3",
        "programming.relaxation": "0.02",
        "retention": "{age_seconds: 1.0e6}",
        "faults": "{stuck_lrs: 0.01}",
    }
    settings = [part for key, value in hardware.items() for part in ("--set", f"{key}={value}")]
    data = ("--data", "demo", "--limit", "3", "--trials", "3", "--seed", "7")
    folder = tmp_path_factory.mktemp("eval")
    return run(folder, "eval", tiny_recogniser, *data, *settings, "--ablate", "--sensitivity")


@pytest.fixture(scope="session")
def mapping(tiny_recogniser: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    return run(
        tmp_path_factory.mktemp("map"),
        "map",
        tiny_recogniser,
        "--hardware",
        "best",
        "--bits",
        "3",
        "--seed",
        "7",
        "-o",
        "m.safetensors",
    )
