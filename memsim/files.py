"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memsim.errors import InputError


@contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place in one step when the block ends, and vanishes if it fails.

    Whoever reads `path` sees the old file or the new one, whole. Raises InputError when it cannot be written there.
    """
    path = Path(path)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    temporary = Path(name)
    try:
        yield temporary
        os.fsync(handle)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        os.close(handle)
        temporary.unlink(missing_ok=True)
