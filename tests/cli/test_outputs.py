"""Outputs never overwrite each other, inputs or unrelated files; and readers may close the pipe."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from memsim.device.file import find_device

DEMO = ("eval", "demo", "--data", "demo", "--limit", "1")
CSV = "cell,cycle,hrs_kohm,us_volts,lrs_kohm,ur_volts\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("map", "demo", "-o", "a.safetensors", "--json", "a.safetensors"),
        ("map", "demo", "--json", "a.html", "--report", "./a.html"),
        (*DEMO, "--json", "a", "--hypotheses", "a"),
        (*DEMO, "--results", "a", "--json", "a"),
        (*DEMO, "--figure", "a.svg", "--json", "a.svg"),
        ("qat", "--bits", "3", "--init", "demo-float", "-o", "a.safetensors", "--json", "a.last.safetensors"),
        ("qat", "--bits", "3", "--init", "demo-float", "-o", "a.safetensors", "--json", "a.csv"),
        ("lm", "-o", "a", "--write-lexicon", "a"),
        ("fit-device", "a.csv", "-o", "a.safetensors", "--yaml", "--json", "a.yaml"),
    ],
)
def test_two_results_in_one_file(memsim, tmp_path, arguments):
    data = () if arguments[0] in ("map", "fit-device", "eval") else ("--data", "demo", "--dev", "demo")
    (tmp_path / "a.csv").write_text(CSV) if arguments[0] == "fit-device" else None
    data = data[:2] if arguments[0] == "lm" else data
    refused = memsim(*arguments, *data)
    assert refused.status == 2
    assert "two results go to the same file; name another one" in refused.said
    assert refused.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == (["a.csv"] if arguments[0] == "fit-device" else [])


def test_both_on_standard_output(memsim):
    assert "-: two results go to standard output" in memsim(*DEMO, "--json", "-", "--hypotheses", "-").said


def test_what_is_read_is_not_overwritten_even_by_force(memsim, tmp_path):
    path = tmp_path / "c.safetensors"
    save_file({"fc.weight": torch.ones(3, 3)}, path)
    before = path.read_bytes()
    for arguments in (
        ("map", path, "-o", path),
        ("map", path, "--json", path),
        ("eval", path, "--data", "demo", "--json", path),
        ("eval", "demo", "--data", "demo", "--reference", path, "--hypotheses", path),
        ("qat", "--bits", "3", "--init", path, "--data", "demo", "--dev", "demo", "-o", path),
    ):
        refused = memsim(*arguments, "--force")
        assert refused.status == 2
        assert "c.safetensors: is also an input and would be overwritten" in refused.said
        assert path.read_bytes() == before


def test_results_are_only_removed_when_all_else_is_right(memsim, tmp_path):
    results = tmp_path / "r.jsonl"
    assert memsim(*DEMO, "--results", results).status == 0
    before = results.read_bytes()
    for wrong in (("--set", "adc.bits=99"), ("--hardware", ""), ("--seed", "x")):
        assert memsim(*DEMO, "--results", results, "--force", *wrong).status == 2
        assert results.read_bytes() == before
    assert memsim(*DEMO, "--results", results, "--force", "--seed", "1").status == 0
    assert results.read_bytes() != before
    other = tmp_path / "thesis.txt"
    other.write_text("years of work")
    refused = memsim(*DEMO, "--results", other, "--force")
    assert refused.status == 2
    assert "thesis.txt: is not a results file of memsim eval, so --force does not overwrite it" in refused.said
    assert other.read_text() == "years of work"
    assert "--results -: " in memsim(*DEMO, "--results", "-").said


def test_resuming_what_never_began_overwrites_nothing(memsim, tmp_path):
    (tmp_path / "b.csv").write_text("mine")
    train = ("qat", "--bits", "3", "--init", "demo-float", "--data", "demo", "--dev", "demo", "-o", "b.safetensors")
    refused = memsim(*train, "--resume")
    assert (refused.status, (tmp_path / "b.csv").read_text()) == (2, "mine")
    assert "b.csv: exists already" in refused.said


def test_devices_are_refused_at_once(memsim):
    refused = memsim("map", "demo", "--json", os.devnull)
    assert (refused.status, refused.out) == (2, "")
    assert "is a device or a pipe; name a file, or - for standard output" in refused.said
    long = memsim("map", "demo", "--json", "x" * 300)
    assert (long.status, long.err.count("\n")) == (2, 1)
    assert "...: cannot be written (File name too long)" in long.said


def test_a_lexicon_is_read_before_anything_is_written(memsim, tmp_path):
    refused = memsim("lm", "--data", "demo", "-o", "a.arpa", "--lexicon", "missing.dic", "--write-lexicon", "b.dic")
    assert (refused.status, list(tmp_path.iterdir())) == (2, [])


# --- whoever reads leaves, or was never there ------------------------------------------------------------------------


def shell(folder, command: str) -> subprocess.CompletedProcess[str]:
    script = f'set -o pipefail; memsim() {{ "{sys.executable}" -m memsim "$@"; }}; {command}'
    return subprocess.run(
        [shutil.which("bash") or "bash", "-c", script], cwd=folder, capture_output=True, text=True, check=False
    )


def test_a_reader_that_leaves_costs_no_file(tmp_path):
    done = shell(tmp_path, "memsim eval demo --limit 1 --json a.json --report a.html | head -1")
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)
    assert json.loads((tmp_path / "a.json").read_text())["mapped"]["trials"]
    assert (tmp_path / "a.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        ("memsim --help | true", 0, ""),
        ("memsim --help > /dev/full", 1, "memsim: [Errno 28] No space left on device\n"),
        ("memsim --version >&-", 0, ""),
        ("memsim map nope >&-", 2, "memsim: nope: no such file, and no bundled checkpoint of that name"),
        ("memsim map nope 2>&-", 2, ""),
    ],
)
def test_streams_that_are_closed_or_full(tmp_path, command, status, said):
    done = shell(tmp_path, command)
    assert done.returncode == status
    assert done.stderr.startswith(said)
    assert bool(done.stderr) == bool(said)


@pytest.mark.parametrize(("columns", "widest"), [("60", 60), ("", 120), ("many", 120)])
def test_a_pipe_is_as_wide_as_columns_says(foreign, columns, widest):
    command = [sys.executable, "-m", "memsim", "map", foreign, "--force"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": columns})
    assert done.returncode == 0, done.stderr
    assert widest / 2 < max(len(line) for line in done.stdout.splitlines() if line.startswith(" ")) <= widest


def test_letters_that_the_terminal_lacks(tmp_path):
    save_file({"größe 1.weight": torch.ones(3, 3)}, tmp_path / "c.safetensors")
    done = shell(tmp_path, "PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 LC_ALL=C memsim map c.safetensors --dry-run")
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0)
    assert r"gr\xf6\xdfe 1" in done.stdout


def test_brackets_in_names_are_shown(memsim, tmp_path):
    path = tmp_path / "model[best].safetensors"
    save_file({"a[/b].weight": torch.ones(3, 3), "[red]x[/red].weight": torch.ones(3, 3)}, path)
    done = memsim("map", path, "--dry-run", "--verbose")
    assert done.status == 0
    for name in ("model[best].safetensors", "a[/b]", "[red]x[/red]"):
        assert name in done.said


# --- numbers that are none -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--prior-weight", "inf"), "prior_weight is inf"),
        (("--beam-threshold", "nan"), "beam_threshold is nan"),
        (("--beam-size", "99999999999999999999"), "beam_size is 99999999999999999999; expected 1 to 1000000"),
    ],
)
def test_a_beam_of_no_numbers(memsim, options, said):
    pytest.importorskip("flashlight.lib.text", reason="the extra lm is not installed")
    refused = memsim(*DEMO, "--decoder", "beam", *options)
    assert refused.status == 2
    assert said in refused.said


def test_weights_beyond_float32(memsim, tmp_path):
    save_file({"fc.weight": torch.full((3, 3), 4e300, dtype=torch.float64)}, tmp_path / "c.safetensors")
    refused = memsim("map", "c.safetensors")
    assert refused.status == 2
    assert "tensor fc.weight holds NaN or Inf" in refused.said


def test_a_chip_without_layers_and_hardware_without_a_name(memsim):
    assert "no layer is on arrays" in memsim(*DEMO, "--set", 'digital=["*"]').said
    assert "--hardware: the name is empty" in memsim(*DEMO, "--hardware", "").said
    assert (
        "leaves nothing to fit"
        in memsim("fit-device", "m.csv", "-o", "a.safetensors", "--from-base", "hrs,us,lrs,ur").said
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--set", "adc.bits=6", "--set", "adc.bits=8"), "--set adc.bits=8: adc.bits is set twice"),
        (("--cell", "ideal", "--set", "cell=synaptogen"), "--cell ideal --set cell=synaptogen: both name cell"),
        (("--data-root", "."), "--data-root .: only used by --calibrate"),
    ],
)
def test_options_that_contradict_each_other_or_mean_nothing(memsim, options, said):
    refused = memsim("map", "demo", *options)
    assert (refused.status, refused.out) == (2, "")
    assert said in refused.said


def test_a_device_is_seen_from_its_specs_folder(memsim, tmp_path):
    (tmp_path / "chips").mkdir()
    (tmp_path / "chips" / "chip.yaml").write_text("base: physical\ncell: mine.safetensors\n")
    shutil.copy(find_device("synaptogen"), tmp_path / "chips" / "mine.safetensors")
    assert memsim("map", "demo", "--hardware", "chips/chip.yaml", "--dry-run").status == 0
