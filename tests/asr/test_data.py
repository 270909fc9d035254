from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memsim.asr import data
from memsim.asr.data import (
    FeatureSource,
    bucket,
    evaluation_batches,
    loaded_ahead,
    pad,
    training_batches,
)
from memsim.asr.features import FeatureConfig, WaveformConfig
from memsim.asr.utterances import Utterance
from memsim.errors import InputError
from memsim.rng import generator

DURATIONS = st.lists(st.floats(0.01, 50), max_size=40)
CONFIG = FeatureConfig(mel_bins=20)


@pytest.fixture
def speak(tmp_path: Path) -> Callable[..., Utterance]:
    """Writes an utterance of noise."""

    def speak(name: str, seconds: float) -> Utterance:
        path = tmp_path / f"{name}.wav"
        samples = torch.randn(round(16000 * seconds), generator=generator(name)) / 10
        soundfile.write(path, samples.numpy(), 16000, subtype="FLOAT")
        return Utterance(name, path, "yes")

    return speak


@given(DURATIONS, st.floats(0.1, 100))
def test_buckets_hold_everything_once_and_are_no_longer_than_asked(durations: list[float], most: float) -> None:
    groups = bucket(durations, most)
    assert sorted(i for group in groups for i in group) == list(range(len(durations)))
    for group in groups:
        assert len(group) == 1 or max(durations[i] for i in group) * len(group) <= most


@given(DURATIONS, st.floats(0.1, 100))
def test_buckets_hold_similar_lengths(durations: list[float], most: float) -> None:
    flat = [durations[i] for group in bucket(durations, most) for i in group]
    assert flat == sorted(durations)


def test_a_long_utterance_has_a_batch_of_its_own() -> None:
    assert bucket([1.0, 100.0, 2.0, 200.0], 10) == [[0, 2], [1], [3]]
    assert bucket([], 10) == []


def test_padding() -> None:
    padded, lengths = pad([torch.ones(3, 4), torch.ones(5, 4)])
    assert lengths.tolist() == [3, 5]
    assert padded.shape == (2, 5, 4)
    assert padded[0].sum() == 12
    assert not padded[0, 3:].any()


# --- evaluation ------------------------------------------------------------------------------------------------------


def batches(utterances: list[Utterance], seconds: float = 1.0) -> dict[str, list[str]]:
    """The ids in each batch by key."""
    made = list(evaluation_batches(utterances, FeatureSource(CONFIG), seconds))
    assert sorted(i for batch in made for i in batch.indices) == list(range(len(utterances)))
    return {batch.key: [utterances[i].id for i in batch.indices] for batch in made}


def test_evaluation_batches_depend_on_the_utterances_alone(speak: Callable[..., Utterance]) -> None:
    spoken = [speak(f"u{i}", 0.1 * (1 + i * 7 % 10)) for i in range(10)]  # all durations differ
    made = batches(spoken)
    assert len(made) > 3
    assert batches(spoken) == made
    torch.manual_seed(123)
    assert batches(spoken[::-1]) == made  # in any order
    assert batches(spoken, 100.0).keys().isdisjoint(made)


def test_equal_durations_go_in_the_order_given(speak: Callable[..., Utterance]) -> None:
    spoken = [speak(f"u{i}", 0.3) for i in range(4)]
    assert list(batches(spoken).values()) == [["u0", "u1", "u2"], ["u3"]]
    assert list(batches(spoken[::-1]).values()) == [["u3", "u2", "u1"], ["u0"]]


def test_keys_tell_batches_apart_by_the_ids_in_them(speak: Callable[..., Utterance]) -> None:
    a, b, c = speak("a", 0.1), speak("b", 0.2), speak("c", 0.3)
    keys = [next(iter(batches(chosen))) for chosen in ([a], [b], [a, b], [a, b, c], [c])]
    assert len(set(keys)) == 5
    assert keys[0] == "40f89e395b66422f"  # pinned: read noise that is drawn by it can be drawn again


def test_a_batch_holds_each_utterance_s_features(speak: Callable[..., Utterance]) -> None:
    spoken = [speak("a", 0.2), speak("b", 0.3)]
    source = FeatureSource(CONFIG)
    (batch,) = evaluation_batches(spoken, source)
    assert batch.features.shape == (2, 31, 20)
    for row, (index, length) in enumerate(zip(batch.indices, batch.lengths.tolist(), strict=True)):
        assert torch.equal(batch.features[row, :length], source(spoken[index]))


def test_shares_of_an_evaluation_are_whole_batches_of_it(speak: Callable[..., Utterance]) -> None:
    spoken = [speak(f"u{i}", 0.1 * (1 + i)) for i in range(7)]
    source = FeatureSource(CONFIG)
    whole = list(evaluation_batches(spoken, source, 1.0))
    assert len(whole) > 3
    shares = [list(evaluation_batches(spoken, source, 1.0, first=first, every=3)) for first in range(3)]
    assert [[batch.key for batch in made] for made in shares] == [[b.key for b in whole[i::3]] for i in range(3)]
    for batch in shares[1]:
        (same,) = (b for b in whole if b.key == batch.key)
        assert batch.indices == same.indices
        assert torch.equal(batch.features, same.features)


