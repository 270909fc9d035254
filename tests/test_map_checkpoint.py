"""`memsim.map_checkpoint`: `memsim map` in Python."""

from __future__ import annotations

import gc
import json
import multiprocessing
import resource
import sys
import warnings
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import memsim
from memsim.asr.architectures import ARCHITECTURES
from memsim.cli import main
from memsim.crossbar.matrix import MappedMatrix
from memsim.errors import InputError
from memsim.listener import Listener
from memsim.networks.opened_network import OpenedNetwork
from memsim.nn import mapping
from tests.evaluation.calls import prepare


class Notes(Listener):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.jobs: set[str] = set()

    def progress(self, name: str, done: float, detail: str = "", total: int = 0, unit: str = "") -> None:
        self.jobs.add(name)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The configs of the networks that were built since."""
    found: list[object] = []
    architecture = ARCHITECTURES["conformer_ctc"]

    def build(config: object) -> object:
        found.append(config)
        return architecture.build(config)

    monkeypatch.setitem(ARCHITECTURES, "conformer_ctc", replace(architecture, build=build))
    return found


@pytest.fixture
def one_utterance(tmp_path: Path) -> str:
    """A manifest of the demo's first utterance."""
    demo = Path(memsim.__file__).parent / "assets" / "demo" / "manifest.tsv"
    head, first = demo.read_text().splitlines()[:2]
    audio, *rest = first.split("\t")
    (tmp_path / "one.tsv").write_text(f"{head}\n" + "\t".join([str(demo.parent / audio), *rest]) + "\n")
    return str(tmp_path / "one.tsv")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["memsim", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert not exit_.value.code


def test_it_is_what_the_command_does(
    tiny_recogniser: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--bits", 3, "--budget", "--cost", "--set", "adc.bits=6", "--exclude", "*.query", "--seed", 2)
    run(monkeypatch, "map", tiny_recogniser, *options, "-o", "m.safetensors", "--json", "m.json")
    said = capsys.readouterr().out
    wanted, written = json.loads(Path("m.json").read_text()), Path("m.safetensors").read_bytes()
    arguments = {"bits": 3, "budget": True, "cost": True, "set": ["adc.bits=6"], "exclude": ["*.query"], "seed": 2}
    result = memsim.map_checkpoint(str(tiny_recogniser), out="m.safetensors", force=True, **arguments)
    assert json.loads(json.dumps(result.to_dict())) == wanted
    assert Path("m.safetensors").read_bytes() == written
    assert [line.rstrip() for line in said.rstrip().splitlines()] == str(result).splitlines()
    opened = memsim.load_checkpoint(tiny_recogniser)
    again = memsim.map_checkpoint(opened, memsim.load_hardware("physical"), **arguments)
    assert again.out is None
    assert again.to_dict() == result.to_dict() | {"out": None}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.json", "m.safetensors"]


def test_without_a_terminal_it_prints_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = memsim.map_checkpoint("demo", "best", include=["blocks.0.attention.*"])
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
    assert repr(result).count("\n") == 0
    assert "blocks.0.attention.query" in str(result)
    assert "blocks.0.attention.query" in result._repr_html_()


def test_it_refuses_to_overwrite_and_warns_through_its_listener(tiny_recogniser: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    notes = Notes()
    memsim.map_checkpoint(tiny_recogniser, "paper", bits=3, out=out, listener=notes)
    assert "disturbs less" in notes.warnings[0]
    assert notes.jobs == {"programming"}
    before = out.read_bytes()
    with pytest.raises(memsim.InputError, match=r"m\.safetensors: exists already; --force overwrites it"):
        memsim.map_checkpoint(tiny_recogniser, bits=4, out=out)
    with pytest.raises(memsim.InputError, match="is also an input and would be overwritten"):
        memsim.map_checkpoint(tiny_recogniser, bits=4, out=tiny_recogniser, force=True)
    assert out.read_bytes() == before
    with pytest.warns(UserWarning, match="disturbs less"):
        memsim.map_checkpoint(tiny_recogniser, "paper", bits=3, dry_run=True)


def test_of_two_mappings_to_one_file_the_second_is_refused(tiny_recogniser: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.mapped.safetensors"

    class Second(Listener):
        def progress(self, *state: object, **counted: object) -> None:
            with pytest.raises(
                InputError, match=r"m\.mapped\.safetensors: another mapping is writing it; name another"
            ):
                memsim.map_checkpoint(tiny_recogniser, "ideal", bits=4, out=out, force=True)

    memsim.map_checkpoint(tiny_recogniser, "ideal", bits=4, out=out, listener=Second())
    assert memsim.load_checkpoint(out).kind == "mapped"
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_its_report(tiny_recogniser: Path, tmp_path: Path) -> None:
    result = memsim.map_checkpoint(tiny_recogniser, bits=3, budget=None)
    assert result.budget is not None
    result.write_report(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text("utf-8")
    assert "<h2>Error budget</h2>" in text
    assert "<h2>Cost</h2>" not in text
    planned = memsim.map_checkpoint(tiny_recogniser, dry_run=True)
    with pytest.raises(memsim.InputError, match="the report needs programmed arrays"):
        planned.write_report(tmp_path / "other.html")
    with pytest.raises(memsim.InputError, match=r"expected a name that ends in \.html"):
        result.write_report(tmp_path / "page.txt")


def test_one_mapping_builds_one_network(
    built: list[object], tiny_recogniser: Path, one_utterance: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("-q", "--budget", "--cost", "--calibrate", one_utterance, "--report", "m.html")
    run(monkeypatch, "map", tiny_recogniser, "-o", "m.safetensors", *options)
    assert len(built) == 1
    built.clear()
    mapped = memsim.load_checkpoint("m.safetensors")
    targets: list[Callable[[], object]] = [
        lambda: prepare(memsim.load_checkpoint(tiny_recogniser), spec=memsim.load_hardware("physical")).chip(0),
        lambda: prepare(mapped).chip(0),
        lambda: prepare(mapped, seed=3).chip(1),
    ]
    for target in targets:
        target()
        assert len(built) == 1
        built.clear()


def test_a_network_is_the_same_whatever_is_asked_of_it_first(built: list[object]) -> None:
    """Its quantisers hold their values, whether its tensors are looked for before it is loaded or after."""
    for names in (("stored", "recogniser"), ("recogniser", "stored")):
        network = OpenedNetwork(memsim.load_checkpoint(memsim.map_checkpoint("demo", dry_run=True).checkpoint.path))
        built.clear()
        for name in names:
            getattr(network, name)
        assert network.stored is not None
        assert network.stored.model is network.recogniser.model
        assert not any(tensor.is_meta for tensor in network.recogniser.model.state_dict().values())
        assert len(built) == 1


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hardware", ["physical", "ideal"])
def test_memory_holds_one_layer_at_a_time(hardware: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundled recogniser has statistics, so that each layer is calibrated, read and counted, too."""
    programmed: list[weakref.ref[MappedMatrix]] = []
    make = mapping._fitted_matrix

    def fitted_matrix(*arguments: Any) -> Any:
        gc.collect()
        assert [matrix().name for matrix in programmed if matrix() is not None] == []
        matrix, fit = make(*arguments)
        programmed.append(weakref.ref(matrix))
        return matrix, fit

    monkeypatch.setattr(mapping, "_fitted_matrix", fitted_matrix)
    out = tmp_path / "out.safetensors"
    include = ["blocks.0.*"]
    result = memsim.map_checkpoint("demo", hardware, include=include, out=out, budget=True, cost=True)
    assert len(programmed) == len(result.plan.mapped) == 10
    assert result.mapped is not None
    assert result.mapped.tensors == {}
    held = memsim.map_checkpoint("demo", hardware, include=include)
    assert held.mapped is not None
    stored = memsim.load_checkpoint(out)
    memsim.save_checkpoint(tmp_path / "held.safetensors", held.mapped.tensors, held.mapped.metadata)
    assert (tmp_path / "held.safetensors").read_bytes() == stored.path.read_bytes()


def _mapped_peak(source: Path, out: Path, peak: Any) -> None:
    torch.set_num_threads(1)
    memsim.map_checkpoint(source, "physical", bits=4, out=out, listener=Notes())
    peak.value = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts the peak in kB")
def test_memory_does_not_grow_with_the_number_of_layers(tmp_path: Path) -> None:
    """The weights of a layer are 8 MB here, and its cells at 4 bits 25 MB; all 12 layers' are 400 MB."""
    context = multiprocessing.get_context("spawn")
    peaks = []
    for layers in (2, 12):
        source, out = tmp_path / f"{layers}.safetensors", tmp_path / f"{layers}.mapped.safetensors"
        weights = {f"layers.{index}.weight": torch.randn(1024, 2048) for index in range(layers)}
        memsim.save_checkpoint(source, weights, {"format": "pt"})
        peak = context.Value("q")
        process = context.Process(target=_mapped_peak, args=(source, out, peak))
        process.start()
        process.join()
        assert process.exitcode == 0
        assert memsim.load_checkpoint(out).kind == "mapped"
        peaks.append(peak.value)
    assert peaks[1] - peaks[0] < 60_000
