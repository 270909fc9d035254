"""The unchanged scripts of configs/slurm on a real SLURM of one node that the test installs and starts.

It needs root, on a machine that may be changed: a container, a virtual machine.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from memsim.config.resources import configs_root
from tests.cli.speech import TINY_MODEL, few_utterances
from tests.scheduler import install, running, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("MEMSIM_SLURM_TEST") != "1",
        reason="MEMSIM_SLURM_TEST=1 installs SLURM (apt-get, as root), starts it and runs the scripts on it",
    ),
]

REPOSITORY = Path(__file__).resolve().parents[1]
RECIPE = """
model: model.yaml
epochs: {epochs}
batch_seconds: 5
optimiser: radam
learning_rate: [[0, 1.0e-2], [1, 1.0e-2]]
"""
# less than the scripts ask for, as a user would on the command line of sbatch
SMALL = ("--cpus-per-task=1", "--mem=4G")
TRAINING = ("--bits", "float", "--data", "few.tsv", "--dev", "few.tsv", "--config", "recipe.yaml", "--quiet")


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    install()
    with running(tmp_path_factory.mktemp("slurm")) as scheduler:
        yield scheduler


@pytest.fixture
def folder(scheduler, tmp_path, monkeypatch):
    """An empty folder in which jobs run, with memsim and torchrun on their path."""
    (tmp_path / "bin").mkdir()
    for name, module in (("memsim", "memsim"), ("torchrun", "torch.distributed.run")):
        program = tmp_path / "bin" / name
        program.write_text(f'#!/usr/bin/env bash\nexec {sys.executable} -m {module} "$@"\n')
        program.chmod(0o755)
    monkeypatch.setitem(scheduler.environment, "PATH", f"{tmp_path / 'bin'}:{scheduler.environment['PATH']}")
    monkeypatch.setitem(scheduler.environment, "PYTHONPATH", str(REPOSITORY))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    scheduler.cancel_all()


@pytest.fixture
def training(folder):
    """What `train` needs; calling it sets the number of epochs."""
    (folder / "model.yaml").write_text(TINY_MODEL)
    few_utterances(folder, 4)

    def of(epochs):
        (folder / "recipe.yaml").write_text(RECIPE.format(epochs=epochs))

    return of


def script(name):
    return configs_root() / "slurm" / f"{name}.sbatch"


def run(folder, *command):
    """The same work, without the scheduler."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([str(folder / "bin" / command[0]), *map(str, command[1:])], check=True, env=environment)


def preempt(scheduler, job):
    """Lets a job of the partition `high` take the whole node from a running one, which then begins anew."""
    before = scheduler.job(job).restarts
    urgent = scheduler.submit("--partition=high", "--exclusive", "--output=urgent.log", "--wrap=true")
    scheduler.wait(urgent, "COMPLETED")
    scheduler.wait(job, "PENDING", "RUNNING")
    assert scheduler.job(job).restarts == before + 1


def lines(path):
    return len(path.read_text().splitlines()) if path.exists() else 0


def log_of(job):
    (log,) = Path.cwd().glob(f"memsim-*-{job}.log")
    return log.read_text()


def assert_trained_alike(folder, one, other):
    for name in ("{}.safetensors", "{}.last.safetensors"):
        assert (folder / name.format(one)).read_bytes() == (folder / name.format(other)).read_bytes()
    logs = [list(csv.DictReader((folder / f"{name}.csv").open())) for name in (one, other)]
    assert [row["epoch"] for row in logs[0]] == [row["epoch"] for row in logs[1]]
    assert not (folder / f"{one}.resume.safetensors").exists()


def assert_same_result(one, other):
    results = [json.loads(Path(name).read_text()) for name in (one, other)]
    for result in results:
        for point in result.get("points", [result]):
            assert point.pop("real_time_factor") > 0
    assert results[0] == results[1]


def test_a_checkpoint_from_map_to_merge(scheduler, folder, tiny_recogniser):
    mapped = scheduler.submit(*SMALL, script("map"), tiny_recogniser, "--bits", "3", "-o", "tiny.mapped.safetensors")
    scheduler.wait(mapped, "COMPLETED")
    work = ("tiny.mapped.safetensors", "--data", "demo", "--limit", "30", "--set", "adc.bits=3,8", "--trials", "2")
    sweep = scheduler.submit(*SMALL, "--array=1-2", script("sweep"), 2, "out folder", *work)
    dependency = (f"--dependency=afterok:{sweep}", "--kill-on-invalid-dep=yes")
    merge = scheduler.submit(*SMALL, *dependency, script("merge"), "out folder", "--json", "merged.json")
    assert scheduler.job(merge).state == "PENDING"
    scheduler.wait(merge, "COMPLETED")
    run(folder, "memsim", "eval", *work, "--json", "whole.json")
    assert_same_result("merged.json", "whole.json")
    assert {path.name for path in Path("out folder").iterdir()} == {"1.jsonl", "2.jsonl"}


@pytest.mark.parametrize("partition", ["low", "sudden"])
def test_a_preempted_training_goes_on_to_the_same_bits(scheduler, folder, training, partition):
    """With a grace time the script puts its job back into the queue, without one SLURM does."""
    training(60)
    run(folder, "memsim", "qat", *TRAINING, "-o", "whole.safetensors")
    job = scheduler.submit(*SMALL, f"--partition={partition}", script("train"), "out.safetensors", *TRAINING)
    assert until(lambda: lines(folder / "out.csv") > 3), f"it does not train: {scheduler.job(job)}"
    preempt(scheduler, job)
    assert "out.resume.safetensors holds the state" in log_of(job)
    assert 3 < lines(folder / "out.csv") < 61
    assert scheduler.wait(job, "COMPLETED").restarts == 1
    assert_trained_alike(folder, "out", "whole")


