"""Waveforms of utterances: the transcribed stretch of a recording, mono, at one sample rate."""

from __future__ import annotations

import functools
import logging
import math

import soundfile
import torch

from memsim.asr.utterances import Utterance
from memsim.errors import InputError
from memsim.storage.files import is_file
from memsim.units import counted

logger = logging.getLogger("memsim")

MAX_SECONDS = 4 * 3600
"""The longest utterance. A limit, as a broken header (FLAC's gives any number of samples) could ask for all memory."""
_MAX_SAMPLES = 1 << 29  # over all channels, for the same reason: 2 GiB
_MAX_KERNEL = 1 << 22  # numbers in the filter of torchaudio's resampling, which grows with the product of both rates

MAX_OVERSHOOT_SECONDS = 0.5
"""The most that a segment may end after its recording does; it is cut there, as by Kaldi's extract-segments."""


def read_audio(utterance: Utterance, sample_rate_hz: int = 16000) -> torch.Tensor:
    """Read the samples of `utterance`: float32 [samples] in [-1, 1], the mean of its channels, at `sample_rate_hz`.

    Only the utterance's own part of the file is read, which may be hours long and of any format that libsndfile knows
    (SPHERE, FLAC, WAV and others). A recording at another rate is resampled, and a warning says so once.

    Raises InputError that names the file when it does not exist, is not audio or ends before the segment does, or when
    a sample is not finite.
    """
    with _open(utterance) as recording:
        rate_hz: int = recording.samplerate
        first, last = _sample_range(utterance, recording.frames, rate_hz)
        _require_moderate(utterance, last - first, recording.channels, rate_hz, sample_rate_hz)
        try:
            recording.seek(first)
            samples = recording.read(last - first, dtype="float32", always_2d=True)  # [samples, channels]
        except soundfile.LibsndfileError as error:
            raise InputError(f"{utterance.audio}: cannot be read ({error.error_string})") from None
    if len(samples) < last - first:
        found = f"{len(samples)} of the {last - first} samples of {utterance.id}"
        raise InputError(f"{utterance.audio}: cut short: only {found} could be read")
    waveform = torch.from_numpy(samples).mean(dim=1)  # [samples]
    if not torch.isfinite(waveform).all():
        raise InputError(f"{utterance.audio}: {utterance.id} has samples that are not finite (NaN or infinity)")
    return waveform if rate_hz == sample_rate_hz else _resample(waveform, rate_hz, sample_rate_hz)


def duration_seconds(utterance: Utterance) -> float:
    """Return the length of `utterance` in seconds: from its times where it has both, else from the file's header."""
    if utterance.start_seconds is not None and utterance.end_seconds is not None:
        return utterance.end_seconds - utterance.start_seconds
    with _open(utterance) as recording:
        first, last = _sample_range(utterance, recording.frames, recording.samplerate)
        return (last - first) / float(recording.samplerate)


def _open(utterance: Utterance) -> soundfile.SoundFile:
    if not is_file(utterance.audio):
        raise InputError(f"{utterance.audio}: no such audio file (utterance {utterance.id})")
    try:
        return soundfile.SoundFile(utterance.audio)
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a headerless (.raw) file of unknown rate
        reason = getattr(error, "error_string", str(error)).strip()
        remedy = "; compressed SPHERE needs `sph2pipe -f wav` first" if utterance.audio.suffix == ".sph" else ""
        raise InputError(f"{utterance.audio}: not audio that can be read ({reason}){remedy}") from None


def _sample_range(utterance: Utterance, frames: int, rate_hz: int) -> tuple[int, int]:
    """Return the samples [first, last) of `utterance` in a recording of `frames` samples a channel."""
    first = round((utterance.start_seconds or 0.0) * rate_hz)
    last = frames if utterance.end_seconds is None else round(utterance.end_seconds * rate_hz)
    if first >= frames or last > frames + MAX_OVERSHOOT_SECONDS * rate_hz:
        wanted = f"{first / rate_hz:.2f} to {last / rate_hz:.2f} s"
        raise InputError(f"{utterance.audio}: is {frames / rate_hz:.2f} s long, but {utterance.id} is {wanted}")
    last = min(last, frames)
    if last <= first:
        raise InputError(f"{utterance.audio}: {utterance.id} holds no samples")
    return first, last


def _require_moderate(utterance: Utterance, samples: int, channels: int, rate_hz: int, wanted_hz: int) -> None:
    """Raise InputError for audio that would take far more memory than speech does."""
    if samples > MAX_SECONDS * rate_hz or samples * channels > _MAX_SAMPLES:
        size = f"{samples / rate_hz:.3g} s of {counted(channels, 'channel')} at {rate_hz} Hz"
        raise InputError(
            f"{utterance.audio}: {utterance.id} is {size}, says its header; an utterance has at most "
            f"{MAX_SECONDS // 3600} h and {_MAX_SAMPLES >> 20} Mi samples (start and end in a manifest cut recordings)"
        )
    common = math.gcd(rate_hz, wanted_hz)
    if (rate_hz // common) * (wanted_hz // common) > _MAX_KERNEL:
        raise InputError(
            f"{utterance.audio}: {rate_hz} Hz cannot be resampled to {wanted_hz} Hz in little memory, as they have no "
            f"large common divisor; convert it first (sox IN -r {wanted_hz} OUT)"
        )


def _resample(waveform: torch.Tensor, from_hz: int, to_hz: int) -> torch.Tensor:
    from torchaudio.functional import resample  # imported here, as most corpora do not need it

    _warn_resampling(from_hz, to_hz)
    resampled: torch.Tensor = resample(waveform, from_hz, to_hz)
    return resampled


@functools.cache
def _warn_resampling(from_hz: int, to_hz: int) -> None:
    """Log a warning, once for each pair of rates."""
    logger.warning("audio at %d Hz is resampled to %d Hz", from_hz, to_hz)
