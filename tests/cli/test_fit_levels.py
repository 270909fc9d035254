"""`memsim fit-device` with tables of levels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import yaml

from tests.tools.example_levels import summary, write


def test_the_command_says_which_kind_of_table_it_has(memsim: Callable, tmp_path: Path) -> None:
    write(summary(40, 1), tmp_path / "levels.csv")
    done = memsim("fit-device", "levels.csv", "-o", "mine.yaml", "--report", "report", "--json", "mine.json")
    assert done.status == 0, done.err
    assert "mine: a device of levels, from levels.csv: a summary of levels (target, mean, standard dev" in done.said
    assert "extrapolated or not measured: " in done.out
    assert json.loads(Path("mine.json").read_text())["table"]["kind"] == "summary"
    assert yaml.safe_load(Path("mine.yaml").read_text())["kind"] == "levels"
    assert Path("report/report.html").exists()
    done = memsim("fit-device", "levels.csv", "--inspect")
    assert "16 targets" in done.said


def test_other_files_than_yaml_are_refused(memsim: Callable, tmp_path: Path) -> None:
    write(summary(40, 1), tmp_path / "levels.csv")
    done = memsim("fit-device", "levels.csv", "-o", "mine.safetensors")
    assert done.status == 2
    assert "a table of levels makes a device file in YAML; name it mine.yaml" in done.err
    assert not Path("mine.safetensors").exists()