# --- loading ahead ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_what_is_loaded_ahead_comes_in_order(threads: int) -> None:
    def load(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number**2

    assert list(loaded_ahead(load, range(10), threads)) == [number**2 for number in range(10)]
    assert list(loaded_ahead(load, [], threads)) == []


@pytest.mark.parametrize("threads", [0, 2])
def test_no_more_is_loaded_than_so_far_ahead(threads: int) -> None:
    begun: list[int] = []
    for number in loaded_ahead(lambda n: (begun.append(n), n)[1], range(100), threads):
        assert len(begun) <= number + 1 + threads
        if number == 4:
            break
    assert len(begun) <= 5 + threads


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_while_loading_comes_in_its_place(threads: int) -> None:
    def load(number: int) -> float:
        return 1 / (2 - number)

    loaded = loaded_ahead(load, range(5), threads)
    assert [next(loaded), next(loaded)] == [0.5, 1.0]
    with pytest.raises(ZeroDivisionError):
        next(loaded)


# --- training --------------------------------------------------------------------------------------------------------


def epoch(durations: list[float], *key: int | str, seconds: float = 20.0) -> list[list[tuple[int, float]]]:
    return training_batches(durations, (0.9, 1.0, 1.1), seconds, generator(*key))


@given(DURATIONS, st.integers(0, 1000))
@settings(deadline=None)
def test_an_epoch_holds_every_utterance_once(durations: list[float], seed: int) -> None:
    made = epoch(durations, seed)
    assert sorted(i for batch in made for i, _ in batch) == list(range(len(durations)))
    assert {speed for batch in made for _, speed in batch} <= {0.9, 1.0, 1.1}
    for batch in made:
        longest = max(durations[i] / speed for i, speed in batch)
        assert len(batch) == 1 or len(batch) * longest <= 20 * 1.1 / 0.9


def test_the_generator_decides_an_epoch() -> None:
    durations = [1 + i % 17 / 3 for i in range(100)]
    torch.manual_seed(1)
    made = epoch(durations, "a")
    torch.manual_seed(2)
    assert epoch(durations, "a") == made
    assert epoch(durations, "b") != made
    lengths = [max(durations[i] for i, _ in batch) for batch in made]
    assert lengths not in (sorted(lengths), sorted(lengths, reverse=True))
    speeds = [speed for batch in made for _, speed in batch]
    assert all(15 < speeds.count(speed) < 55 for speed in (0.9, 1.0, 1.1))


# --- features --------------------------------------------------------------------------------------------------------


def test_a_cache_changes_nothing_but_the_time(speak: Callable[..., Utterance], monkeypatch: pytest.MonkeyPatch) -> None:
    spoken = speak("a", 0.3)
    cached, uncached = FeatureSource(CONFIG, cache_bytes=1e6), FeatureSource(CONFIG)
    first = {speed: cached(spoken, speed) for speed in (0.9, 1.0)}
    assert all(torch.equal(features, uncached(spoken, speed)) for speed, features in first.items())
    monkeypatch.setattr(data, "read_audio", lambda *_: pytest.fail("read again"))
    for speed, features in first.items():
        assert features.dtype == torch.float32
        assert torch.equal(features, cached(spoken, speed))
    with pytest.raises(pytest.fail.Exception):
        cached(spoken, 1.1)


def test_features_are_rounded_to_16_bits(speak: Callable[..., Utterance]) -> None:
    spoken = speak("a", 0.3)
    source = FeatureSource(CONFIG)
    exact = source._extract(data.read_audio(spoken))
    torch.testing.assert_close(source(spoken), exact, atol=1e-3, rtol=2**-11)
    assert torch.equal(source(spoken), exact.half().float())


def test_what_a_caller_does_to_features_stays_out_of_the_cache(speak: Callable[..., Utterance]) -> None:
    spoken = speak("a", 0.3)
    source = FeatureSource(CONFIG, cache_bytes=1e6)
    expected = source(spoken).clone()
    source(spoken).zero_()
    assert torch.equal(source(spoken), expected)


def test_speed_changes_the_number_of_frames(speak: Callable[..., Utterance]) -> None:
    spoken = speak("a", 0.99)
    source = FeatureSource(CONFIG)
    assert [len(source(spoken, speed)) for speed in (0.9, 1.0, 1.1)] == [111, 100, 91]


def test_audio_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such audio file"):
        FeatureSource(CONFIG)(Utterance("u", tmp_path / "none.wav", "yes"))


def test_a_network_may_read_the_waveform(speak: Callable[..., Utterance]) -> None:
    spoken = speak("a", 0.3)
    source = FeatureSource(WaveformConfig(kind="waveform", sample_rate_hz=16000), cache_bytes=1e6)
    exact = data.read_audio(spoken, 16000)
    for _ in range(2):
        assert torch.equal(source(spoken), exact)
    assert len(source(spoken, 1.1)) == pytest.approx(len(exact) / 1.1, abs=20)
    padded, lengths = pad([exact, exact[:100]])
    assert padded.shape == (2, len(exact))
    assert lengths.tolist() == [len(exact), 100]
    slow = FeatureSource(WaveformConfig(kind="waveform", sample_rate_hz=8000))
    assert len(slow(spoken)) == pytest.approx(len(exact) / 2, abs=2)
