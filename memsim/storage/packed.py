"""Guards against compressed files that unpack to more than memory or a disk holds."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from memsim.errors import InputError

MAX_RATIO = 200
"""The largest ratio of unpacked to packed size. Measurements and language models reach 10, zeros in gzip 1000."""
FREE_BYTES = 1 << 26
"""The size that any file may unpack to."""


def require_honest(path: Path, unpacked_bytes: int) -> None:
    """Raise InputError when `path` unpacks to far more bytes than its size, as in an attack."""
    packed = path.stat().st_size
    if unpacked_bytes > max(FREE_BYTES, MAX_RATIO * packed):
        raise InputError(
            f"{path}: its {packed:,} bytes unpack to {unpacked_bytes >> 20:,} MiB or more, over {MAX_RATIO} times as "
            "much; if that is meant, unpack it first"
        )


class Unpacked(io.RawIOBase):
    """The stream of `unpacker`, which unpacks the file `path`; raises InputError where it becomes far too long."""

    def __init__(self, unpacker: io.BufferedIOBase, path: Path) -> None:
        self._unpacker = unpacker
        self._path = path
        self._bytes = 0

    def readable(self) -> bool:
        """Whether the stream can be read: always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into `buffer` and return the number of bytes. Raises InputError when there are far too many."""
        count = self._unpacker.readinto(buffer)
        self._bytes += count
        require_honest(self._path, self._bytes)
        return count

    def close(self) -> None:
        """Close the stream and the unpacker."""
        self._unpacker.close()
        super().close()
