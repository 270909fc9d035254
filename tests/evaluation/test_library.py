"""`memsim.evaluate` and `memsim eval` give the same result, text and files."""

from __future__ import annotations

import json
import pickle
import re
import sys
import warnings
from pathlib import Path

import pytest

import memsim
from memsim.cli import main
from memsim.errors import InputError
from memsim.listener import Listener


class Recorder(Listener):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.jobs: set[str] = set()
        self.said: list[str] = []
        self.warned: list[str] = []

    def progress(self, name: str, done: float, detail: str = "", total: int = 0, unit: str = "") -> None:
        self.jobs.add(name)

    def say(self, message: str) -> None:
        self.said.append(message)

    def warn(self, message: str) -> None:
        self.warned.append(message)


def command(monkeypatch, capsys, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["memsim", "eval", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert not exit_.value.code
    return capsys.readouterr().out


def without_timing(result: dict) -> dict:
    return {key: value for key, value in result.items() if key != "real_time_factor"}


def test_the_call_is_the_command(tiny_recogniser: Path, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ("--data", "demo", "--limit", "3", "--bits", "3", "--trials", "2", "--ablate", "--loss")
    files = ("--json", "command.json", "--report", "command.html", "--hypotheses", "command.jsonl")
    printed = command(monkeypatch, capsys, tiny_recogniser, *arguments, *files)
    listener = Recorder()
    findings = memsim.Findings(ablate=True, loss=True, budget=None, cost=None, hypotheses=True)
    result = memsim.evaluate(tiny_recogniser, "demo", limit=3, bits=3, trials=2, findings=findings, listener=listener)
    wanted = json.loads(Path("command.json").read_text())
    assert without_timing(json.loads(json.dumps(result.to_dict()))) == without_timing(wanted)
    lines = [line.rstrip() for line in printed.strip().splitlines() if "real-time factor" not in line]
    assert [line for line in str(result).splitlines() if "real-time factor" not in line] == lines
    assert "<pre" in result._repr_html_()
    assert {"error budget", "cost", "evaluation"} <= listener.jobs
    result.write_report("call.html")
    result.write_hypotheses("call.jsonl")
    assert Path("call.jsonl").read_text() == Path("command.jsonl").read_text()
    assert "Ablation" in Path("call.html").read_text("utf-8")
    assert result.digital.wer == wanted["digital"]["wer"]
    assert [trial.seed for trial in result.trials] == [0, 1]
    assert result.warnings  # it is not trained


def test_a_sweep_has_points_and_a_figure(tiny_recogniser: Path, tmp_path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sweep = memsim.evaluate(tiny_recogniser, "demo", limit=3, bits=3, set=["adc.bits=4,8"])
        alone = memsim.evaluate(tiny_recogniser, "demo", limit=3, bits=3, set=["adc.bits=8"])
    assert [dict(point.settings) for point in sweep.points] == [{"adc.bits": 4}, {"adc.bits": 8}]
    assert without_timing(sweep.points[1].evaluation.to_dict()) == without_timing(alone.to_dict())
    with pytest.raises(ValueError, match="2 points"):
        sweep.digital  # noqa: B018
    sweep.write_figure(tmp_path / "sweep.svg")
    sweep.write_report(tmp_path / "sweep.html")
    assert "budget" not in alone.to_dict()
    alone.write_report(tmp_path / "alone.html")  # which has what --report finds out
    assert all(f"{head}</h2>" in (tmp_path / "alone.html").read_text("utf-8") for head in ("Error budget", "Cost"))
    with pytest.raises(InputError, match="nothing was swept"):
        alone.write_figure(tmp_path / "alone.svg")
    with pytest.raises(InputError, match="--ablate: only for a single point"):
        memsim.evaluate(tiny_recogniser, "demo", set=["adc.bits=4,8"], findings=memsim.Findings(ablate=True))


def test_shards_are_merged(tiny_recogniser: Path, tmp_path) -> None:
    given = {"checkpoint": tiny_recogniser, "data": "demo", "limit": 30, "bits": 3, "listener": Recorder()}
    whole = memsim.evaluate(**given)
    for number in (1, 2):
        share = memsim.evaluate(
            **given, sharing=memsim.Sharing(shard=f"{number}/2", results=tmp_path / f"{number}.jsonl")
        )
        assert share.points == ()
        assert "merge_results" in str(share)
    merged = memsim.merge_results(tmp_path / "?.jsonl")
    assert without_timing(merged.to_dict()) == without_timing(whole.to_dict())
    assert any("shard 2/2 is done" in line for line in given["listener"].said)


def test_results_are_short_to_look_at_and_can_be_kept(tiny_recogniser: Path, tmp_path) -> None:
    result = memsim.evaluate(tiny_recogniser, "demo", limit=2, hardware="ideal", bits=4, trials=2)
    name = tiny_recogniser.name
    shown = rf"EvaluationResult\({name} on ideal with weights.bits=4: WER % [\d.]+ digital, [\d.]+ on 2 chips\)"
    assert re.fullmatch(shown, repr(result))
    kept = pickle.loads(pickle.dumps(result))
    assert kept == result
    kept.write_report(tmp_path / "kept.html")
    sweep = memsim.evaluate(tiny_recogniser, "demo", limit=2, hardware="ideal", set=["weights.bits=3,4"])
    assert repr(sweep) == f"EvaluationResult({name}: 2 points over weights.bits)"
    assert repr(memsim.EvaluationResult(())) == (
        "EvaluationResult(a shard of an evaluation; merge_results joins all shards)"
    )
