"""Files of tables: which there are, what they hold when they are unpacked, and errors of their readers in one line."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from memsim.errors import InputError
from memsim.fit.text_layout import SAMPLE_BYTES, TextLayout, text_layout
from memsim.storage.packed import Unpacked, require_honest

_TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".dat", ".asc", ".prn")
SUFFIXES = dict.fromkeys(_TEXT_SUFFIXES, "text") | {".parquet": "Parquet", ".pq": "Parquet", ".npz": "NPZ"}
"""The end of a name -> the format of the file."""
_PARTS = re.compile(r"(\d+)")
_MOST_BYTES = 1 << 28


def files_of(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the files of a measurement, those of a folder in order of their names, with numbers as such.

    Raises:
        InputError: for a folder without tables, and for a file that is given twice.
    """
    files: list[Path] = []
    for path in [paths] if isinstance(paths, str | Path) else paths:
        if not Path(path).is_dir():
            files.append(Path(path))
            continue
        inside = [file for file in Path(path).iterdir() if file.is_file() and not file.name.startswith(".")]
        found = [file for file in inside if Path(file.name.removesuffix(".gz")).suffix.lower() in SUFFIXES]
        if not found:
            raise InputError(
                f"{path}: a folder without tables; expected files that end in .csv, .tsv, .parquet or .npz"
            )
        files += sorted(
            found, key=lambda file: [int(part) if part.isdecimal() else part for part in _PARTS.split(file.name)]
        )
    if len({file.absolute() for file in files}) < len(files):
        raise InputError(f"{next(file for file in files if files.count(file) > 1)}: is given twice")
    return files


def text_lines(path: Path, *, is_sample: bool = False) -> tuple[TextLayout, list[str]]:
    """Return the layout of a text file and its lines, or those of its beginning alone.

    Raises:
        InputError: for a file that cannot be read, that is no text, or that is very large.
    """
    with readable(path), path.open("rb") as file:
        content = unpacked(file, path).read(SAMPLE_BYTES if is_sample else _MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise InputError(f"{path}: holds more than {_MOST_BYTES >> 20} MiB; give a row for each cell and time")
        layout = text_layout(content[:SAMPLE_BYTES], path)
        return layout, content.decode(layout.encoding, errors="replace").splitlines()


def npz_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an NPZ file by name. Raises InputError for a file that cannot be read."""
    with readable(path):
        with zipfile.ZipFile(path) as archive:
            require_honest(path, sum(member.file_size for member in archive.infolist()))
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}


def unpacked(file: IO[bytes], path: Path) -> IO[bytes] | io.BufferedReader:
    """Return the stream of a file, unpacked if it is compressed by gzip, whatever its name."""
    is_packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return io.BufferedReader(Unpacked(gzip.GzipFile(fileobj=file), path)) if is_packed else file


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn the exceptions of the readers into an InputError of one line."""
    try:
        yield
    except InputError:
        raise
    except (*_MALFORMED, ValueError, EOFError) as error:
        reason = str(error).split("\n", 1)[0].strip() or type(error).__name__
        raise InputError(f"{path}: cannot be read as a table: {reason}") from None
    except OSError as error:
        reason = error.strerror or str(error).split("\n", 1)[0].strip()
        raise InputError(f"{path}: cannot be read ({reason})") from None


_MALFORMED = (pa.ArrowException, csv.Error, zlib.error, zipfile.BadZipFile, NotImplementedError)
"""Exceptions of the readers for malformed files; zipfile raises the last for an unknown compression."""
