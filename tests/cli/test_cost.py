"""`--cost` of map and eval."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def test_map_and_eval_agree(memsim, tiny_recogniser: Path) -> None:
    hardware = ("--bits", "3", "--cost")
    mapped = memsim("map", tiny_recogniser, *hardware, "-o", "m.safetensors", "--json", "map.json")
    evaluated = memsim("eval", tiny_recogniser, *hardware, "--data", "demo", "--limit", "3", "--json", "eval.json")
    for done in (mapped, evaluated):
        assert done.status == 0, done.err
        for said in ("estimate for a second of audio", "ADC", "TOPS/W of reading", "not counted: digital circuits"):
            assert said in done.said
    assert "currents at the inputs stored in the checkpoint" in mapped.said
    assert "s of speech, read one utterance at a time" in evaluated.said
    estimate, measured = (json.loads(Path(name).read_text())["cost"] for name in ("map.json", "eval.json"))
    assert estimate.keys() == measured.keys()
    assert estimate["joules"]["total"] == pytest.approx(measured["joules"]["total"], rel=0.15)
    assert estimate["programming"]["joules"] == measured["programming"]["joules"]
    assert estimate["square_millimetres"] == measured["square_millimetres"]


def test_prices_are_settings(memsim, tiny_recogniser: Path) -> None:
    def joules(*settings: str) -> dict[str, float]:
        done = memsim(
            "map", tiny_recogniser, "--bits", "3", "--cost", "-o", "m.safetensors", "--json", "-", "--force", *settings
        )
        assert done.status == 0, done.err
        return json.loads(done.out)["cost"]["joules"]

    plain, dearer = joules(), joules("--set", "cost.adc.joules_per_step=3e-14")
    assert dearer["adc"] == pytest.approx(3 * plain["adc"])
    assert dearer["cells"] == plain["cells"]


def test_a_foreign_network(memsim, foreign: Path) -> None:
    done = memsim("map", foreign, "--cost", "--json", "map.json")
    assert done.status == 0, done.err
    assert "estimate for one input vector of each layer" in done.said
    assert "unknown" in done.said
    cost = json.loads(Path("map.json").read_text())["cost"]
    assert cost["per"] == "vector"
    assert cost["joules"]["cells"] is None
    assert cost["joules"]["adc"] > 0
    assert cost["programming"]["joules"] > 0


def test_the_layers_that_take_most_unless_verbose(memsim, monkeypatch, tiny_recogniser: Path) -> None:
    monkeypatch.setattr("memsim.report.tables.WORST_LAYERS", 3)
    command = ("map", tiny_recogniser, "--cost", "-o", "m.safetensors", "--force")
    assert "7 more layers with --verbose" in memsim(*command).said
    assert "more layers with" not in memsim(*command, "--verbose").said


def test_nothing_is_programmed_in_a_dry_run(memsim, tiny_recogniser: Path) -> None:
    done = memsim("map", tiny_recogniser, "--cost", "--dry-run")
    assert done.status == 2
    assert "--cost --dry-run: the cost needs programmed arrays; leave out one of the two" in done.said


def test_without_the_flag_nothing_is_said_of_it(memsim, tiny_recogniser: Path) -> None:
    done = memsim("eval", tiny_recogniser, "--bits", "3", "--data", "demo", "--limit", "2", "--json", "eval.json")
    assert done.status == 0, done.err
    assert "TOPS" not in done.said
    assert "cost" not in json.loads(Path("eval.json").read_text())
