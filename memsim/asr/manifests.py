"""Manifests: tables of utterances that users write, as tab-separated text with a header or as lines of JSON."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from memsim.asr.utterances import Utterance, parse_seconds, read_lines, require_order
from memsim.config.json_input import parse_json
from memsim.errors import InputError
from memsim.storage.files import is_file

SUFFIXES = (".tsv", ".jsonl")
AUDIO_ROOTS = "MEMSIM_AUDIO_ROOTS"
"""The environment variable that names folders, besides a manifest's own, that its audio may lie in."""

_KEYS = ("audio", "text", "start", "end", "id", "speaker")
_REQUIRED = ("audio", "text")
_NO_CHARACTER = re.compile("[\0\ud800-\udfff]")
"""NUL, which no file name has, and halves of surrogate pairs, which cannot be written."""


def read_manifest(path: Path, audio_root: Path | None, *, needs_text: bool = True) -> tuple[Utterance, ...]:
    """Return the rows of a TSV file with a header line, or of a file of JSON objects, in their own order.

    Keys: `audio` (relative to `audio_root`, or to the manifest's folder) and `text`; optional `start` and `end` in
    seconds, `id`, and `speaker`. A row without `id` is called after its audio file and times. The audio must lie in
    that folder, links followed, or in a folder that $MEMSIM_AUDIO_ROOTS names. Without `needs_text`, texts may be empty
    or missing.

    Raises InputError, with file and line, for a missing file, a malformed row or audio that is not there or not
    allowed.
    """
    if not is_file(path):
        raise InputError(f"{path}: no such manifest")
    required = _REQUIRED if needs_text else _REQUIRED[:1]
    rows = _tsv_rows(path, required) if path.suffix == ".tsv" else _jsonl_rows(path, required)
    folder = audio_root or path.parent
    utterances, lines_of_ids = [], dict[str, str]()
    for where, row in rows:
        utterance = _utterance(row, folder, where, needs_text=needs_text)
        if row.get("id") is not None and lines_of_ids.setdefault(utterance.id, where) != where:
            raise InputError(f"{where}: id {utterance.id!r} was given already at {lines_of_ids[utterance.id]}")
        utterances.append(utterance)
    if not utterances:
        raise InputError(f"{path}: holds no utterances")
    return tuple(utterances)


def _tsv_rows(path: Path, required: Sequence[str]) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield (file:line, row) of every line below the header; an empty cell is an absent key, except for `text`."""
    header: list[str] | None = None
    for number, line in read_lines(path):
        where, cells = f"{path}:{number}", line.split("\t")
        if header is None:
            header = [cell.strip() for cell in cells]
            _require_keys(header, required, where)
        elif len(cells) != len(header):
            raise InputError(f"{where}: has {len(cells)} tab-separated columns, the header has {len(header)}")
        else:
            yield where, {key: cell for key, cell in zip(header, cells, strict=True) if cell.strip() or key == "text"}


def _jsonl_rows(path: Path, required: Sequence[str]) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield (file:line, row) of every line that is not blank; a null is an absent key."""
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        row = parse_json(line, where)
        if not isinstance(row, dict):
            raise InputError(f'{where}: expected an object such as {{"audio": "a.wav", "text": "yes"}}')
        _require_keys(row, required, where)
        yield where, {key: value for key, value in row.items() if value is not None}


def _require_keys(keys: Iterable[str], required: Sequence[str], where: str) -> None:
    counts = Counter(list(keys))
    wrong = [f"lacks `{key}`" for key in required if key not in counts]
    wrong += [f"has `{key}` twice" for key, count in counts.items() if count > 1]
    wrong += [f"has the unknown key `{key}`" for key in counts if key not in _KEYS]
    if wrong:
        raise InputError(f"{where}: {', '.join(wrong)}; a manifest's keys are {', '.join(_KEYS)}")


def _utterance(row: Mapping[str, object], folder: Path, where: str, *, needs_text: bool) -> Utterance:
    audio, text, id, speaker = (_string(row, key, where) for key in ("audio", "text", "id", "speaker"))
    if not audio:
        raise InputError(f"{where}: `audio` is empty")
    text = text or ""
    if needs_text and not text.strip():
        raise InputError(f"{where}: `text` is empty; every utterance needs a transcript")
    path = folder / audio
    try:
        exists = is_file(path)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    if not exists:
        raise InputError(f"{where}: no such audio file: {path}")
    _require_allowed(path, folder, where)
    start = parse_seconds(row["start"], "start", where) if "start" in row else None
    end = parse_seconds(row["end"], "end", where) if "end" in row else None
    require_order(start or 0.0, math.inf if end is None else end, where)
    if id is None:
        times = [f"{round(seconds * 100):07d}" for seconds in (start, end) if seconds is not None]
        id = "-".join([path.stem, *times])
    return Utterance(id, path, text, start, end, speaker)


def _string(row: Mapping[str, object], key: str, where: str) -> str | None:
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{where}: `{key}` must be a string, not {value!r:.60}")
    if value is not None and (odd := _NO_CHARACTER.search(value)):
        raise InputError(f"{where}: `{key}` holds {odd[0]!r}, which is no character")
    return value


def _require_allowed(path: Path, folder: Path, where: str) -> None:
    """Raise InputError for audio that is, links followed, neither in `folder` nor in one of $MEMSIM_AUDIO_ROOTS."""
    roots = [folder, *map(Path, filter(None, os.environ.get(AUDIO_ROOTS, "").split(os.pathsep)))]
    real = path.resolve()
    if not any(real.is_relative_to(root.resolve()) for root in roots):
        found = f"{path} is {real}, " if real != path.absolute() else f"{path} is "
        raise InputError(
            f"{where}: {found}outside of {folder.resolve()}; to allow it, name its folder in ${AUDIO_ROOTS} "
            f"(several: DIR{os.pathsep}DIR; / allows any)"
        )
