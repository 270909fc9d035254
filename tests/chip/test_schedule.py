"""Schedules: examples by hand, and what holds for any network."""

from __future__ import annotations

import json
import math
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memsim.chip.architecture import Chip, load_chip
from memsim.chip.chip_cost import ChipCost
from memsim.chip.schedule import DIGITAL, vector_seconds
from memsim.chip.workload import DigitalWork, Workload
from tests.chip.works import matrix

CHIP = {
    "base": "isaac",
    "cores": 4,
    "core": {"arrays": 8, "read_seconds": 1e-7, "adc_seconds": 1e-8, "columns_per_adc": 4},
    "network": {"seconds_per_hop": 1e-9},
    "digital": {"macs_per_second": 1e9, "operations_per_second": 1e9},
}
SMALL = {"tile": {"rows": 4, "cols": 4}}


def cost(*works, audio_seconds: float = 1.0, **changes) -> ChipCost:
    return ChipCost.of(_chip(json.dumps(changes)), Workload(audio_seconds, works))


@cache
def _chip(changes: str) -> Chip:
    return load_chip({**CHIP, **json.loads(changes)})


def test_a_pipeline_by_hand() -> None:
    """Two layers at 100 ns a vector: 10 vectors take 10 periods and the time of filling, not twice as long.

    Filling: the time of a read and of four conversions, and the hops there and back.
    """
    works = [matrix(name, (4, 4), vectors=10, **SMALL) for name in "ab"]
    found = cost(*works).schedule
    assert vector_seconds(works[0], load_chip(CHIP)) == 1e-7  # four conversions of 10 ns are hidden behind the read
    filling = 2 * (1e-7 + 4e-8 + 4e-9)  # a and b in core 0, two hops from the digital part
    assert found.latency_seconds == pytest.approx(10e-7 + filling)
    assert found.busy_seconds == pytest.approx({"a": 10e-7, "b": 10e-7})
    assert found.throughput == pytest.approx(1.0 / 10e-7)
    assert found.seconds_per_unit(4) == pytest.approx((10e-7 + filling + 3 * 10e-7) / 4)


def test_examples_have_no_chunks_and_no_time_between_them() -> None:
    """A network that hears no audio: 10 examples, of which attention is not cut at seconds."""
    works = (matrix("a", (4, 4), vectors=10, **SMALL), DigitalWork("attention", "attention", 1, macs=1e3))
    chip = load_chip({**CHIP, "chunk_seconds": 0.5, "powered": "always"})
    found, heard = (ChipCost.of(chip, Workload(10.0, works, per)) for per in ("example", "audio_second"))
    assert (found.schedule.chunks, heard.schedule.chunks) == (1, 20)
    assert heard.schedule.latency_seconds < found.schedule.latency_seconds == found.schedule.delay_seconds
    of_found, of_heard = (cost.energies() for cost in (found, heard))
    leaking = of_found.by_circuit["leakage"] / found.schedule.latency_seconds
    assert leaking * 10 == pytest.approx(of_heard.by_circuit["leakage"])
    assert of_found.joules * 10 == pytest.approx(sum(sum(parts.values()) for parts in of_found.by_layer.values()))


def test_conversions_may_take_longer_than_the_read() -> None:
    work = matrix("a", (4, 4), dac={"polarity": "two_phase"}, **SMALL)
    slow = load_chip({**CHIP, "core": {"arrays": 8, "adc_seconds": 5e-8}})
    assert vector_seconds(work, slow) == pytest.approx(2 * 4 * 5e-8)


def test_attention_waits_for_all_frames_by_hand() -> None:
    """Keys of ten frames, then attention with 1000 multiplications at 1e9 a second, then a layer."""
    keys, output = (matrix(name, (4, 4), vectors=10, **SMALL) for name in ("keys", "output"))
    attention = DigitalWork("attention", "attention", 1, macs=1000)
    found = cost(keys, attention, output).schedule
    one = 1e-7 + 4e-8 + 4e-9
    first = 10e-7 + one
    second = 10e-7 + one + 1e-6  # attention and output share a segment, equally long; its filling is all of it
    assert [segment.seconds for segment in found.segments] == pytest.approx([first, second])


def test_a_decoder_goes_token_by_token_by_hand() -> None:
    """Five tokens through two layers: five times the time of both, however many arrays wait."""
    works = [matrix(name, (4, 4), vectors=5, rounds=5, **SMALL) for name in "ab"]
    found = cost(*works).schedule
    assert found.latency_seconds == pytest.approx(5 * 2 * (1e-7 + 4e-8 + 4e-9))
    # other utterances fill the time in which a layer waits
    assert found.seconds_per_unit(100) < 0.6 * found.seconds_per_unit(1)


