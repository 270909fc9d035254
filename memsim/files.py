"""Files that appear whole or not at all, and their hashes."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memsim import __version__
from memsim.errors import InputError


@contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place in one step when the block ends, and vanishes if it fails.

    Whoever reads `path` sees the old file or the new one, whole. A link is followed: it keeps pointing at the file.
    Raises InputError when nothing can be written there, OSError (with the path) when writing fails, as on a full disk.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: cannot be written (a folder or device, not a file)")
        target = path.resolve()
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:  # opened anew: whoever wrote may have put another file in its place
            os.fsync(written.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
    except OSError as error:
        raise OSError(f"{path}: could not be written ({error.strerror or error}); nothing was left of it") from None
    finally:
        temporary.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_format(path: Path, found: object, known: str) -> None:
    """Raise InputError unless the file at `path` says that it has the format `known`, the one that memsim reads."""
    if found != known:
        raise InputError(f"{path}: format {found}; this memsim {__version__} reads {known}, a newer one is needed")
