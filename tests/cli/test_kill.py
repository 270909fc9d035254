"""A command that is killed at any moment leaves whole files or none, and a new run ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from memsim.asr.corpora import load_corpus
from memsim.evaluation.results_file import read_results
from memsim.storage.checkpoint import load_checkpoint
from tests.cli.killing import Fault, Ran, run
from tests.cli.test_torchrun import MODEL, RECIPE

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


@dataclass(frozen=True)
class Job:
    """A command, how it is run again, and what of the files it leaves must be the same."""

    command: tuple[str, ...]
    again: tuple[str, ...]
    result: Callable[[Path], object]


def _mapped(folder: Path) -> object:
    return (folder / "out.safetensors").read_bytes()


def _evaluated(folder: Path) -> object:
    result = json.loads((folder / "out.json").read_text())
    del result["real_time_factor"]
    assert read_results(folder / "r.jsonl").is_finished
    return result


def _trained(folder: Path) -> object:
    files = [load_checkpoint(folder / name) for name in ("out.safetensors", "out.last.safetensors")]
    assert not (folder / "out.resume.safetensors").exists()
    return [({**file.metadata}, {n: t.tolist() for n, t in file.tensors().items()}) for file in files]


_EVAL = ("eval", "tiny.safetensors", "--data", "demo", "--limit", "20", "--trials", "2", "--set", "weights.bits=3",
         "--results", "r.jsonl", "--json", "out.json", "--quiet")  # fmt: skip
_MAP = ("map", "tiny.safetensors", "--bits", "3", "-o", "out.safetensors", "--json", "out.json", "--quiet")
_QAT = ("qat", "--bits", "float", "--data", "few.tsv", "--dev", "few.tsv", "--config", "recipe.yaml", "--quiet",
        "-o", "out.safetensors", "--json", "out.json")  # fmt: skip
JOBS = {
    "map": Job(_MAP, (*_MAP, "--force"), _mapped),
    "eval": Job(_EVAL, _EVAL, _evaluated),
    "qat": Job(_QAT, (*_QAT, "--resume"), _trained),
}


@dataclass(frozen=True)
class Whole:
    """A run that nobody killed."""

    folder: Path
    ran: Ran
    seconds: float
    result: object

    def names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


@pytest.fixture(scope="module")
def given(tiny_recogniser: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("given")
    shutil.copy(tiny_recogniser, folder / "tiny.safetensors")
    (folder / "model.yaml").write_text(MODEL)
    (folder / "recipe.yaml").write_text(RECIPE.replace("epochs: 1", "epochs: 2"))
    rows = [f"{u.audio}\t{u.text}" for u in load_corpus("demo", limit=4).utterances]
    (folder / "few.tsv").write_text("\n".join(["audio\ttext", *rows]) + "\n")
    return folder


@pytest.fixture(scope="module")
def whole(given: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Whole]:
    done: dict[str, Whole] = {}

    def of(name: str) -> Whole:
        if name not in done:
            folder = tmp_path_factory.mktemp(name) / "whole"
            shutil.copytree(given, folder)
            started = time.monotonic()
            ran = run(folder, *JOBS[name].command)
            assert ran.status == 0, ran.said
            done[name] = Whole(folder, ran, time.monotonic() - started, JOBS[name].result(folder))
        return done[name]

    return of


def require_whole_files(folder: Path) -> None:
    """Whatever has a file's own name is a whole file."""
    for path in folder.iterdir():
        if path.name.startswith(".") or path.is_dir():
            continue
        if path.suffix == ".safetensors":
            load_checkpoint(path).views()
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            read_results(path)
        elif path.suffix == ".csv":
            assert len({line.count(",") for line in path.read_text().splitlines()}) == 1
            assert path.read_text().endswith("\n")


def kill_and_run_again(name: str, given: Path, whole: Whole, folder: Path, fault: Fault) -> None:
    shutil.copytree(given, folder)
    killed = run(folder, *JOBS[name].command, fault=fault)
    assert killed.status in (-signal.SIGKILL, 0), killed.said
    require_whole_files(folder)
    again = run(folder, *JOBS[name].again)
    assert again.status == 0, again.said
    assert JOBS[name].result(folder) == whole.result
    assert {path.name for path in folder.iterdir()} == whole.names()


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("map", 0.5),
        pytest.param("eval", 0.4, marks=pytest.mark.slow),
        ("eval", 0.9),
        ("qat", 0.5),
        pytest.param("qat", 0.95, marks=pytest.mark.slow),
    ],
)
def test_killed_at_a_step(name: str, at: float, given: Path, whole: Callable[[str], Whole], tmp_path: Path) -> None:
    done = whole(name)
    assert done.ran.steps > 5
    kill_and_run_again(name, given, done, tmp_path / "killed", Fault(kill_at_step=max(1, round(at * done.ran.steps))))


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_killed_at_many_steps_and_moments(
    name: str, given: Path, whole: Callable[[str], Whole], tmp_path: Path
) -> None:
    """Twenty kills each: ten before a step that changes a file, ten at moments over the length of a run."""
    random, done = Random(0), whole(name)
    for number in range(10):
        step, seconds = random.randint(1, done.ran.steps), random.random() * done.seconds
        kill_and_run_again(name, given, done, tmp_path / f"step-{number}", Fault(kill_at_step=step))
        kill_and_run_again(name, given, done, tmp_path / f"moment-{number}", Fault(kill_after_seconds=seconds))


def test_the_kills_kill(given: Path, tmp_path: Path) -> None:
    shutil.copytree(given, tmp_path / "killed")
    assert run(tmp_path / "killed", *JOBS["map"].command, fault=Fault(kill_at_step=1)).status == -signal.SIGKILL
    assert not (tmp_path / "killed" / "out.safetensors").exists()
