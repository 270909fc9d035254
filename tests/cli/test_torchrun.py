"""`torchrun -m memsim qat`: two processes give the result of one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile
import torch

from memsim.asr.audio import duration_seconds
from memsim.asr.corpora import load_corpus
from memsim.asr.data import training_batches
from memsim.rng import generator
from memsim.storage.checkpoint import load_checkpoint
from tests.cli.speech import TINY_MODEL, few_utterances

REPOSITORY = Path(__file__).resolve().parents[2]

MODEL = TINY_MODEL + "dropout: 0.0\n"
# RAdam's first steps are linear in the gradient (unless it is clipped): what differs by rounding goes on to do so.
RECIPE = """
model: model.yaml
epochs: 1
batch_seconds: 5
accumulate: 2
optimiser: radam
learning_rate: [[0, 1.0e-2], [1, 1.0e-2]]
clip_norm: 1.0e6
average_decay: 0.5
augment: {frequency_warp: 0.1}
best_by: loss
"""
COMMAND = ("qat", "--bits", "float", "--data", "few.tsv", "--dev", "few.tsv", "--config", "recipe.yaml", "--quiet")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.yaml").write_text(MODEL)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    few_utterances(tmp_path, 7)
    return tmp_path


def torchrun(folder, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "memsim")
    return subprocess.Popen(
        [*launcher, *arguments], cwd=folder, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def assert_nearly_the_same(folder, one, two):
    for kind in ("", ".last"):
        weights = [load_checkpoint(folder / f"{name}{kind}.safetensors").tensors() for name in (one, two)]
        assert weights[0].keys() == weights[1].keys()
        for name, tensor in weights[0].items():
            if not name.startswith("statistics/"):
                torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_two_processes_give_the_result_of_one(memsim, folder):
    durations = [duration_seconds(u) for u in load_corpus("demo", limit=7).utterances]
    sizes = [len(batch) for batch in training_batches(durations, (0.9, 1.0, 1.1), 5.0, generator(0, "batches", 1))]
    assert 1 in sizes  # one process has nothing to do
    assert max(sizes) >= 3  # and there is something to share
    assert len(sizes) <= 5
    assert memsim(*COMMAND, "-o", "one.safetensors") == (0, "", "")
    process = torchrun(folder, *COMMAND, "-o", "two.safetensors", "--json", "-")
    out, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert out.count('"checkpoint": "two.safetensors"') == 1  # one of them says so
    assert_nearly_the_same(folder, "one", "two")
    logs = [(folder / f"{name}.csv").read_text().splitlines() for name in ("one", "two")]
    assert len(logs[0]) == len(logs[1]) == 2
    for name, one, two in zip(logs[0][0].split(","), *(log[1].split(",") for log in logs), strict=True):
        if name not in ("seconds", "is_best"):
            assert float(two) == pytest.approx(float(one), rel=1e-5), name
    written = {path.name.removeprefix("two") for path in folder.glob("two*")}
    assert written == {".safetensors", ".last.safetensors", ".csv", ".tensorboard"}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds a process's rank in /proc")
def test_a_signal_to_one_process_stops_both(memsim, folder):
    (folder / "recipe.yaml").write_text(RECIPE.replace("epochs: 1", "epochs: 20"))
    log, state = folder / "two.csv", folder / "two.resume.safetensors"
    whole = torchrun(folder, *COMMAND, "-o", "one.safetensors")
    assert whole.communicate(timeout=120) == ("", "")
    process = torchrun(folder, *COMMAND, "-o", "two.safetensors")
    deadline = time.monotonic() + 120
    while not log.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(child_of_rank(process.pid, 1), signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode != 0  # torchrun's own; its processes end with 75
    assert said.count("exitcode  : 75") == 2
    assert state.exists()
    assert 1 < len(log.read_text().splitlines()) < 21
    resumed = torchrun(folder, *COMMAND, "-o", "two.safetensors", "--resume")
    assert resumed.communicate(timeout=120) == ("", "")
    for name in ("{}.safetensors", "{}.last.safetensors"):
        assert (folder / name.format("two")).read_bytes() == (folder / name.format("one")).read_bytes()
    assert not state.exists()


def child_of_rank(parent, rank):
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if f"\0RANK={rank}\0" in "\0" + Path(f"/proc/{child}/environ").read_text():
            return int(child)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.slow
def test_two_processes_train_for_few_bits_as_one_does(memsim, folder):
    """Nearly: where a number rounds to another code, what follows differs by a step of it."""
    assert memsim(*COMMAND, "-o", "start.safetensors") == (0, "", "")
    recipe = (
        RECIPE.replace("1.0e-2", "1.0e-3") + "quantisation: {hardware: {spread_ramp: 0.5}, teacher: {weight: 0.5}}\n"
    )
    (folder / "recipe.yaml").write_text(recipe)
    command = ("qat", "--bits", "3", "--init", "start.safetensors", *COMMAND[3:])
    assert memsim(*command, "-o", "one.safetensors") == (0, "", "")
    with torchrun(folder, *command, "-o", "two.safetensors") as process:
        assert process.wait() == 0, process.stderr.read()
    rows = [(folder / f"{name}.csv").read_text().splitlines()[1].split(",") for name in ("one", "two")]
    losses = [[float(value) for value in row[3:5]] for row in rows]
    assert losses[0][1] > 0
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


@pytest.mark.slow
def test_processes_observe_ranges_together(memsim, folder):
    """As one process does, up to rounding to 16 bits, where utterances are of one length: padding is observed, too."""
    lines = ["audio\ttext"]
    for utterance in load_corpus("demo", limit=7).utterances:
        samples, rate = soundfile.read(utterance.audio)
        soundfile.write(folder / f"{utterance.id}.wav", samples[:rate], rate)
        lines.append(f"{utterance.id}.wav\tno")
    (folder / "few.tsv").write_text("\n".join(lines) + "\n")
    assert memsim(*COMMAND, "-o", "start.safetensors") == (0, "", "")
    recipe = RECIPE.replace("1.0e-2", "1.0e-4").replace("augment: {", "augment: {speeds: [1.0], ")
    observed = "weights: {method: minmax, scale: per_tensor}, inputs: {method: minmax, bits: 16}, outputs: {bits: 16}"
    (folder / "recipe.yaml").write_text(f"{recipe}quantisation: {{{observed}, attention: {{bits: 16}}}}\n")
    command = ("qat", "--bits", "16", "--init", "start.safetensors", *COMMAND[3:])
    assert memsim(*command, "-o", "one.safetensors") == (0, "", "")
    with torchrun(folder, *command, "-o", "two.safetensors") as process:
        assert process.wait() == 0, process.stderr.read()
    one, two = (load_checkpoint(folder / f"{name}.last.safetensors").tensors() for name in ("one", "two"))
    names = [name for name in one if name.endswith(("_quantiser.range", "_quantiser.scale"))]
    assert len(names) == 34
    for name in names:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=0, msg=name)
    rows = [(folder / f"{name}.csv").read_text().splitlines()[1].split(",") for name in ("one", "two")]
    assert float(rows[1][3]) == pytest.approx(float(rows[0][3]), rel=1e-5)


def test_two_processes_evaluate_as_one_does(memsim, folder, tiny_recogniser):
    """To the bit, with a resumed results file too; 1 chip, so that each runs half of its batches."""
    command = ("eval", str(tiny_recogniser), "--data", "demo", "--limit", "60", "--bits", "3", "--quiet")
    assert memsim(*command, "--json", "one.json") == (0, "", "")
    process = torchrun(folder, *command, "--results", "two.jsonl", "--json", "two.json")
    assert process.communicate(timeout=120) == ("", "")
    one, two = (json.loads((folder / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one.pop("real_time_factor") > 0
    assert two.pop("real_time_factor") > 0
    assert two == one
    lines = [json.loads(line) for line in (folder / "two.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["study", *["part"] * 6, "point", "end"]


@pytest.mark.slow
def test_processes_go_on_with_results(memsim, folder, tiny_recogniser):
    command = ("eval", str(tiny_recogniser), "--data", "demo", "--limit", "60", "--bits", "3", "--quiet")
    assert memsim(*command, "--trials", "2", "--json", "one.json") == (0, "", "")
    assert memsim(*command, "--results", "two.jsonl").status == 0
    process = torchrun(folder, *command, "--trials", "2", "--results", "two.jsonl", "--json", "two.json")
    assert process.communicate(timeout=120) == ("", "")
    one, two = (json.loads((folder / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one | {"real_time_factor": 0} == two | {"real_time_factor": 0}
    refused = torchrun(folder, *command, "--jobs", "2")
    assert "torchrun already divides the work" in refused.communicate(timeout=120)[1]
