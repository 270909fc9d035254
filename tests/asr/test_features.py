from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from memsim.asr.features import AugmentConfig, FeatureConfig, LogMel, _warp_frequency, perturb_speed, spec_augment
from memsim.config.schema import Schema
from memsim.config.yaml_file import parse_config
from memsim.errors import InputError
from memsim.rng import generator

RATE_HZ = 16000
RAW = FeatureConfig(normalise=None)


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def tone(hz: float, seconds: float = 1.0) -> torch.Tensor:
    return 0.5 * torch.sin(2 * math.pi * hz * torch.arange(round(seconds * RATE_HZ)) / RATE_HZ)


def reference_log_mel(waveform: np.ndarray) -> np.ndarray:
    """[samples] -> [frames, 80]: the textbook way, one frame at a time, in float64."""
    emphasised = np.append(waveform[:1], waveform[1:] - 0.97 * waveform[:-1])
    padded = np.pad(emphasised, 256, mode="reflect")
    window = np.pad(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400), 56)
    mel = np.linspace(2595 * np.log10(1 + 60 / 700), 2595 * np.log10(1 + 7600 / 700), 82)
    corners = 700 * (10 ** (mel / 2595) - 1)
    hz = np.arange(257) * RATE_HZ / 512
    rising = (hz[:, None] - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - hz[:, None]) / (corners[2:] - corners[1:-1])
    triangles = np.clip(np.minimum(rising, falling), 0, None)  # [frequencies, 80]
    frames = [padded[start : start + 512] * window for start in range(0, len(waveform) + 1, 160)]
    power = np.abs(np.fft.rfft(frames)) ** 2
    return np.log(np.maximum(power @ triangles, 1e-8))


@pytest.mark.filterwarnings("ignore:At least one mel filterbank")
def test_log_mel_is_the_textbook_one() -> None:
    waveform = noise(4000) + tone(440, 0.25)
    features = LogMel(RAW)(waveform)
    torch.testing.assert_close(
        features.double(), torch.from_numpy(reference_log_mel(waveform.double().numpy())), atol=2e-3, rtol=0
    )


@pytest.mark.parametrize("samples", [0, 1, 2, 159, 160, 161, 255, 256, 257, 399, 400, 401, 16000, 16123])
@pytest.mark.parametrize("normalise", ["utterance", None])
def test_shape_and_finiteness(samples: int, normalise: str | None) -> None:
    features = LogMel(FeatureConfig(normalise=normalise))(noise(samples))
    assert features.shape == (1 + samples // 160, 80)
    assert torch.isfinite(features).all()


def test_other_sizes_and_rates() -> None:
    config = FeatureConfig(sample_rate_hz=8000, hop_seconds=0.0125, mel_bins=20, max_hz=3800.0)
    assert LogMel(config)(noise(8000)).shape == (81, 20)


def test_a_short_utterance_is_one_continued_by_silence() -> None:
    short = noise(200)
    long = torch.nn.functional.pad(short, (0, 200))
    torch.testing.assert_close(LogMel(RAW)(short), LogMel(RAW)(long)[:2])


def test_tones_stand_in_their_bins() -> None:
    mel = np.linspace(2595 * np.log10(1 + 60 / 700), 2595 * np.log10(1 + 7600 / 700), 82)[1:-1]
    centres = 700 * (10 ** (mel / 2595) - 1)
    for hz in (300, 1000, 3000, 6000):
        peak = LogMel(RAW)(tone(hz)).mean(dim=0).argmax().item()
        assert abs(peak - np.abs(centres - hz).argmin()) <= 1


def test_normalised_features_have_no_channel_and_no_loudness() -> None:
    features = LogMel(FeatureConfig())(noise(8000) + tone(440, 0.5))
    torch.testing.assert_close(features.mean(dim=0), torch.zeros(80), atol=1e-5, rtol=0)
    assert features.std().item() == pytest.approx(1, abs=1e-5)


@settings(deadline=None, max_examples=20)
@given(st.floats(0.1, 8))
def test_gain_changes_nothing(gain: float) -> None:
    log_mel = LogMel(FeatureConfig())
    torch.testing.assert_close(log_mel(gain * noise(4000)), log_mel(noise(4000)), atol=1e-3, rtol=0)


def test_gain_shifts_raw_features_by_its_logarithm() -> None:
    shifted = LogMel(RAW)(3 * noise(4000)) - 2 * math.log(3)
    torch.testing.assert_close(shifted, LogMel(RAW)(noise(4000)), atol=1e-4, rtol=0)


def test_a_delay_of_one_hop_shifts_the_frames() -> None:
    waveform = noise(8000)
    later = LogMel(RAW)(torch.cat([noise(160, seed=1), waveform]))
    torch.testing.assert_close(later[4:48], LogMel(RAW)(waveform)[3:47], atol=1e-4, rtol=0)


def test_silence_is_finite() -> None:
    for samples in (100, 16000):
        torch.testing.assert_close(LogMel(RAW)(torch.zeros(samples)).unique(), torch.tensor([math.log(1e-8)]))
        assert LogMel(FeatureConfig())(torch.zeros(samples)).abs().max() < 0.01


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.0, 1.1, 2.0])
def test_speed_changes_duration_and_pitch(factor: float) -> None:
    faster = perturb_speed(tone(500), RATE_HZ, factor)
    assert len(faster) == pytest.approx(RATE_HZ / factor, abs=1)
    peak_hz = torch.fft.rfft(faster).abs().argmax().item() * RATE_HZ / len(faster)
    assert peak_hz == pytest.approx(500 * factor, abs=2)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("max_hz: 9000.0", "f.yaml:1: max_hz: 9000.0 is above half of sample_rate_hz (16000)"),
        ("min_hz: 300.0\nmax_hz: 300.0", "f.yaml:2: max_hz: 300.0 is not above min_hz (300.0)"),
        ("hop_seconds: 0.0", "f.yaml:1: hop_seconds: 0.0 is out of range (0.001 to 1)"),
        ("window_seconds: 25", "f.yaml:1: window_seconds: 25.0 is out of range (0.002 to 1)"),
        ("normalise: speaker", "f.yaml:1: normalise: expected utterance or none, got 'speaker'"),
    ],
)
def test_impossible_features(text: str, found: str) -> None:
    with pytest.raises(InputError) as caught:
        Schema(FeatureConfig).validate(parse_config(text, "f.yaml"))
    assert str(caught.value) == found


