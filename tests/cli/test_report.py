"""`--report` of map and eval: refusals and pages."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from memsim.cli.options import command_line

DATA = ("--data", "demo", "--limit", "2", "--bits", "3")


@pytest.mark.parametrize("command", [("map",), ("eval", *DATA)])
def test_a_page_that_cannot_be_is_refused_before_any_work(memsim, tiny_recogniser: Path, command) -> None:
    Path("there.html").write_text("mine")
    for name, said in {
        "page": "page: expected a name that ends in .html",
        "there.html": "there.html: exists already; --force overwrites it",
        "no/page.html": "no/page.html: the folder no does not exist",
    }.items():
        done = memsim(*command, tiny_recogniser, "--report", name)
        assert done.status == 2
        assert said in done.said
    assert Path("there.html").read_text() == "mine"
    assert sorted(path.name for path in Path().iterdir()) == ["there.html"]


def test_a_dry_run_has_no_report(memsim, tiny_recogniser: Path) -> None:
    assert (
        "--report --dry-run: the report needs programmed arrays"
        in memsim("map", tiny_recogniser, "--dry-run", "--report", "page.html").said
    )


def test_a_report_brings_budget_and_cost_along(memsim, tiny_recogniser: Path) -> None:
    done = memsim("eval", tiny_recogniser, *DATA, "--report", "page.html", "--json", "eval.json")
    assert done.status == 0, done.err
    assert "wrote page.html" in done.said
    assert {"budget", "cost"} <= json.loads(Path("eval.json").read_text()).keys()
    assert "<h2>Error budget</h2>" in Path("page.html").read_text("utf-8")


def test_a_foreign_network_without_known_inputs(memsim, foreign: Path) -> None:
    done = memsim("map", foreign, "--report", "page.html")
    assert done.status == 0, done.err
    text = Path("page.html").read_text("utf-8")
    assert "<h2>Error budget</h2>" not in text
    assert "<h2>Cost</h2>" in text
    assert "one input vector of each layer" in text


def test_exact_hardware(memsim, tiny_recogniser: Path) -> None:
    for command in (
        ("map", tiny_recogniser, "-o", "m.safetensors"),
        ("eval", tiny_recogniser, "--data", "demo", "--limit", "2"),
    ):
        name = f"{command[0]}.html"
        done = memsim(*command, "--hardware", "ideal", "--bits", "3", "--report", name, "--force")
        assert done.status == 0, done.err
        assert "unknown" in Path(name).read_text("utf-8")


def test_the_command_names_the_checkpoint_that_was_found(memsim, monkeypatch, tiny_recogniser: Path) -> None:
    monkeypatch.setenv("MEMSIM_CHECKPOINT", str(tiny_recogniser))
    done = memsim("eval", *DATA, "--quiet", "--report", "page.html")
    assert done.status == 0, done.err
    (command,) = re.findall(r"<pre>(memsim eval .*?)</pre>", Path("page.html").read_text("utf-8"))
    assert command.endswith(f"--report page.html {tiny_recogniser}")


def test_the_command_line_can_be_pasted(monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/bin/memsim", "eval", "--set", "adc={bits: 6}"])
    monkeypatch.delenv("MEMSIM_DATA", raising=False)
    assert command_line() == "memsim eval --set 'adc={bits: 6}'"
    monkeypatch.setenv("MEMSIM_DATA", "/my data")
    assert (
        command_line("a b.safetensors") == "MEMSIM_DATA='/my data' memsim eval --set 'adc={bits: 6}' 'a b.safetensors'"
    )
