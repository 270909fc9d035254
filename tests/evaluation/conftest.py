"""A study of a second or two whose parts all differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memsim.asr.corpora import load_corpus
from memsim.evaluation.study import Study
from memsim.evaluation.sweep import sweep_points
from memsim.hardware import apply_settings, load_hardware
from memsim.listener import Listener
from memsim.storage.checkpoint import load_checkpoint
from tests.evaluation.calls import study_of


@pytest.fixture(scope="session")
def study(tiny_recogniser: Path) -> Callable[..., Study]:
    """Two points of two chips on four batches of 20 utterances; keywords change it."""

    def make(settings: tuple[str, ...] = ("adc.bits=3,8",), **changes: Any) -> Study:
        base = load_hardware("physical").with_settings({"weights.bits": 3})
        points = sweep_points(settings, lambda chosen: apply_settings(base, chosen))
        given = {"corpus": load_corpus("demo", limit=60), "points": points, "trials": 2} | changes
        return study_of(**{"checkpoint": load_checkpoint(tiny_recogniser), **given})

    return make


class Counting(Listener):
    """Counts what a study shows as done, and asks to stop after some batches."""

    def __init__(self, stop_after: int | None = None, signal: int = 15) -> None:
        self.stop_after, self.signal = stop_after, signal
        self.said: list[str] = []
        self.shown: list[int] = []
        """The outcomes that are done before the first batch, and after each."""

    def progress(self, name: str, done: float, detail: str = "", total: int = 0, unit: str = "") -> None:
        self.total = total
        self.shown.append(round(done * total))

    def say(self, message: str) -> None:
        self.said.append(message)

    def stop_request(self) -> int | None:
        return self.signal if self.stop_after is not None and len(self.steps) >= self.stop_after else None

    @property
    def steps(self) -> list[int]:
        return self.shown[1:]

    @property
    def begun(self) -> tuple[int, int]:
        return self.total, self.shown[0]

    @property
    def utterances(self) -> int:
        return self.shown[-1] - self.shown[0]


def without_timing(results: list) -> list[dict]:
    """Results as JSON would have them, but for how long they took."""
    found = [dict(point.settings) | evaluation.to_dict() for point, evaluation in results]
    return [{key: value for key, value in result.items() if key != "real_time_factor"} for result in found]
