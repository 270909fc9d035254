"""Output files of a command or call: checks before the work, and writing whole or not at all."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from memsim.errors import InputError
from memsim.storage.files import writing
from memsim.storage.locks import held_file


def require_outputs(
    outputs: Iterable[Path | None], force: bool, inputs: Iterable[str | Path | None] = (), resumed: bool = False
) -> None:
    """Raise InputError, before any work is done, when one of `outputs` must not or cannot be written.

    No output may take the place of another one, nor of one of `inputs`, even by force. The outputs of `resumed` work
    may exist.
    """
    read = {Path(path).resolve() for path in inputs if path is not None}
    written: set[Path] = set()
    for path in filter(None, outputs):
        require_new(path, force or resumed)
        place = Path("-") if str(path) == "-" else path.resolve()
        if place in read:
            raise InputError(f"{path}: is also an input and would be overwritten; name another file")
        if place in written:
            where = "standard output" if str(path) == "-" else "the same file"
            raise InputError(f"{path}: two results go to {where}; name another one")
        written.add(place)


def require_new(path: Path | None, force: bool) -> None:
    """Raise InputError, before any work is done, when `path` must not or cannot be written."""
    if path is None or str(path) == "-":
        return
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder; name a file")
        if path.exists() and not path.is_file():
            raise InputError(
                f"{path}: is a device or a pipe; name a file, or - for standard output where that is possible"
            )
        if path.exists() and not force:
            raise InputError(f"{path}: exists already; --force overwrites it")
        if not path.absolute().parent.is_dir():
            raise InputError(f"{path}: the folder {path.parent} does not exist")
    except OSError as error:
        name = str(path)
        short = f"{name[:100]}{'...' * (len(name) > 100)}"
        raise InputError(f"{short}: cannot be written ({error.strerror})") from None
    if not os.access(path.absolute().parent, os.W_OK):
        raise InputError(f"{path}: the folder {path.absolute().parent} is not writable")


@contextmanager
def held_output(path: Path, work: str) -> Iterator[None]:
    """Keep other calls that hold `path` from writing it until the block ends; where there are no locks, nothing does.

    Raises InputError while another `work`, such as "training", holds it, and where no file can be written there.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(held_file(path.absolute().with_name(f".{path.name}.lock"), wait=False))
        except BlockingIOError:
            raise InputError(f"{path}: another {work} is writing it; name another file") from None
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror})") from None
        yield


def require_page(path: Path | None, force: bool) -> None:
    """Raise InputError, before any work is done, when no page can be written to `path`."""
    if path is not None and path.suffix != ".html":
        raise InputError(f"{path}: expected a name that ends in .html")
    require_new(path, force)


def require_safetensors(path: Path) -> None:
    """Raise InputError unless the name of `path` ends in .safetensors."""
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: expected a name that ends in .safetensors")


_NUMBERS = re.compile(r"\[\n\s*(-?\d[-+\d.eE,\s]*?)\s*\]")
"""A list of numbers over several lines, in JSON: no string has a line break in it."""


def write_json(path: Path | None, result: dict[str, Any]) -> None:
    """Write `result` whole or not at all, lists of numbers on one line; `-` is standard output."""
    if path is None:
        return
    write_text(path, _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", json.dumps(result, indent=2)) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write `text` whole or not at all; `-` is standard output."""
    if str(path) == "-":
        sys.stdout.write(text)
        return
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
