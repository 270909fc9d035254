"""Utterances, and what all readers of corpora need: the lines of a text file, times, and recordings by name."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from memsim.errors import InputError
from memsim.storage.files import is_file, read_text

_MAX_SECONDS = 1e9
"""Upper limit of a time; no recording is thirty years long."""


@dataclass(frozen=True)
class Utterance:
    """A transcribed stretch of a recording: all of `audio` where the times are None."""

    id: str
    audio: Path
    text: str
    start_seconds: float | None = None
    end_seconds: float | None = None
    speaker: str | None = None


def utterances_sha256(utterances: Iterable[Utterance]) -> str:
    """Return a hash of the ids and texts of `utterances` in their order; it ignores where their audio lies."""
    lines = "\n".join(f"{utterance.id}\t{utterance.text}" for utterance in utterances)
    return hashlib.sha256(lines.encode()).hexdigest()


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, line without its end) of the lines of a UTF-8 text file that are not blank.

    Raises InputError when the file cannot be read, or is not UTF-8 (with the line).
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield number, line.removesuffix("\r")


def parse_seconds(value: object, key: str, where: str) -> float:
    """Return `value`, a number or the text of one, as a time in seconds.

    Raises InputError that begins with `where` (file:line) and names `key`.
    """
    try:
        seconds = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds < _MAX_SECONDS:
        raise InputError(f"{where}: {key} must be a time in seconds, not {value!r:.40}")
    return seconds


def require_order(start_seconds: float, end_seconds: float, where: str) -> None:
    """Raise InputError that begins with `where` (file:line) unless the end comes after the start."""
    if end_seconds <= start_seconds:
        raise InputError(f"{where}: ends at {end_seconds:g} s, not after its start at {start_seconds:g} s")


def find_audio(folders: Iterable[Path], stem: str, where: str) -> Path:
    """Return the recording `stem` as .sph, .flac or .wav, the first that one of `folders` has.

    Raises InputError that begins with `where` (the file:line that needs it) when there is none.
    """
    candidates = [folder / f"{stem}{suffix}" for suffix in (".sph", ".flac", ".wav") for folder in folders]
    for path in candidates:
        if is_file(path):
            return path
    raise InputError(f"{where}: no audio: there is no {candidates[0]}, nor a .flac or .wav file instead")