def test_normalise_none_can_be_written() -> None:
    assert Schema(FeatureConfig).validate(parse_config("normalise: none", "f.yaml")) == RAW


# --- augmentation ----------------------------------------------------------------------------------------------------

OFF = AugmentConfig(time_mask_frames=0, frequency_masks_min=0, frequency_masks_max=0)


def augmented(config: AugmentConfig, shape: tuple[int, int, int] = (200, 100, 80), seed: int = 0) -> torch.Tensor:
    return torch.stack([spec_augment(ones, config, generator(seed, i)) for i, ones in enumerate(torch.ones(shape))])


def runs(kept: torch.Tensor) -> list[int]:
    """The lengths of the stretches of zeros in [n]."""
    values, counts = kept.unique_consecutive(return_counts=True)
    return counts[values == 0].tolist()


def test_masks_stay_within_their_limits() -> None:
    masked = augmented(AugmentConfig())
    frames, bins = masked.amax(dim=2), masked.amax(dim=1)  # [batch, frames], [batch, bins]
    assert torch.equal(masked, frames[:, :, None] * bins[:, None, :])  # whole frames and whole bins
    for kept in frames:
        assert len(runs(kept)) <= 4  # 100 frames / 25
        assert sum(runs(kept)) <= 4 * 20
    for kept in bins:
        assert len(runs(kept)) <= 5
        assert sum(runs(kept)) <= 5 * 8
    assert 0.19 < 1 - frames.mean() < 0.31  # about 3 masks of 10 frames on average, overlaps once
    assert 0.11 < 1 - bins.mean() < 0.19  # about 3.5 masks of 4 bins
    assert max(len(runs(kept)) for kept in bins) >= 4


def test_one_mask_is_as_long_as_configured() -> None:
    config = AugmentConfig(time_masks_min=1, frames_per_time_mask=1000, frequency_masks_min=1, frequency_masks_max=1)
    masked = augmented(config, (500, 100, 80))
    lengths = [runs(kept) for kept in masked.amax(dim=2)]
    assert max(map(sum, lengths)) in (19, 20)
    assert all(len(run) <= 1 for run in lengths)
    assert max(sum(runs(kept)) for kept in masked.amax(dim=1)) in (7, 8)


