"""The command line as a process: start-up cost, signals, `python -m`, and the wheel in a folder of its own."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

REPOSITORY = Path(__file__).parents[2]


def cpu_seconds(command: list[str]) -> float:
    """User and system time of a finished process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("arguments", [[], ["map"], ["qat"], ["eval"], ["fit-device"], ["lm"]])
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys; from memsim.cli import main\n"
        f"sys.argv = ['memsim', *{arguments}, '--help']\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'numpy', 'torchaudio', 'transformers', 'matplotlib', 'scipy', 'sklearn', 'pyarrow'}\n"
        "heavy &= sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    command = [sys.executable, "-m", "memsim", *arguments, "--help"]
    # 0.2 s on a quiet machine; importing torch alone takes 1.5 s
    assert min(cpu_seconds(command) for _ in range(2)) - cpu_seconds([sys.executable, "-c", "pass"]) < 0.8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mapp"], "No such command 'mapp'. Did you mean 'map'?; see memsim --help"),
        (["map"], "Missing argument 'CHECKPOINT'; see memsim map --help"),
        (
            ["map", "x", "--bts", "3"],
            "No such option: --bts (Possible options: --bits, --budget, --set); see memsim map",
        ),
        (["map", "x", "--bits"], "Option '--bits' requires an argument; see memsim"),
        (["eval", "--trials", "x"], "--trials x: should be a valid integer"),
        (["eval", "a", "b"], "Got unexpected extra argument(s) (b); see memsim eval --help"),
    ],
)
def test_wrong_usage_is_one_line(memsim, arguments, message):
    refused = memsim(*arguments)
    assert (refused.status, refused.out, refused.err.count("\n")) == (2, "", 1)
    assert refused.err.startswith(f"memsim: {message}")


def test_without_a_command_there_is_help(memsim):
    shown = memsim()
    assert (shown.status, shown.err) == (2, "")
    assert "fit-device" in shown.out
    assert memsim("--help") == (0, shown.out, "")


def test_the_core_imports_without_torchaudio():
    code = (
        "import sys; sys.modules['torchaudio'] = None; sys.modules['soundfile'] = None\n"
        "import torch, memsim; from memsim.nn.mapping import map_model\n"
        "model = torch.nn.Sequential(torch.nn.Linear(5, 3))\n"
        "chip = memsim.map_model(model, 'physical', bits=3, calibration=[torch.randn(20, 5)])\n"
        "assert chip(torch.randn(2, 5)).shape == (2, 3)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_own_networks_run_without_transformers(tmp_path):
    code = (
        "import sys; sys.modules['transformers'] = None; sys.modules['tokenizers'] = None\n"
        "import memsim\n"
        "assert 'torchaudio' not in sys.modules\n"
        "memsim.map_checkpoint('demo', 'ideal', out='m.safetensors')\n"
        "memsim.evaluate('m.safetensors', 'demo', limit=2)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("signal_", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_map_leaves_nothing_half_written(tmp_path, signal_):
    save_file({f"layers.{i}.weight": torch.randn(1024, 1024) for i in range(24)}, tmp_path / "big.safetensors")
    command = [sys.executable, "-m", "memsim", "map", "big.safetensors", "--bits", "8", "--hardware", "paper"]
    # a shell lets what it runs in the background ignore SIGINT
    heed = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    time.sleep(6)
    process.send_signal(signal_)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "memsim: interrupted; no half-written file is left"
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["big.safetensors"]


def test_the_wheel_runs_the_demo_from_any_folder(tmp_path):
    """Built, installed without dependencies beside the test environment's packages, and run from elsewhere."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheels = tmp_path / "wheels"
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, REPOSITORY], check=True, cwd=tmp_path
    )
    (wheel,) = wheels.glob("memsim-*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)
    environment = os.environ | {"PYTHONPATH": str(site)}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("-c", "import memsim; print(memsim.__file__)").strip() == str(site / "memsim" / "__init__.py")
    assert "mapped, 1 chip" in run(
        "-m", "memsim", "eval", "--data", "demo", "--limit", "4", "--hardware", "paper", "--bits", "2"
    )
    for shipped in (REPOSITORY / "configs").rglob("*.*"):
        assert (site / "memsim" / shipped.relative_to(REPOSITORY)).is_file(), shipped
    assert (site / "bin" / "memsim").is_file()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["qat", "--data", "demo", "--dev", "demo", "--bits", "float", "-o", "new.safetensors"], 75),
        (["eval", "demo", "--results", "new.jsonl"], 75),
        (["eval", "demo", "--results=new.jsonl"], 75),
        (["eval", "demo"], 130),
        (["map", "demo"], 130),
    ],
)
def test_what_is_resumable_says_so_of_a_signal_before_it_has_begun(tmp_path, arguments, status, number):
    code = (
        "import os, signal, sys, time\n"
        "from memsim import cli\n"
        "def stop(*arguments, **options):\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "    time.sleep(60)\n"
        "cli.map.require_page = cli.eval.require_page = stop  # before signals are noted\n"
        "cli.qat.noted_stop_signals = stop\n"
        f"sys.argv = {['memsim', *arguments]!r}\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=50)
    assert done.returncode == status, done.stderr
    assert done.stderr == "memsim: interrupted; no half-written file is left\n"
    assert list(tmp_path.iterdir()) == []