def test_a_preempted_share_goes_on(scheduler, folder, tiny_recogniser):
    work = (tiny_recogniser, "--data", "demo", "--bits", "3", "--trials", "20")
    job = scheduler.submit(*SMALL, "--array=1", script("sweep"), 1, "out", *work) + "_1"
    assert until(lambda: lines(folder / "out" / "1.jsonl") > 4), f"nothing is done: {scheduler.job(job)}"
    preempt(scheduler, job)
    scheduler.wait(job, "COMPLETED")
    merge = scheduler.submit(*SMALL, script("merge"), "out", "--json", "merged.json")
    scheduler.wait(merge, "COMPLETED")
    run(folder, "memsim", "eval", *work, "--json", "whole.json")
    assert_same_result("merged.json", "whole.json")


@pytest.mark.parametrize("stop", ["time limit", "scancel"])
def test_work_stopped_by_its_time_limit_goes_on_and_cancelled_work_does_not(
    scheduler, folder, training, tiny_recogniser, stop
):
    training(100_000)
    # three minutes and up to one more, as SLURM has it, before its end, a job is told
    limited = (*SMALL, "--time=5")
    train = scheduler.submit(*limited, script("train"), "out.safetensors", *TRAINING)
    work = (tiny_recogniser, "--data", "demo", "--bits", "3", "--trials", "10000")
    jobs = train, scheduler.submit(*limited, "--array=1", script("sweep"), 1, "out", *work) + "_1"
    logs = folder / "out.csv", folder / "out" / "1.jsonl"
    assert until(lambda: all(lines(log) > 4 for log in logs)), "nothing is done"
    if stop == "scancel":
        scheduler.call("scancel", *jobs)
        for job in jobs:
            scheduler.wait(job, "CANCELLED")
        assert until(lambda: not scheduler.call("squeue", "--noheader")), "they do not end"
        assert [scheduler.job(job).restarts for job in jobs] == [0, 0]
        return
    for job in jobs:
        assert until(lambda job=job: scheduler.job(job).restarts == 1), f"it is not stopped: {scheduler.job(job)}"
    done = [lines(log) for log in logs]
    assert until(lambda: all(lines(log) > before for log, before in zip(logs, done, strict=True))), "they do not go on"
    assert [scheduler.job(job).restarts for job in jobs] == [1, 1]


def test_a_stopped_share_leaves_the_others_alone(scheduler, folder, tiny_recogniser):
    """SLURM gives one task the number of the whole array, which means all of them to it."""
    work = (tiny_recogniser, "--data", "demo", "--bits", "3", "--trials", "10000")
    array = scheduler.submit(*SMALL, "--array=1-2", script("sweep"), 2, "out", *work)
    assert until(lambda: all(lines(folder / "out" / f"{share}.jsonl") > 2 for share in (1, 2))), "nothing is done"
    for share, restarts in ((1, [1, 0]), (2, [1, 1])):
        scheduler.call("scancel", "--signal=TERM", f"{array}_{share}")
        begun = until(lambda share=share: scheduler.job(f"{array}_{share}").restarts == 1)
        assert begun, f"share {share} does not begin again"
        assert [scheduler.job(f"{array}_{share}").restarts for share in (1, 2)] == restarts


def test_a_preempted_map_begins_anew(scheduler, folder):
    job = scheduler.submit(
        *SMALL, script("map"), "demo-float", "--bits", "3", "--hardware", "best", "-o", "chip.safetensors"
    )
    scheduler.wait(job, "RUNNING")
    preempt(scheduler, job)
    assert scheduler.wait(job, "COMPLETED").restarts == 1
    run(folder, "memsim", "map", "demo-float", "--bits", "3", "--hardware", "best", "-o", "whole.safetensors")
    assert Path("chip.safetensors").read_bytes() == Path("whole.safetensors").read_bytes()


def test_what_failed_is_not_begun_again(scheduler, folder, training):
    training(1)
    for name, arguments in (
        ("map", ["no-such.safetensors"]),
        ("sweep", [1, "out", "no-such.safetensors"]),
        ("merge", ["no-such-folder"]),
        ("train", ["out.safetensors", *TRAINING, "--bits", "99"]),
    ):
        array = ["--array=1"] if name == "sweep" else []
        job = scheduler.submit(*SMALL, *array, script(name), *arguments)
        assert scheduler.wait(job, "FAILED").restarts == 0


def test_trainings_share_a_node(scheduler, folder, training):
    """Each has a port of its own: what begins later outlives what began first."""
    training(5)
    share = (*SMALL, "--gpus-per-node=0", script("train"))
    first = scheduler.submit(*share, "one.safetensors", *TRAINING)
    (folder / "longer.yaml").write_text(RECIPE.format(epochs=60))
    second = scheduler.submit(*share, "two.safetensors", *TRAINING[:-2], "longer.yaml", "--quiet")
    for job in (first, second):
        assert scheduler.wait(job, "COMPLETED").restarts == 0
