from __future__ import annotations

import io

import pytest
from rich.console import Console

from memsim.cli import progress
from memsim.cli.progress import pass_progress


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def console(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> io.StringIO:
    file = io.StringIO()
    monkeypatch.setattr(progress, "stderr", Console(file=file, force_terminal=terminal, width=120))
    return file


def test_lines_say_what_is_left_of_a_job_that_began_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    file, clock = console(monkeypatch, terminal=False), Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    with pass_progress(False) as draw:
        draw("training", 0.5, "loss 3")  # resumed: half was done before
        clock.seconds = 30
        draw("training", 0.55, "loss 2")
        clock.seconds = 100
        draw("training", 0.6, "loss 1")
        clock.seconds = 500
        draw("training", 1.0)
    assert file.getvalue().splitlines() == ["training: 60%, loss 1, about 400 s left", "training: done in 500.0 s"]


def test_lines_say_how_much_of_how_much_and_how_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    file, clock = console(monkeypatch, terminal=False), Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    with pass_progress(False) as draw:
        for seconds, done in ((0, 0.1), (70, 0.1), (140, 0.5), (8000, 0.505), (9000, 1.0)):
            clock.seconds = seconds
            draw("evaluation", done, "WER 6.4 %", 2000, "utterances")
    assert file.getvalue().splitlines() == [
        "evaluation: 10%, 200/2,000 utterances, WER 6.4 %",  # no rate and no end in sight
        "evaluation: 50%, 1,000/2,000 utterances, 5.7/s, WER 6.4 %, about 175 s left",
        "evaluation: 50%, 1,010/2,000 utterances, 6.1/min, WER 6.4 %, about 2.7 h left",
        "evaluation: 2,000 utterances done in 9000.0 s",
    ]


def test_a_bar_shows_the_detail(monkeypatch: pytest.MonkeyPatch) -> None:
    file = console(monkeypatch, terminal=True)
    with pass_progress(False) as draw:
        draw("training", 0.25, "epoch 1/4, loss 2.0")
        draw("training", 0.5, "epoch 2/4, loss 1.0")
        draw("mapping", 0.5, total=10, unit="layers")
    assert "epoch 2/4, loss 1.0" in file.getvalue()
    assert "5/10 layers" in file.getvalue()


def test_quiet_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    file = console(monkeypatch, terminal=True)
    with pass_progress(True) as draw:
        draw("training", 0.25, "loss")
    assert file.getvalue() == ""
