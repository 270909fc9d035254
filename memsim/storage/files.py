"""Files that are written whole or not at all, and their hashes."""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from memsim.errors import InputError
from memsim.storage.locks import held_folder
from memsim.version import __version__


@contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """Open a block that writes a temporary file, which replaces `path` as that of `replacing` does.

    Raises InputError when nothing can be written there, OSError (with the path) when writing fails, as on a full disk.
    """
    with replacing(path) as temporary, write_errors(path):
        yield temporary


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Open a block with a temporary file that replaces `path` when the block ends, and is removed if it fails.

    Readers of `path` see the old file or the new one, whole. A link is followed and still points at the file. A killed
    process leaves a hidden folder beside `path`, which the next process that writes there removes. The folder of the
    temporary file is the block's own, and whatever else it leaves there is removed.

    Raises InputError when nothing can be written there, OSError (with the path) when `path` cannot be replaced. Errors
    of the block pass through.
    """
    path = Path(path)
    with ExitStack() as stack:
        try:
            if path.exists() and not path.is_file():
                raise InputError(f"{path}: cannot be written (a folder or device, not a file)")
            target = path.resolve()
            temporary = stack.enter_context(_workspace(target.parent, target.name)) / target.name
            temporary.touch()
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror})") from None
        yield temporary
        with write_errors(path):
            with temporary.open("r+b") as written:  # again, as its writer may have replaced it; Windows wants to write
                os.fsync(written.fileno())
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            temporary.replace(target)


@contextmanager
def write_errors(path: str | Path) -> Iterator[None]:
    """Raise an OSError of the block again with the `path` that it could not write."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{path}: could not be written ({reason}); no part of it was kept") from None


@contextmanager
def _workspace(folder: Path, name: str) -> Iterator[Path]:
    """Make a folder in `folder` for unfinished work on the file `name`, and remove those of killed processes."""
    with ExitStack() as stack:
        with held_folder(folder, wait=True):
            for other in folder.glob(f".{glob.escape(name)}.*.tmp"):
                _remove_if_abandoned(other)
            own = Path(tempfile.mkdtemp(dir=folder, prefix=f".{name}.", suffix=".tmp"))
            stack.callback(shutil.rmtree, own, ignore_errors=True)
            stack.enter_context(held_folder(own))
        yield own


def _remove_if_abandoned(workspace: Path) -> None:
    """Remove a folder that no process works in; it is kept where locks cannot tell."""
    with suppress(OSError), held_folder(workspace) as is_abandoned:
        if is_abandoned:
            shutil.rmtree(workspace, ignore_errors=True)


def is_file(path: Path) -> bool:
    """Whether `path` is a file. Raises InputError for a name that the system refuses."""
    try:
        return path.is_file()
    except OSError as error:
        name = str(path)
        raise InputError(f"{name[:100]}{'...' * (len(name) > 100)}: cannot be read ({error.strerror})") from None


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, line ends as they are. Raises InputError where it cannot be read or decoded."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        broken = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{broken}: not UTF-8 text (byte 0x{raw[error.start]:02x}); save it as UTF-8") from None


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_format(path: Path, found: object, *known: str) -> None:
    """Raise InputError unless the format `found` in the file at `path` is one of the `known`, which memsim reads."""
    if found not in known:
        reads = " and ".join(known)
        raise InputError(f"{path}: format {found}; this memsim {__version__} reads {reads}, a newer one is needed")
