"""A study of a second or two whose parts all differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from memsim.asr.corpora import load_corpus
from memsim.evaluation.study import Study, StudyFacts
from memsim.evaluation.sweep import sweep_points
from memsim.evaluation.task import System
from memsim.evaluation.work import Tally
from memsim.hardware import apply_settings, load_hardware
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


@dataclass
class Counting:
    """A watcher that counts what is done, and asks to stop after some batches."""

    stop_after: int | None = None
    signal: int = 15
    begun: tuple[int, int] = (0, 0)
    steps: list[tuple[System, Tally]] = field(default_factory=list)

    def begin(self, facts: StudyFacts, outcomes: int, done: int) -> None:
        self.begun = (outcomes, done)

    def step(self, system: System, more: Tally) -> None:
        self.steps.append((system, more))

    def stop_request(self) -> int | None:
        return self.signal if self.stop_after is not None and len(self.steps) >= self.stop_after else None

    @property
    def utterances(self) -> int:
        return sum(more.items for _, more in self.steps)


def without_timing(results: list) -> list[dict]:
    """Results as JSON would have them, but for how long they took."""
    found = [dict(point.settings) | evaluation.to_dict() for point, evaluation in results]
    return [{key: value for key, value in result.items() if key != "real_time_factor"} for result in found]
