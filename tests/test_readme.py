"""The README's examples run as they are written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_python_examples_run():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_the_commands_name_real_options():
    """Of every `memsim` command line in the README."""
    import typer

    from memsim.cli import app

    group = typer.main.get_command(app)
    lines = [line.split("  #")[0] for line in README.splitlines() if line.startswith("    memsim ")]
    assert len(lines) >= 5
    for line in lines:
        _, name, *words = shlex.split(line)
        command = group.commands[name]
        known = {option for parameter in command.params for option in parameter.opts}
        used = {word for word in words if word.startswith("-")}
        assert used <= known, (line, used - known)


def test_every_dependency_is_named_with_its_purpose():
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"]:
        name = re.split(r"[<>=]", requirement)[0]
        assert re.search(rf"^\|[^|]*\b{name}\b[^|]*\|", README, re.MULTILINE), name


def test_linked_files_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target
