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


def test_a_bar_shows_the_detail(monkeypatch: pytest.MonkeyPatch) -> None:
    file = console(monkeypatch, terminal=True)
    with pass_progress(False) as draw:
        draw("training", 0.25, "epoch 1/4, loss 2.0")
        draw("training", 0.5, "epoch 2/4, loss 1.0")
    assert "epoch 2/4, loss 1.0" in file.getvalue()


def test_quiet_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    file = console(monkeypatch, terminal=True)
    with pass_progress(True) as draw:
        draw("training", 0.25, "loss")
    assert file.getvalue() == ""
