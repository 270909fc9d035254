"""`memsim eval` with many chips: sweeps, results files, shards, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from memsim.evaluation.target import CheckpointNetworks

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO = ("--data", "demo", "--limit", "30", "--bits", "3")


@pytest.fixture
def tiny(tiny_recogniser):
    return str(tiny_recogniser)


def result_of(path):
    result = json.loads(Path(path).read_text())
    for each in result.get("points", [result]):
        each.pop("real_time_factor")
    return result


def test_a_sweep_is_a_table_json_and_a_figure(memsim, tiny):
    sweep = ("--set", "adc.bits=3,8", "--set", "digital=['output*', 'frontend.*']", "--set", "dac.bits=4,8")
    files = ("--json", "all.json", "--figure", "all.svg", "--results", "all.jsonl")
    done = memsim("eval", tiny, *DEMO, *sweep, *files)
    assert done.status == 0, done.err
    for said in ("adc.bits", "dac.bits", "digital %", "evaluation: 210 utterances done in"):
        assert said in done.said
    for said in (
        "demo all: 30 utterances",
        "tiny.safetensors on physical with digital=[output*, frontend.*], over adc.bits, dac.bits, ",
        "full precision",
        "95% interval over 30 utterances, of this chip; those to digital are paired",
        "unusable",  # it is not trained
        "4 of 4 points have such warnings",
    ):
        assert said in done.said
    points = result_of("all.json")["points"]
    assert [point["hardware"]["changed"]["adc.bits"] for point in points[:2]] == [3, 3]
    assert [tuple(point["settings"].values()) for point in points] == [(3, 4), (3, 8), (8, 4), (8, 8)]
    assert [point["hardware"]["spec"]["adc"]["bits"] for point in points] == [3, 3, 8, 8]
    assert all(list(point["hardware"]["spec"]["digital"]) == ["output*", "frontend.*"] for point in points)
    lines = [json.loads(line) for line in Path("all.jsonl").read_text().splitlines()]
    assert [line["settings"] for line in lines if line["kind"] == "point"] == [point["settings"] for point in points]
    assert "<svg" in Path("all.svg").read_text()[:1000]

    alone = memsim("eval", tiny, *DEMO, "--set", "adc.bits=8", *sweep[2:4], "--set", "dac.bits=4", "--json", "one.json")
    assert alone.status == 0
    assert result_of("one.json") | {"settings": points[2]["settings"]} == points[2]

    merged = memsim("eval", "--merge", "all.jsonl", "--json", "again.json", "--figure", "again.svg")
    assert merged.status == 0, merged.err
    assert "digital=[output*, frontend.*], over adc.bits, dac.bits, " in merged.said
    assert result_of("again.json") == result_of("all.json")
    assert Path("again.svg").read_bytes() == Path("all.svg").read_bytes()


def test_results_are_gone_on_with_and_shards_merged(memsim, tiny, tmp_path):
    command = ("eval", tiny, *DEMO, "--trials", "3")
    assert memsim(*command, "--json", "whole.json").status == 0
    found = []
    for trials in ("2", "3", "3"):
        done = memsim(*command[:-1], trials, "--results", "r.jsonl", "--json", "r.json")
        assert done.status == 0, done.err
        parts = [json.loads(line) for line in Path("r.jsonl").read_text().splitlines()]
        assert len([line for line in parts if line["kind"] == "part"]) == int(trials) + 2
        found.append(done.said.partition("r.jsonl: ")[2].partition(" evaluation")[0])
    assert found[0].startswith("evaluation") or "found" not in found[0]
    assert found[1].startswith(
        "found 4 of 5 work items (2 of 3 chips, 120 of 150 transcripts); continues with the other 1"
    )
    assert found[2].startswith("found 5 of 5 work items (3 of 3 chips, 150 of 150 transcripts); nothing is left to run")
    assert result_of("r.json") == result_of("whole.json")

    for number in (1, 2):
        done = memsim(*command, "--shard", f"{number}/2", "--results", f"shard-{number}.jsonl")
        assert done.status == 0, done.err
        assert f"shard {number}/2 is done: shard-{number}.jsonl; --merge joins all shards" in done.said
    merged = memsim("eval", "--merge", str(tmp_path / "shard-*.jsonl"), "--json", "merged.json", "--verbose")
    assert merged.status == 0, merged.err
    assert "mapped, 3 chips" in merged.said
    assert result_of("merged.json") == result_of("whole.json")

    refused = memsim("eval", "--merge", "r.jsonl", "--figure", "r.svg")
    assert (refused.status, refused.out) == (2, "")
    assert "--figure r.svg: nothing is swept" in refused.said

    refused = memsim(*command, "--seed", "1", "--results", "r.jsonl")
    assert refused.status == 2
    assert "r.jsonl: holds results of another command (seed 0, not 1)" in refused.said
    assert memsim(*command, "--seed", "1", "--results", "r.jsonl", "--force").status == 0


def test_a_signal_before_the_first_chip_is_one_to_go_on_from(memsim, tiny, monkeypatch):
    prepared = CheckpointNetworks.target

    def target(networks, *hardware):
        os.kill(os.getpid(), signal.SIGTERM)
        return prepared(networks, *hardware)

    command = ("eval", tiny, *DEMO, "--results", "r.jsonl", "--json", "r.json")
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointNetworks, "target", target)
        done = memsim(*command)
    assert done.status == 75
    assert "stopped with 0% done; the same command continues r.jsonl" in done.said
    assert not Path("r.json").exists()
    assert memsim(*command).status == 0
    assert result_of("r.json")["mapped"]["trials"]


def test_losses_are_a_column_of_a_sweep_too(memsim, tiny):
    done = memsim("eval", tiny, *DEMO[:3], "2", "--bits", "3", "--set", "adc.bits=3,8", "--loss", "--json", "all.json")
    assert done.status == 0, done.err
    assert "CTC loss" in done.said
    for point in result_of("all.json")["points"]:
        assert f"{point['mapped']['loss']['mean']:.4f}" in done.said


def test_a_mapped_file_has_levels_not_weights(memsim, tiny):
    assert memsim("map", tiny, "--bits", "3", "-o", "chip.safetensors").status == 0
    command = ("eval", "chip.safetensors", "--data", "demo", "--limit", "2")
    for settings in (("weights.bits=3,4",), ("weights.scale=per_tensor",), ("weights.scale_method=minmax",)):
        refused = memsim(*command, "--set", *settings)
        assert (refused.status, refused.out) == (2, "")
        assert f"--set {settings[0].replace('3,', '')}: chip.safetensors holds levels, not weights" in refused.said
    assert memsim(*command, "--hardware", "ideal", "--set", "weights.bits=3").status == 0


def test_a_log_says_how_far_it_is(memsim, tiny, monkeypatch):
    from memsim.cli import progress

    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    done = memsim("eval", tiny, *DEMO)
    lines = [line for line in done.err.splitlines() if line.startswith("evaluation: ")]
    assert "/90 utterances" in lines[0]
    assert any("full precision: WER" in line for line in lines)
    running = [line for line in lines if "chip 1 of 1: WER" in line and "left" in line]
    assert all("% so far, over " in line and " of 30 utterances" in line for line in running)
    assert running
    assert lines[-1].startswith("evaluation: 90 utterances done in")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shard", "3/2", "--results", "r.jsonl"], "--shard 3/2: expected I/N with I from 1 to N, such as 2/8"),
        (["--shard", "0/2", "--results", "r.jsonl"], "--shard 0/2: expected I/N"),
        (["--shard", "half", "--results", "r.jsonl"], "--shard half: expected I/N"),
        (["--shard", "1/2"], "--shard 1/2: name the file of its results with --results FILE.jsonl"),
        (
            ["--shard", "1/2", "--results", "r.jsonl", "--json", "a.json"],
            "use --json, --figure, --report and --worst with --merge",
        ),
        (
            ["--shard", "1/2", "--results", "r.jsonl", "--worst", "3"],
            "use --json, --figure, --report and --worst with --merge",
        ),
        (["--results", "nowhere/r.jsonl"], "nowhere/r.jsonl: the folder nowhere does not exist"),
        (["--set", "adc.bits=4,6", "--ablate"], "--ablate: only for a single point"),
        (["--figure", "a.svg"], "nothing is swept"),
        (["--jobs", "0"], "greater than or equal to 1"),
        (["--merge", "*.jsonl", "--cost"], "evaluates nothing; leave out CHECKPOINT, --data, --limit, --bits, --cost"),
        (["--set", "adc.bits=4,6", "--figure", "a.png"], "a.png: expected a name that ends in .svg"),
    ],
)
def test_options_that_do_not_go_together(memsim, tiny, arguments, said):
    done = memsim("eval", tiny, "--data", "demo", "--limit", "2", "--bits", "3", *arguments)
    assert done.status == 2
    assert said in done.said


def test_there_is_something_to_evaluate_or_merge(memsim, tiny, tmp_path):
    assert "--data is missing: demo, tedlium2" in memsim("eval", tiny).said
    assert "demo all: 2 utterances" in memsim("eval", "--limit", "2").said  # which finds the bundled checkpoint
    (tmp_path / "a.mapped.safetensors").write_bytes(b"")  # the newest mapped one
    assert "--data is missing: demo, tedlium2" in memsim("eval").said
    assert "demo all: 2 utterances" in memsim("eval", "demo", "--reference", "demo-float", "--limit", "2").said
    done = memsim("eval", "--merge", "out/*.jsonl")
    assert (done.status, done.err) == (2, "memsim: --merge out/*.jsonl: no such files\n")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_signal_keeps_what_is_done(memsim, tiny, tmp_path, number, status, jobs):
    command = ["eval", tiny, *DEMO, "--trials", "40", "--results", "r.jsonl", "--json", "r.json"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [sys.executable, "-m", "memsim", *command, "--jobs", jobs],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "r.jsonl").exists() or len((tmp_path / "r.jsonl").read_text().splitlines()) < 4:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == status
    assert b"the same command continues r.jsonl" in said
    assert not (tmp_path / "r.json").exists()
    assert memsim(*command).status == 0
    assert memsim(*command[:-4], "--json", "whole.json").status == 0
    assert result_of("r.json") == result_of("whole.json")
