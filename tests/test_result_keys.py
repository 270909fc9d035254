"""The reference of result keys (configs/README.md) has every key that a command writes, and no others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

import memsim
from tests.cli.speech import TINY_MODEL, few_utterances
from tests.documents import REPOSITORY
from tests.tools import example_levels
from tests.tools.example_measurements import feature_table, write

GUIDE = REPOSITORY / "configs" / "README.md"
SHARED = "Parts of several results"
SOMETIMES = {
    "babbling",
    "cells_error",
    "cut_short",
    "cut_short_errors",
    "decoding.options.**",
    "decoding.tuning.**",
    "mapping.allotment.**",
    "mapping.chip",
    "read_back",
    "reason",
    "sweeps.**",
    "unheard.**",
    "unwritable.**",
    "wer_without_babbling",
}
"""Ends of documented keys that are there only in cases that the results below have not."""

Key = tuple[str, ...]


@cache
def documented(command: str) -> set[Key]:
    """The keys of a command's table and of the shared parts, with braces written out."""
    reference = GUIDE.read_text(encoding="utf-8").partition("## Keys of the results\n")[2]
    sections = dict(re.findall(r"^### (.+?)\n(.*?)(?=^### |\Z)", reference, re.MULTILINE | re.DOTALL))
    (own,) = [text for title, text in sections.items() if title.startswith(f"`{command}`")]
    found = set()
    for text in (own, sections[SHARED]):
        for cells in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE):
            for pattern in re.findall(r"`([^`]+)`", cells):
                found |= {tuple(each.split(".")) for each in spelled_out(pattern)}
    return found


def spelled_out(pattern: str) -> Iterator[str]:
    """`a.{b, c.{d, e}}` is a.b, a.c.d and a.c.e."""
    start = pattern.find("{")
    if start < 0:
        yield pattern
        return
    depth, at, parts = 0, start + 1, []
    for i in range(start, len(pattern)):
        depth += {"{": 1, "}": -1}.get(pattern[i], 0)
        if (pattern[i] == "," and depth == 1) or depth == 0:
            parts.append(pattern[at:i].strip())
            at = i + 1
        if depth == 0:
            break
    for part in parts:
        yield from spelled_out(pattern[:start] + part + pattern[at:])


def leaves(value: Any, path: Key = ()) -> Iterator[tuple[Key, Any]]:
    """All values with the paths to them, which have `[]` behind the name of a list of mappings."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from leaves(inner, (*path, name))
    elif isinstance(value, list | tuple) and value and isinstance(value[0], dict):
        for inner in value:
            yield from leaves(inner, (*path[:-1], f"{path[-1]}[]"))
    else:
        yield path, value


def is_empty(value: Any) -> bool:
    """Whether a value may stand for a section without entries."""
    return value is None or (isinstance(value, dict | list | tuple) and not value)


def parts_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    """A result, and the points of a sweep as results of their own."""
    return [{name: value for name, value in result.items() if name != "points"}, *result.get("points", [])]


def covers(pattern: Key, key: Key, empty: bool) -> bool:
    """Whether a documented key is that of a value; one that is empty or null stands for all below it, too."""
    if empty and len(key) <= len(pattern):
        pattern = (*pattern[: len(key) - 1], pattern[len(key) - 1].removesuffix("[]"))
    if pattern[-1] == "**" and len(key) >= len(pattern) - 1:
        pattern, key = pattern[:-1], key[: len(pattern) - 1]
    return len(pattern) == len(key) and all(
        each in (name, "*") or (each == "SCORE" and name in ("wer", "cer", "accuracy"))
        for each, name in zip(pattern, key, strict=True)
    )


def accuracy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return outputs.argmax(1) == targets


@pytest.fixture(scope="module")
def results(tmp_path_factory, tiny_recogniser, device) -> dict[str, list[dict[str, Any]]]:
    """Results of every command, with all that may be asked for."""
    folder = tmp_path_factory.mktemp("results")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    patch.setattr("memsim.fit.goodness.LEAST_GENERATED", 20_000)
    few_utterances(folder, 3)
    (folder / "tiny.yaml").write_text(TINY_MODEL)
    (folder / "recipe.yaml").write_text("{base: float, model: tiny.yaml, epochs: 1, precision: float32}")
    write([feature_table(device, 20, 60, 1)], folder / "cycles.csv")
    example_levels.write(example_levels.readings("stable", 24, 0, (1.0, 100.0)), folder / "readings.csv")
    example_levels.write(example_levels.summary(40, 0), folder / "summary.csv")
    everything = memsim.Findings(budget=True, ablate=True, sensitivity=True, loss=True, cost=True)
    study: dict[str, Any] = {"hardware": "physical", "bits": 3}
    data = {"data": "few.tsv", "reference": tiny_recogniser, **study}
    batches = [(torch.randn(6, 5), torch.zeros(6)) for _ in range(2)]
    found = {
        "map": [
            memsim.map_checkpoint(tiny_recogniser, dry_run=True, **study),
            memsim.map_checkpoint(tiny_recogniser, budget=True, cost=True, calibrate="few.tsv", **study),
        ],
        "eval": [
            memsim.evaluate(tiny_recogniser, trials=2, findings=everything, **data),
            memsim.evaluate(tiny_recogniser, set=["adc.bits=6,8"], findings=memsim.Findings(cost=True), **data),
            memsim.evaluate(
                torch.nn.Linear(5, 3), batches, score=accuracy, findings=memsim.Findings(cost=True), **study
            ),
        ],
        "qat": [memsim.train(data=["few.tsv"], dev="few.tsv", bits="float", config="recipe.yaml", out="o.safetensors")],
        "fit-device": [
            memsim.fit_device("cycles.csv", order=2, components=1),
            *(memsim.fit_device(f"{name}.csv") for name in ("readings", "summary")),
        ],
        "fit-device --inspect": [memsim.inspect_measurements(f"{name}.csv") for name in ("cycles", "readings")],
    }
    patch.undo()
    return {command: [result.to_dict() for result in made] for command, made in found.items()}


COMMANDS = ("map", "eval", "qat", "fit-device", "fit-device --inspect")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_key_is_in_the_reference(command, results):
    for result in results[command]:
        for part in parts_of(result):
            for key, value in leaves(part):
                assert any(covers(each, key, is_empty(value)) for each in documented(command)), ".".join(key)


def test_the_reference_has_no_other_keys(results):
    written = {
        command: {(key, is_empty(v)) for found in made for each in parts_of(found) for key, v in leaves(each)}
        for command, made in results.items()
    }
    everywhere = set().union(*written.values())
    shared = set.intersection(*(documented(command) for command in COMMANDS))
    for command in COMMANDS:
        for each in documented(command):
            found = everywhere if each in shared else written[command]
            is_rare = any(f".{'.'.join(each)}".endswith(f".{end}") for end in SOMETIMES)
            assert is_rare or any(covers(each, key, empty) for key, empty in found), (command, ".".join(each))
