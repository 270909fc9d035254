"""`memsim.train` in Python: cases that the tests of the command line do not reach."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import memsim
from memsim.asr.architectures import ARCHITECTURES
from memsim.errors import InputError, Stopped
from memsim.listener import Listener
from memsim.rng import seed_global_generators
from memsim.storage.checkpoint import Checkpoint, load_checkpoint
from memsim.training.result import TrainingResult
from tests.cli.speech import TINY_MODEL, few_utterances

RECIPE: dict[str, Any] = {
    "model": "model.yaml",
    "epochs": 2,
    "batch_seconds": 10.0,
    "learning_rate": [[0, 1e-3], [1, 1e-3]],
}
FEW_BITS = RECIPE | {"name": "few-bits", "quantisation": {"hardware": {"spread_ramp": 0.5}, "teacher": {"weight": 0.5}}}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.yaml").write_text(TINY_MODEL)
    few_utterances(tmp_path, 4)


def train(**arguments: Any) -> TrainingResult:
    usual = {"data": ["few.tsv"], "dev": "few.tsv", "bits": "float", "config": RECIPE, "out": "out.safetensors"}
    return memsim.train(**usual | arguments)


class Kept(Listener):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.fractions: list[float] = []

    def progress(self, name: str, done: float, detail: str = "", total: int = 0, unit: str = "") -> None:
        self.fractions.append(done)

    def say(self, message: str) -> None:
        self.said.append(message)


def test_the_result_is_that_of_the_best_epoch() -> None:
    listener = Kept()
    result = train(listener=listener)
    log = [line.split(",") for line in Path("out.csv").read_text().splitlines()[1:]]
    assert [f"{epoch.train_loss:.6g}" for epoch in result.epochs] == [row[3] for row in log]
    assert result.dev["wer"] == min(epoch.dev_wer for epoch in result.epochs)
    assert result.to_dict() == {
        "checkpoint": "out.safetensors",
        "best_epoch": result.best_epoch,
        "dev": json.loads(load_checkpoint(Path("out.safetensors")).metadata["best"])["dev"],
        "dev_loss": None,
        "seed": 0,
    }
    assert len(str(result).splitlines()) == len(repr(result).splitlines()) == 1
    assert f"{result.epochs[1].dev_cer:.2%}" in result._repr_html_()
    assert len(listener.said) == 1 + RECIPE["epochs"]
    assert listener.fractions == sorted(listener.fractions)
    again = train(resume=True)
    assert (again, again.epochs) == (replace(result, epochs=()), ())


def test_a_network_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where weights of few bits start from a checkpoint; the teacher and the average are copies of it."""
    train(out="start.safetensors")
    built = []
    conformer = ARCHITECTURES["conformer_ctc"]

    def build(config: Any) -> Any:
        built.append(config)
        return conformer.build(config)

    monkeypatch.setitem(ARCHITECTURES, "conformer_ctc", replace(conformer, build=build))
    opened = []

    def load(path: Path) -> Checkpoint:
        opened.append(path)
        return load_checkpoint(path)

    monkeypatch.setattr("memsim.storage.checkpoint.load_checkpoint", load)
    train(init="start.safetensors", bits=3, config=FEW_BITS)
    assert (len(built), opened) == (1, [Path("start.safetensors")])


def test_hardware_may_be_a_mapping() -> None:
    train(out="start.safetensors")
    spec = {"base": "ideal", "tile": {"rows": 64, "cols": 64}}
    train(init="start.safetensors", bits=3, config=FEW_BITS, hardware=spec, set=["tile.rows=32"])
    metadata = load_checkpoint(Path("out.safetensors")).metadata
    trained = json.loads(metadata["trained_hardware"])
    assert (metadata["trained_bits"], trained["tile"]["rows"], trained["tile"]["cols"]) == ("3", 32, 64)


def test_the_random_numbers_of_the_caller_stay_what_they_were() -> None:
    def draw() -> list[float]:
        return [*torch.rand(3).tolist(), *np.random.rand(3)]

    seed_global_generators(1)
    expected = draw()
    seed_global_generators(1)
    train()
    assert draw() == expected


def test_a_requested_stop_saves_the_work() -> None:
    whole = train(out="whole.safetensors")
    listener = Kept()
    with pytest.raises(Stopped, match="stopped in epoch 1"):
        train(listener=listener, stop_request=lambda: signal.SIGTERM if listener.fractions else None)
    with pytest.raises(InputError, match="a stopped training lies here"):
        train()
    assert train(resume=True).to_dict() == whole.to_dict() | {"checkpoint": "out.safetensors"}
    assert Path("out.safetensors").read_bytes() == Path("whole.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": []}, "data: no corpus is named"),
        ({"config": {"base": "float", "epochz": 3}}, r"config: epochz: unknown key \(nearest: epochs\)"),
        ({"bits": 1}, "--bits 1: expected 2 to 16, or float"),
        ({"also_written": [Path("out.csv")]}, "out.csv: two results go to the same file"),
        ({"out": "none/m.safetensors"}, "none/m.safetensors: the folder none does not exist"),
        ({"compute": "tpu"}, "--compute tpu: expected auto, cpu or cuda"),
    ],
)
def test_bad_input_is_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        train(**arguments)
    assert len(str(refused.value).splitlines()) == 1
    assert not Path("out.safetensors").exists()