@pytest.mark.parametrize(("link_seconds", "bottleneck"), [(1e-7, "layer"), (1e-5, "links")])
def test_buses_and_links_by_hand(link_seconds: float, bottleneck: str) -> None:
    """Ten vectors of the matrix of `test_placement.test_over_two_chips_by_hand`.

    The cores that send most receive six bytes and send four sums of two; in a microsecond their bus carries as much.
    The second chip is one link away, over which go the same 14 bytes.
    """
    network = {"bytes_per_second": 14 / 1e-6, "seconds_per_hop": 1e-9}
    links = {"bytes_per_second": 14 / link_seconds, "seconds": 3e-7}
    found = cost(matrix("layer", (20, 6), vectors=10, **SMALL), network=network, links=links).schedule
    assert found.busy_seconds == pytest.approx({"layer": 10e-6, "links": 10 * link_seconds})
    assert found.bottleneck == bottleneck
    filling = (1e-6 + 4e-8 + 4e-9 + 3e-7) + link_seconds  # hops: two there, two back
    assert found.latency_seconds == pytest.approx(max(10e-6, 10 * link_seconds) + filling)


def test_chunks_shorten_attention_and_the_delay() -> None:
    keys = matrix("keys", (4, 4), vectors=1000, **SMALL)
    attention = DigitalWork("attention", "attention", 1, macs=1e6)
    whole, chunked = cost(keys, attention), cost(keys, attention, chunk_seconds=0.1)
    assert chunked.workload.digital[0].macs == pytest.approx(1e5)
    assert chunked.schedule.delay_seconds < 0.2 * whole.schedule.delay_seconds
    assert whole.schedule.delay_seconds == whole.schedule.latency_seconds


def test_one_more_replica_of_the_bottleneck() -> None:
    busy, idle = matrix("busy", (4, 4), vectors=100, **SMALL), matrix("idle", (4, 4), vectors=60, **SMALL)
    found = cost(busy, idle).to_dict()["schedule"]
    assert found["bottleneck"] == "busy"
    gain = found["one_more_replica"]
    assert (gain["name"], gain["arrays"]) == ("busy", 4)
    assert gain["audio_seconds_per_second"] / found["audio_seconds_per_second"] == pytest.approx(100 / 60)


def test_spare_arrays_hold_replicas() -> None:
    works = [matrix("busy", (4, 4), vectors=100, **SMALL), matrix("idle", (4, 4), vectors=10, **SMALL)]
    plain, spare = cost(*works), cost(*works, replicas="spare")
    # 32 arrays on a chip, 4 for idle: seven replicas of busy
    assert len(spare.placement.by_name["busy"].replicas) == 7
    assert spare.placement.chips == plain.placement.chips == 1
    assert spare.schedule.throughput == pytest.approx(7 * plain.schedule.throughput)
    assert spare.energies().by_layer["busy"]["adc"] == plain.energies().by_layer["busy"]["adc"]


works = st.lists(
    st.tuples(st.sampled_from(["matrix", "attention", "other"]), st.integers(1, 50), st.sampled_from([1, 1, 7])),
    min_size=1,
    max_size=6,
)


@settings(deadline=None, max_examples=30)
@given(works)
def test_a_chip_is_no_faster_than_its_busiest_part(parts: list[tuple[str, int, int]]) -> None:
    made = [
        matrix(f"{n}", (6, 6), vectors=size * rounds, rounds=rounds, **SMALL)
        if kind == "matrix"
        else DigitalWork(f"{n}", kind, rounds, macs=float(size), elementwise=float(size))  # type: ignore[arg-type]
        for n, (kind, size, rounds) in enumerate(parts)
    ]
    found = cost(*made).schedule
    busy = found.busy_seconds
    assert found.latency_seconds >= max(busy.values()) * (1 - 1e-9)
    assert found.latency_seconds <= 2 * math.fsum(busy.values()) + 1e-6 * len(made)
    digital = math.fsum(
        stage.seconds_per_utterance for s in found.segments for stage in s.stages if stage.resource == DIGITAL
    )
    assert digital == pytest.approx(busy.get(DIGITAL, 0.0))
    assert found.seconds_of(3) >= 3 * found.latency_seconds / 3
