"""Sentences on whole chips and on programming."""

from __future__ import annotations

from typing import Any

import pytest

from memsim.report.cells import programming_cost
from memsim.report.chip_cells import schedule_text


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        ({"audio_seconds_per_second": 100.01, "latency_seconds": 0.19999}, "(4 arrays) brings nothing"),
        ({"audio_seconds_per_second": 150.0, "latency_seconds": 0.1}, "(4 arrays): +50.0% throughput, -50.0% time"),
    ],
)
def test_what_one_more_replica_brings(gain: dict[str, Any], said: str) -> None:
    times = {"latency_seconds": 0.2, "real_time_factor": {"1": 0.02, "16": 0.01}, "audio_seconds_per_second": 100.0}
    times |= {"bottleneck": "a", "one_more_replica": {"name": "a", "arrays": 4, **gain}}
    text = schedule_text({"audio_seconds": 10.0, "schedule": times})
    assert text.startswith("an utterance of 10 s takes 200 ms (real-time factor 0.02, and 0.01 with 16 at once)")
    assert text.endswith(said)


def test_a_batch_of_examples() -> None:
    times = {"latency_seconds": 8e-5, "seconds_per_example": {"1": 1e-5, "16": 5e-6}, "bottleneck": "a"}
    text = schedule_text({"examples": 8, "schedule": times | {"one_more_replica": None}})
    assert text == (
        "a batch of 8 examples takes 80.0 µs (10.0 µs an example, and 5.00 µs with 16 such batches at once); "
        "bottleneck: a"
    )


def test_programming_is_told_in_hours_and_days() -> None:
    once = {"joules": 0.111, "audio_seconds_of_as_much_reading": 12000.0, "spread_over_audio_seconds": 86400.0}
    text = programming_cost({"programming": once})
    assert text == "111 mJ, as much as reading 3.3 h of audio; above it is spread over 1 day of audio"
