"""Files of every published version are read with the same meaning, and newer formats are refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from memsim.asr.recogniser import load_recogniser, skeleton
from memsim.device import load_device
from memsim.errors import InputError
from memsim.evaluation import results_file
from memsim.evaluation.merge import merge
from memsim.evaluation.results_file import read_results
from memsim.networks.mapped_file import load_chip, stored_spec
from memsim.networks.programming import stored_statistics, trained_scales_of
from memsim.nn.quantisers import restore_quantisers
from memsim.storage.checkpoint import FORMAT, load_checkpoint
from memsim.training.optimiser import averaged
from memsim.training.state import Trained
from tests.tools.published_files import KEPT, log_probabilities

VERSIONS = sorted(path for path in (Path(__file__).parent / "published").iterdir() if path.is_dir())


@pytest.fixture(params=VERSIONS, ids=lambda path: path.name)
def published(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def expected(published: Path) -> dict[str, object]:
    return json.loads((published / "expected.json").read_text())


def test_the_formats_of_today_are_among_them() -> None:
    """Whoever raises a format keeps files of it, too (tests/tools/published_files.py)."""
    formats = {load_checkpoint(file).metadata["format"] for path in VERSIONS for file in path.glob("*.safetensors")}
    assert FORMAT in formats
    headers = [json.loads((path / "results.jsonl").read_text().splitlines()[0]) for path in VERSIONS]
    assert results_file.FORMAT in {header["format"] for header in headers}


def test_they_are_small_and_name_no_place(published: Path) -> None:
    assert sorted(path.name for path in published.iterdir()) == sorted(KEPT)
    assert sum(path.stat().st_size for path in published.iterdir()) < 300_000
    for path in published.iterdir():
        assert not re.search(rb'"/[a-z]+/', path.read_bytes())


@pytest.mark.parametrize("name", ["model", "trained"])
def test_recognisers_compute_what_they_did(published: Path, expected: dict[str, object], name: str) -> None:
    checkpoint = load_checkpoint(published / f"{name}.safetensors")
    assert checkpoint.kind == "model"
    torch.testing.assert_close(log_probabilities(load_recogniser(checkpoint)), expected[name], rtol=0, atol=2e-3)
    assert stored_statistics(checkpoint)
    assert {found.bits for found in trained_scales_of(checkpoint).values()} == ({3} if name == "trained" else set())


def test_chips_compute_what_they_did(published: Path, expected: dict[str, object]) -> None:
    checkpoint = load_checkpoint(published / "mapped.safetensors")
    assert checkpoint.kind == "mapped"
    chip, statistics = load_chip(checkpoint)
    assert statistics
    found, kept, digital = (
        torch.tensor(values) for values in (log_probabilities(chip), expected["mapped"], expected["trained"])
    )
    assert (found - kept).abs().mean() < 0.003  # here and there a code of an ADC more, where another machine rounds so
    assert (digital - kept).abs().mean() > 0.01
    spec, bits = stored_spec(checkpoint)
    assert set(bits.values()) == {3}
    assert spec.faults is not None
    assert load_device(spec.cell).name == "short"


def test_devices(published: Path) -> None:
    device = load_device(published / "device.safetensors")
    assert device.name == "short"
    assert torch.equal(device.var[2], load_device("synaptogen").var[2])


def test_results(published: Path, expected: dict[str, object]) -> None:
    read = read_results(published / "results.jsonl")
    assert read.is_finished
    assert read.header.memsim == published.name
    ((_, evaluation),) = merge([published / "results.jsonl"])
    found = evaluation.to_dict()
    assert {key: found[key] for key in expected["results"]} == expected["results"]


def test_states_of_trainings(published: Path) -> None:
    path = published / "training.resume.safetensors"
    checkpoint = load_checkpoint(path)
    run = json.loads(checkpoint.metadata["run"])
    model = skeleton(replace(checkpoint, metadata=run)).model
    restore_quantisers(model, {name.removeprefix("model/"): tensor for name, tensor in checkpoint.views().items()})
    model = model.to_empty(device="cpu")
    optimiser = torch.optim.AdamW(model.parameters())
    progress = Trained(model, averaged(model, 0.9), optimiser).load(path, run)
    assert progress.step > 0
    assert {int(state["step"]) for state in optimiser.state.values()} == {progress.step}
    assert torch.equal(model.output.weight, checkpoint.tensors(["model/output.weight"])["model/output.weight"])


def test_newer_results_are_refused_in_one_line(published: Path, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text((published / "results.jsonl").read_text().replace("memsim-results/1", "memsim-results/9"))
    with pytest.raises(InputError) as error:
        read_results(path)
    assert str(error.value).startswith(f"{path}: format memsim-results/9; this memsim ")
    assert str(error.value).endswith(" reads memsim-results/1, a newer one is needed")


@pytest.mark.parametrize("name", [name for name in KEPT if name.endswith(".safetensors")])
def test_a_newer_checkpoint_is_refused_in_one_line(published: Path, tmp_path: Path, name: str) -> None:
    newer, count = re.subn(rb'"memsim/\d+"', b'"memsim/9"', (published / name).read_bytes())
    assert count == 1
    (tmp_path / name).write_bytes(newer)
    with pytest.raises(InputError) as error:
        load_checkpoint(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name}: format memsim/9; this memsim ")
    assert str(error.value).endswith("a newer one is needed")
