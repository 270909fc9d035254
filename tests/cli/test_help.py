"""Help texts, and completion in bash."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from memsim.cli import app

REPOSITORY = Path(__file__).resolve().parents[2]
GROUP = typer.main.get_command(app)


@pytest.mark.parametrize("name", sorted(GROUP.commands))
def test_every_argument_and_option_is_explained(name):
    command = GROUP.commands[name]
    for parameter in command.params:
        assert re.fullmatch(r"[^\s].*[.)]", parameter.help, re.DOTALL), (parameter.name, parameter.help)
    assert command.help.strip().endswith(".")


@pytest.mark.parametrize("arguments", [(), *((name,) for name in sorted(GROUP.commands))], ids=" ".join)
def test_no_flag_seems_to_take_a_value(memsim, arguments):
    shown = memsim(*arguments, "--help")
    assert shown.status == 0
    assert "--help" in shown.out
    assert "bool" not in shown.out.lower()
    assert "Usage: " in shown.out


@pytest.fixture(scope="module")
def completed(tmp_path_factory):
    """What bash offers for the last of some words."""
    folder = tmp_path_factory.mktemp("bin")
    program = folder / "memsim"
    program.write_text(f"#!{sys.executable}\nfrom memsim.cli import main\nmain()\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    paths = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}
    environment = os.environ | paths
    script = folder / "completion.bash"
    with script.open("w") as file:
        subprocess.run(["memsim"], env=environment | {"_MEMSIM_COMPLETE": "source_bash"}, stdout=file, check=True)

    def complete(*words: str) -> list[str]:
        text = (
            f"source {script}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; "
            "$(complete -p memsim | sed 's/.*-F \\([^ ]*\\).*/\\1/') memsim; printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        done = subprocess.run(["bash", "-c", text], env=environment, capture_output=True, text=True, check=True)
        return done.stdout.split()

    return complete


def test_bash_completes_commands_and_options(completed):
    assert set(completed("memsim", "''")) == set(GROUP.commands)
    assert completed("memsim", "ma") == ["map"]
    hardware = completed("memsim", "map", "model.safetensors", "--h")
    assert "--hardware" in hardware
    assert "--bits" not in hardware
    options = {option for parameter in GROUP.commands["eval"].params for option in parameter.opts}
    assert {option for option in options if option.startswith("--")} <= set(completed("memsim", "eval", "--"))
