"""Locks that a process holds until it releases them or dies; systems without locks hold nothing."""

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
    """Lock an open file until it is closed; with `wait`, wait for another process that holds it.

    Returns whether the lock is held: False where the file system has no locks. Raises BlockingIOError where another
    process holds it.
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
    """Open a block in which this process holds the lock of `folder`, or not, as the block's value says.

    Raises BlockingIOError as `lock` does, and OSError where `folder` is not a folder.
    """
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
    """Open a block that one process at a time can be in, by a lock file at `path` that is removed at its end.

    A lock file that a killed process left does not block. Raises OSError where the file cannot be made, and, without
    `wait`, BlockingIOError while another process is in such a block.
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
        os.close(descriptor)  # its holder has removed it in the meantime
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
