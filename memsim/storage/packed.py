"""Compressed files that must not unpack to more than a memory or a disk holds."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from memsim.errors import InputError

MAX_RATIO = 200
"""Measurements and language models pack to a tenth; gzip packs nothing but zeros to a thousandth, xz to less."""
FREE_BYTES = 1 << 26
"""What any file may unpack to."""


def require_honest(path: Path, unpacked_bytes: int) -> None:
    """Raise InputError when `path` unpacks to so much more than its size that it can only be meant to do harm."""
    packed = path.stat().st_size
    if unpacked_bytes > max(FREE_BYTES, MAX_RATIO * packed):
        raise InputError(
            f"{path}: its {packed:,} bytes unpack to {unpacked_bytes >> 20:,} MiB or more, over {MAX_RATIO} times as "
            "much; if that is meant, unpack it first"
        )


class Unpacked(io.RawIOBase):
    """What `unpacker` makes of the file `path`; raises InputError where that becomes far too much."""

    def __init__(self, unpacker: io.BufferedIOBase, path: Path) -> None:
        self._unpacker = unpacker
        self._path = path
        self._bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._unpacker.readinto(buffer)
        self._bytes += count
        require_honest(self._path, self._bytes)
        return count

    def close(self) -> None:
        self._unpacker.close()
        super().close()
