from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from memsim.cli import signals
from memsim.cli.signals import noted_stop_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_the_first_signal_is_noted(number: int) -> None:
    with noted_stop_signals() as stops:
        assert stops() is None
        os.kill(os.getpid(), number)
        assert stops() == number


@pytest.mark.parametrize("terminal", [True, False])
def test_on_a_terminal_it_is_answered(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], terminal: bool
) -> None:
    monkeypatch.setattr(signals.os, "isatty", lambda number: terminal)
    with noted_stop_signals():
        os.kill(os.getpid(), signal.SIGINT)
    assert ("a second signal stops at once" in capfd.readouterr().err) is terminal


def test_a_second_signal_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "REPEAT_SECONDS", 0.05)
    with noted_stop_signals() as stops:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # passed on by a launcher: still the first
        time.sleep(0.06)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stops() == signal.SIGTERM


def test_under_torchrun_a_second_signal_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stops what is left of its processes as soon as one has stopped."""
    monkeypatch.setattr(signals, "REPEAT_SECONDS", 0.0)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with noted_stop_signals() as stops:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stops() == signal.SIGTERM


def test_who_leaves_with_the_work_saved_heeds_no_other_signal() -> None:
    code = (
        "import os, signal, sys\n"
        "from memsim.cli.signals import noted_stop_signals\n"
        "from memsim.errors import Stopped\n"
        "try:\n"
        "    with noted_stop_signals():\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        raise Stopped('saved', by_keyboard=False)\n"
        "except Stopped:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    sys.exit(75)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (75, "")


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with noted_stop_signals():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
