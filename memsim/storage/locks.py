"""Locks that a process holds until it lets go or dies, however it dies; where the system has none, nothing is held."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def lock(descriptor: int, *, wait: bool = False) -> bool:
    """Whether this process now holds what is open, until it is closed. Raises BlockingIOError where another one does.

    False where the file system has no locks. With `wait`, until the other process lets go.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


@contextmanager
def held_folder(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """While open, this process holds `folder`, if that is true. Raises as `lock` does, and OSError for what is none."""
    if fcntl is None:
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield lock(descriptor, wait=wait)
    finally:
        os.close(descriptor)


@contextmanager
def held_file(path: Path, *, wait: bool = True) -> Iterator[None]:
    """While open, no other process is in such a block for `path`: a file that is there for as long.

    One that a killed process has left is in nobody's way. Raises OSError where it cannot be made, and, without `wait`,
    BlockingIOError while another process is in such a block.
    """
    if fcntl is None:
        yield
        return
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            lock(descriptor, wait=wait)
        except BlockingIOError:
            os.close(descriptor)
            raise
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        os.close(descriptor)  # whoever held it has removed it meanwhile
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
