"""Failures to write: one line, no partial file, and old files kept."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from memsim.evaluation.results_file import read_results
from memsim.storage.checkpoint import load_checkpoint
from tests.cli.killing import Fault, Ran, run

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")

EVAL = ("eval", "tiny.safetensors", "--data", "demo", "--limit", "20", "--set", "weights.bits=3", "--quiet")
MAP = ("map", "tiny.safetensors", "--bits", "3", "-o", "out.safetensors", "--quiet")


@pytest.fixture
def folder(tiny_recogniser: Path, tmp_path: Path) -> Path:
    shutil.copy(tiny_recogniser, tmp_path / "tiny.safetensors")
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def require_one_line(ran: Ran, status: int, *parts: str) -> None:
    assert ran.status == status, ran.said
    assert len(ran.said.splitlines()) == 1
    assert ran.said.startswith("memsim: ")
    for part in parts:
        assert part in ran.said


def test_a_disk_that_is_full(folder: Path) -> None:
    require_one_line(run(folder, *MAP, fault=Fault(most_bytes=4096)), 1, "out.safetensors: could not be written")
    assert names(folder) == ["tiny.safetensors"]
    (folder / "out.safetensors").write_text("old")
    require_one_line(run(folder, *MAP, "--force", fault=Fault(most_bytes=4096)), 1, "out.safetensors: could not")
    assert names(folder) == ["out.safetensors", "tiny.safetensors"]
    assert (folder / "out.safetensors").read_text() == "old"


def test_results_that_outgrow_the_disk_are_gone_on_with(folder: Path) -> None:
    results = (*EVAL, "--results", "r.jsonl")
    header = run(folder, *results, "--json", "whole.json")
    assert header.status == 0, header.said
    lines = (folder / "r.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "r.jsonl").unlink()
    room = len(lines[0]) + len(lines[1]) + 10  # the second part is cut off
    ran = run(folder, *results, fault=Fault(most_bytes=room))
    require_one_line(
        ran, 1, "r.jsonl: could not be written (File too large)", "type the same command again to continue"
    )
    assert len(read_results(folder / "r.jsonl").parts) == 1
    assert run(folder, *results, "--json", "again.json").status == 0
    whole, again = (json.loads((folder / f"{name}.json").read_text()) for name in ("whole", "again"))
    assert whole["mapped"] == again["mapped"]


@pytest.mark.parametrize("out", ["/proc/out.safetensors", "/dev/full", "/sys/out.safetensors"])
def test_places_that_even_root_cannot_write_to(folder: Path, out: str) -> None:
    arguments = (*MAP[:-3], "-o", out, "--quiet") if out.endswith(".safetensors") else (*MAP, "--force", "--json", out)
    require_one_line(run(folder, *arguments), 2, out)
    assert not Path("/proc/out.safetensors").exists()


def test_standard_output_that_is_full(folder: Path) -> None:
    ran = run(folder, *EVAL, "--json", "-", fault=Fault(stdout="/dev/full"))
    require_one_line(ran, 1, "No space left on device")


def test_two_processes_that_write_the_same_file(folder: Path) -> None:
    """One does, or one after the other; the file is whole."""
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: run(folder, *MAP, "--force"), range(2)))
    for ran in both:
        if ran.status:
            require_one_line(ran, 2, "out.safetensors: another mapping is writing it; name another file")
    assert 0 in [ran.status for ran in both]
    assert load_checkpoint(folder / "out.safetensors").tensors()
    alone = (folder / "out.safetensors").read_bytes()
    assert run(folder, *MAP, "--force").status == 0
    assert (folder / "out.safetensors").read_bytes() == alone
    assert names(folder) == ["out.safetensors", "tiny.safetensors"]


def test_two_processes_that_add_to_the_same_results(folder: Path) -> None:
    """One does, or one after the other; none is lost."""
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: run(folder, *EVAL, "--results", "r.jsonl"), range(2)))
    for ran in both:
        if ran.status:
            require_one_line(ran, 2, "r.jsonl: another process is adding to it")
    assert 0 in [ran.status for ran in both]
    assert read_results(folder / "r.jsonl").is_finished
    assert names(folder) == ["r.jsonl", "tiny.safetensors"]


def test_no_part_of_a_page_or_table(folder: Path) -> None:
    for name in ("page.html", "result.json"):
        option = "--report" if name.endswith("html") else "--json"
        ran = run(folder, *EVAL, option, name, fault=Fault(most_bytes=100))
        require_one_line(ran, 1, f"{name}: could not be written (File too large)")
    assert names(folder) == ["tiny.safetensors"]


def test_what_was_found_is_shown_before_a_page_that_cannot_be_written(folder: Path) -> None:
    """Hours of work are not lost with the page."""
    ran = run(folder, *EVAL[:-1], "--report", "page.html", fault=Fault(most_bytes=20_000))
    assert ran.status == 1, ran.said
    assert "mapped, 1 chip" in ran.said
    assert "page.html: could not be written" in ran.said.splitlines()[-1]
    assert "wrote" not in ran.said
