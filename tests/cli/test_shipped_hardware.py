"""The commands on every shipped spec."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memsim import load_hardware
from memsim.config.resources import configs_root

SHIPPED = sorted(path.stem for path in (configs_root() / "hardware").glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_the_commands_run_on_it(memsim, tiny_recogniser: Path, name: str) -> None:
    hardware = ("--hardware", name, "--bits", "3")
    mapped = memsim("map", tiny_recogniser, *hardware, "-o", "mapped.safetensors", "--budget", "--json", "map.json")
    assert mapped.status == 0, mapped.err
    budget = json.loads(Path("map.json").read_text())["budget"]
    assert [entry["effect"] for entry in budget["effects"]] == list(load_hardware(name).steps())
    assert 0.05 < budget["error"] < 0.9
    evaluated = memsim("eval", "mapped.safetensors", "--data", "demo", "--limit", "2", "--cost", "--json", "-")
    assert evaluated.status == 0, evaluated.err
    result = json.loads(evaluated.out)
    assert result["hardware"]["name"] == name
    assert result["cost"]["arrays"] > 0
