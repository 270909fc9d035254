from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from memsim.asr import audio
from memsim.asr.audio import duration_seconds, read_audio
from memsim.asr.corpora import load_corpus
from memsim.asr.utterances import Utterance
from memsim.errors import InputError

RATE_HZ = 16000
RAMP = np.arange(RATE_HZ, dtype=np.int16)  # one second whose samples say where they stood


def utterance(path: Path, start: float | None = None, end: float | None = None) -> Utterance:
    return Utterance("u", path, "yes", start, end)


@pytest.fixture(autouse=True)
def _fresh_warnings() -> None:
    audio._warn_resampling.cache_clear()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, samples: np.ndarray, rate_hz: int = RATE_HZ, **options: str) -> Path:
        soundfile.write(tmp_path / name, samples, rate_hz, **options)
        return tmp_path / name

    return write


@pytest.mark.parametrize(("name", "format"), [("a.sph", "NIST"), ("a.flac", "FLAC"), ("a.wav", "WAV")])
def test_reads_exactly_the_segment(write: Callable[..., Path], name: str, format: str) -> None:
    path = write(name, RAMP, format=format)
    samples = read_audio(utterance(path, 0.25, 0.75))
    assert samples.dtype == torch.float32
    assert torch.equal((samples * 2**15).int(), torch.arange(4000, 12000, dtype=torch.int32))
    assert len(read_audio(utterance(path))) == RATE_HZ
    assert len(read_audio(utterance(path, start=0.5))) == 8000
    assert len(read_audio(utterance(path, end=0.25))) == 4000


def test_channels_are_averaged(write: Callable[..., Path]) -> None:
    path = write("stereo.wav", np.stack([RAMP, 3 * (RAMP // 4)], axis=1))
    expected = torch.from_numpy((RAMP + 3.0 * (RAMP // 4)) / 2**16)
    torch.testing.assert_close(read_audio(utterance(path)), expected.float())


def test_resamples_and_says_so_once(write: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    tone = np.sin(2 * math.pi * 440 * np.arange(8000) / 8000).astype(np.float32)
    path = write("tone.wav", tone, 8000, subtype="FLOAT")
    with caplog.at_level(logging.WARNING, logger="memsim"):
        samples = read_audio(utterance(path))
        read_audio(utterance(path))
    assert [record.message for record in caplog.records] == ["audio at 8000 Hz is resampled to 16000 Hz"]
    expected = torch.sin(2 * math.pi * 440 * torch.arange(RATE_HZ) / RATE_HZ)
    torch.testing.assert_close(samples[1000:-1000], expected[1000:-1000], atol=0.01, rtol=0)


def test_equal_rates_are_left_alone(write: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    assert len(read_audio(utterance(write("a.wav", RAMP, 8000)), sample_rate_hz=8000)) == RATE_HZ
    assert not caplog.records


def test_durations(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write("a.wav", RAMP[:12000])
    assert duration_seconds(utterance(path)) == pytest.approx(0.75)
    assert duration_seconds(utterance(path, start=0.5)) == pytest.approx(0.25)
    assert duration_seconds(utterance(tmp_path / "unread.wav", 1.0, 2.5)) == pytest.approx(1.5)


def test_a_slight_overshoot_is_cut(write: Callable[..., Path]) -> None:
    assert len(read_audio(utterance(write("a.wav", RAMP), 0.5, 1.4))) == 8000


@pytest.mark.parametrize(("start", "end"), [(0.5, 1.6), (1.0, 1.2), (7.0, None)])
def test_a_segment_beyond_the_end(write: Callable[..., Path], start: float, end: float | None) -> None:
    with pytest.raises(InputError, match=r"a\.wav: is 1\.00 s long, but u is"):
        read_audio(utterance(write("a.wav", RAMP), start, end))


def test_no_samples(write: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=r"a\.wav: u holds no samples"):
        read_audio(utterance(write("a.wav", RAMP), 0.5, 0.50001))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_samples_that_are_not_finite(write: Callable[..., Path], value: float) -> None:
    samples = np.zeros(100, np.float32)
    samples[50] = value
    with pytest.raises(InputError, match=r"a\.wav: u has samples that are not finite"):
        read_audio(utterance(write("a.wav", samples, subtype="FLOAT")))


def test_missing_file(tmp_path: Path) -> None:
    for reader in (read_audio, duration_seconds):
        with pytest.raises(InputError, match=r"none\.wav: no such audio file \(utterance u\)"):
            reader(utterance(tmp_path / "none.wav"))


@pytest.mark.parametrize("name", ["text.wav", "text.flac", "text.raw"])
def test_not_audio(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("this is not audio")
    with pytest.raises(InputError, match=rf"{name}: not audio that can be read"):
        read_audio(utterance(path))


def test_unreadable_sphere_says_how_to_convert_it(tmp_path: Path) -> None:
    path = tmp_path / "talk.sph"
    path.write_bytes(b"NIST_1A\n   1024\nsample_coding -s26 pcm,embedded-shorten-v2.00\nend_head\n".ljust(2048))
    with pytest.raises(InputError, match="sph2pipe -f wav"):
        read_audio(utterance(path))


def test_an4(an4_root: Path) -> None:
    dev = load_corpus("tedlium2", root=an4_root, limit=5)
    for spoken in dev.utterances:
        samples = read_audio(spoken)
        assert len(samples) == round(duration_seconds(spoken) * RATE_HZ)
        assert 0.01 < samples.abs().max() <= 1