def test_at_most_a_fifth_of_a_short_utterance_goes_at_once() -> None:
    config = AugmentConfig(time_masks_min=1, frames_per_time_mask=1000, frequency_masks_min=0, frequency_masks_max=0)
    assert (augmented(config, (200, 10, 80)).amax(dim=2) == 0).sum(dim=1).max() <= 2
    assert augmented(config, (200, 1, 80)).all()


def test_the_generator_decides() -> None:
    config = AugmentConfig(frequency_warp=0.1)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert torch.equal(augmented(config), augmented(config))
    assert not torch.equal(augmented(config), augmented(config, seed=1))
    assert torch.equal(torch.get_rng_state(), state)


def test_utterances_differ() -> None:
    masked = augmented(AugmentConfig(), (50, 100, 80))
    assert len({tuple(kept.tolist()) for kept in masked.amax(dim=2)}) > 40
    assert len({tuple(kept.tolist()) for kept in masked.amax(dim=1)}) > 40


@pytest.mark.parametrize(
    "config",
    [
        OFF,
        AugmentConfig(time_mask_frames=0, frequency_masks_max=0),
        AugmentConfig(time_mask_frames=0, frequency_mask_bins=0),
        AugmentConfig(time_masks_min=0, frames_per_time_mask=1000, frequency_mask_bins=0),
    ],
)
def test_a_maximum_of_zero_switches_it_off(config: AugmentConfig) -> None:
    features = torch.randn(50, 80)
    for seed in range(4):
        assert torch.equal(spec_augment(features, config, generator(seed)), features)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 100))
@settings(deadline=None, max_examples=25)
def test_any_shape_can_be_masked(frames: int, bins: int, seed: int) -> None:
    config = AugmentConfig(frequency_warp=0.2)
    assert augmented(config, (3, frames, bins), seed).shape == (3, frames, bins)


def test_masks_are_drawn_as_torchaudio_draws_them() -> None:
    """The chances that each frame and each bin is masked, against torchaudio's own transforms."""
    config = AugmentConfig(time_masks_min=1, frames_per_time_mask=1000, frequency_masks_min=1, frequency_masks_max=1)
    count = 4000
    torch.manual_seed(0)
    time = torchaudio.transforms.TimeMasking(config.time_mask_frames, iid_masks=True, p=0.2)
    frequency = torchaudio.transforms.FrequencyMasking(config.frequency_mask_bins, iid_masks=True)
    theirs = frequency(time(torch.ones(count, 1, 80, 60)))[:, 0].transpose(1, 2)  # [count, frames, bins]
    ours = augmented(config, (count, 60, 80))
    for axis in (1, 2):
        chances = [(made.amax(dim=axis) == 0).float().mean(dim=0) for made in (ours, theirs)]
        assert chances[0].max() > 0.04
        # The difference of two frequencies, at 5 standard deviations.
        allowed = 5 * (2 * chances[1].clamp_min(0.01) / count).sqrt()
        assert ((chances[0] - chances[1]).abs() < allowed).all()


def test_warping() -> None:
    features = torch.randn(7, 80)
    assert torch.equal(_warp_frequency(features, torch.tensor(1.0)), features)
    ramp = torch.arange(80.0).expand(5, 80)
    warped = [_warp_frequency(ramp, torch.tensor(factor)) for factor in (1.1, 0.9)]
    torch.testing.assert_close(warped[0][0], (1.1 * torch.arange(80)).clamp_max(79), atol=1e-4, rtol=0)
    torch.testing.assert_close(warped[1][4], 0.9 * torch.arange(80), atol=1e-4, rtol=0)


def test_warp_factors_stay_within_the_fraction() -> None:
    ramp = torch.arange(80.0).expand(1, 80)
    config = OFF.model_copy(update={"frequency_warp": 0.1})
    factors = torch.stack([spec_augment(ramp, config, generator(seed))[0, 40] / 40 for seed in range(300)])
    assert 0.9 <= factors.min() < 0.92
    assert 1.08 < factors.max() <= 1.1


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("speeds: []", "speeds"),
        ("speeds: [0]", "a.yaml:1: speeds[0]: 0.0 is out of range (0.5 to 2)"),
        ("frequency_masks_max: 1", "frequency_masks_max: 1 is below frequency_masks_min (2)"),
        ("frequency_warp: 0.5", "frequency_warp: 0.5 is out of range"),
    ],
)
def test_impossible_augmentation(text: str, found: str) -> None:
    with pytest.raises(InputError) as caught:
        Schema(AugmentConfig).validate(parse_config(text, "a.yaml"))
    assert found in str(caught.value)
