"""`--cost` of map and eval."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memsim.chip.architecture import EMBEDDED, _carried, embedded_chip, load_chip
from memsim.networks.mapped_file import stored_spec
from memsim.storage.checkpoint import load_checkpoint, save_checkpoint


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
    assert "no whole chip beside a digital one: that counts the operations of a network while it runs" in done.said
    cost = json.loads(Path("map.json").read_text())["cost"]
    assert cost["per"] == "vector"
    assert cost["joules"]["cells"] is None
    assert cost["joules"]["adc"] > 0
    assert cost["programming"]["joules"] > 0


@pytest.mark.parametrize(("kind", "unit"), [("bert", "an example"), ("wav2vec2", "a second of audio")])
def test_a_folder_that_is_no_recogniser(memsim, kind: str, unit: str) -> None:
    """Its network runs on a made-up text or on noise, and has a whole chip."""
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    if kind == "bert":
        model = transformers.BertModel(transformers.BertConfig(vocab_size=50, max_position_embeddings=40, **small))
    else:
        own = {"conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
        model = transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**small, **own))
    model.save_pretrained(kind)
    done = memsim("map", kind, "--cost", "--json", "map.json")
    assert done.status == 0, done.err
    assert f"whole chip, {unit}" in done.said
    assert "the network is no speech recogniser, so memsim has no data to run it on" in done.said
    cost = json.loads(Path("map.json").read_text())["cost"]
    assert ("examples" in cost["chip"]) == (cost["per"] == "example")
    assert cost["chip"]["placement"]["arrays"] == cost["arrays"]
    assert cost["chip"]["joules_by_circuit"]["dac"] == pytest.approx(cost["joules"]["dac"], rel=1e-6)
    if kind == "bert":
        assert "an example: of the batch {input_ids: int64 [1, 38]}" in done.said
        assert {layer["vectors"] for layer in cost["layers"]} == {38, 1}  # the pooler reads the first token
    planned = json.loads(memsim("map", kind, "--cost", "--dry-run", "--json", "-").out)["cost"]["chip"]
    assert planned["schedule"] == cost["chip"]["schedule"]


def test_the_layers_that_take_most_unless_verbose(memsim, monkeypatch, tiny_recogniser: Path) -> None:
    monkeypatch.setattr("memsim.report.tables.WORST_LAYERS", 3)
    command = ("map", tiny_recogniser, "--cost", "-o", "m.safetensors", "--force")
    assert "7 more layers with --verbose" in memsim(*command).said
    assert "more layers with" not in memsim(*command, "--verbose").said


def test_a_dry_run_has_the_cost_of_all_but_cells_and_programming(memsim, tiny_recogniser: Path) -> None:
    command = ("map", tiny_recogniser, "--bits", "3", "--cost")
    done = memsim(*command, "--dry-run", "--json", "planned.json")
    assert done.status == 0, done.err
    assert "cells: unknown, as their currents need programmed cells" in done.said
    assert "the analog chip without its cells, whose energy is unknown, takes" in done.said
    assert memsim(*command, "-o", "m.safetensors", "--json", "programmed.json").status == 0
    planned, programmed = (json.loads(Path(f"{name}.json").read_text())["cost"] for name in ("planned", "programmed"))
    assert planned["joules"]["cells"] is None
    assert planned["programming"]["joules"] is None
    assert programmed["joules"]["cells"] > 0
    for circuit in ("dac", "adc"):
        assert planned["joules"][circuit] == programmed["joules"][circuit]
    without, whole = (cost["chip"]["joules_by_circuit"] for cost in (planned, programmed))
    assert without == whole | {"cells": 0.0}


def test_without_the_flag_nothing_is_said_of_it(memsim, tiny_recogniser: Path) -> None:
    done = memsim("eval", tiny_recogniser, "--bits", "3", "--data", "demo", "--limit", "2", "--json", "eval.json")
    assert done.status == 0, done.err
    assert "TOPS" not in done.said
    assert "cost" not in json.loads(Path("eval.json").read_text())


def test_the_whole_chip(memsim, tiny_recogniser: Path) -> None:
    command = ("map", tiny_recogniser, "--bits", "3", "--cost", "-o", "m.safetensors", "--force")
    done = memsim(*command, "--json", "map.json", "--report", "map.html")
    assert done.status == 0, done.err
    for said in (
        "whole chip, a second of audio",
        "times the energy of int8 digital",
        "of isaac (32 nm)",
        "bottleneck:",
    ):
        assert said in done.said
    page = Path("map.html").read_text()
    assert "Whole chip" in page
    assert "floor plan" in page
    cost = json.loads(Path("map.json").read_text())["cost"]
    chip = cost["chip"]
    assert chip["joules"]["nominal"] == pytest.approx(sum(chip["joules_by_circuit"].values()))
    assert chip["joules"]["nominal"] == pytest.approx(sum(chip["layers"].values()))
    assert chip["joules_by_circuit"]["dac"] == pytest.approx(cost["joules"]["dac"], rel=1e-6)  # the same prices
    assert chip["joules_by_circuit"]["cells"] == pytest.approx(cost["joules"]["cells"], rel=1e-6)
    assert chip["placement"]["arrays"] == cost["arrays"]
    other = memsim(*command, "--set", "chip=pcm-64-core", "--json", "-")
    assert json.loads(other.out)["cost"]["chip"]["name"] == "pcm-64-core"


def test_map_and_eval_have_the_same_chip(memsim, tiny_recogniser: Path) -> None:
    hardware = ("--bits", "3", "--cost")
    memsim("map", tiny_recogniser, *hardware, "-o", "m.safetensors", "--json", "map.json")
    for name in (str(tiny_recogniser), "m.safetensors"):  # in memory, and from the mapped file
        own = hardware if name == str(tiny_recogniser) else ("--cost",)
        done = memsim("eval", name, *own, "--data", "demo", "--limit", "2", "--json", "eval.json", "--force")
        assert done.status == 0, done.err
        mapped, evaluated = (json.loads(Path(n).read_text())["cost"]["chip"] for n in ("map.json", "eval.json"))
        assert evaluated["macs"] == pytest.approx(mapped["macs"], rel=1e-6)
        assert evaluated["placement"]["layers"] == mapped["placement"]["layers"]
        for circuit, joules in mapped["joules_by_circuit"].items():
            tolerance = 0.2 if circuit == "cells" else 0.01
            assert evaluated["joules_by_circuit"][circuit] == pytest.approx(joules, rel=tolerance), circuit


def test_a_sweep_has_the_cost_of_every_point(memsim, tiny_recogniser: Path) -> None:
    swept = ("--bits", "3", "--data", "demo", "--limit", "2", "--set", "adc.bits=6,8", "--cost")
    done = memsim("eval", tiny_recogniser, *swept, "--json", "-", "--figure", "front.svg", "--report", "page.html")
    assert done.status == 0, done.err
    few, many = (point["cost"]["chip"] for point in json.loads(done.out)["points"])
    assert few["joules_by_circuit"]["adc"] == pytest.approx(many["joules_by_circuit"]["adc"] / 4)
    assert few["joules_by_circuit"]["dac"] == many["joules_by_circuit"]["dac"]
    assert "J for a second of audio, whole chip" in Path("front.svg").read_text()
    assert "times int8 digital" in Path("page.html").read_text()
    shown = memsim("eval", tiny_recogniser, *swept)
    assert "int8" in shown.said


def test_a_chip_that_is_not_there(memsim, tiny_recogniser: Path) -> None:
    for command in (("map", tiny_recogniser, "-o", "m.safetensors"), ("eval", tiny_recogniser, "--data", "demo")):
        done = memsim(*command, "--cost", "--set", "chip=isac")
        assert done.status == 2
        assert "no shipped chips config of that name (nearest: isaac;" in done.said
    assert not Path("m.safetensors").exists()


def test_a_mapped_file_carries_a_chip_of_ones_own(memsim, tiny_recogniser: Path) -> None:
    """Its file may be gone or changed; a spec may name it, too; and it can be carried on."""
    Path("mine.yaml").write_text("base: isaac\ncores: 7\n")
    Path("spec.yaml").write_text("base: physical\nchip: mine.yaml\n")
    ways = {"set.safetensors": ("--set", "chip=mine.yaml"), "spec.safetensors": ("--hardware", "spec.yaml")}
    for out, way in ways.items():
        done = memsim("map", tiny_recogniser, "--bits", "3", "-o", out, *way)
        assert done.status == 0, done.err
    Path("mine.yaml").unlink()
    _carried.clear()  # as in a new process
    for out in ways:
        done = memsim("eval", out, "--data", "demo", "--limit", "2", "--cost", "--set", "adc.bits=6", "--json", "-")
        assert done.status == 0, done.err
        own = json.loads(done.out)["cost"]["chip"]
        assert (own["name"], own["spec"]["cores"]) == ("mine", 7)
    name = stored_spec(load_checkpoint("set.safetensors"))[0].chip
    assert name is not None
    assert embedded_chip(name)[0] == name
    assert load_chip(name).cores == 7


def test_a_shipped_chip_goes_by_its_name(memsim, tiny_recogniser: Path) -> None:
    assert memsim("map", tiny_recogniser, "--set", "chip=pcm-64-core", "-o", "m.safetensors").status == 0
    checkpoint = load_checkpoint("m.safetensors")
    assert stored_spec(checkpoint)[0].chip == "pcm-64-core"
    assert EMBEDDED not in checkpoint.metadata


@pytest.mark.parametrize("damage", ["{", '{"chip": "mine@0", "name": "mine", "architecture": "{}"}', "cores"])
def test_a_damaged_chip_of_a_mapped_file(memsim, tiny_recogniser: Path, damage: str) -> None:
    Path("mine.yaml").write_text("base: isaac\ncores: 7\n")
    assert memsim("map", tiny_recogniser, "--set", "chip=mine.yaml", "-o", "m.safetensors").status == 0
    checkpoint = load_checkpoint("m.safetensors")
    stored = checkpoint.metadata[EMBEDDED]
    changed = stored.replace('cores\\": 7', 'cores\\": 8') if damage == "cores" else damage
    assert changed != stored
    save_checkpoint("m.safetensors", checkpoint.tensors(), {**checkpoint.metadata, EMBEDDED: changed})
    done = memsim("eval", "m.safetensors", "--data", "demo", "--limit", "2")
    assert done.status == 2
    assert done.said == "memsim: m.safetensors: its chip is damaged; map the checkpoint again"


def test_a_chip_changes_no_other_result(memsim, tiny_recogniser: Path) -> None:
    results = []
    for chip in ((), ("--set", "chip=pcm-64-core")):
        done = memsim("eval", tiny_recogniser, "--bits", "3", *chip, "--data", "demo", "--limit", "2", "--json", "-")
        results.append(json.loads(done.out)["mapped"]["trials"])
    assert results[0] == results[1]
