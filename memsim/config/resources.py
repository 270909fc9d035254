"""Files that ship with memsim (configs, demo assets), found by name from any folder."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from memsim.errors import InputError

_PACKAGE = Path(__file__).parents[1]
ASSETS = _PACKAGE / "assets"


def configs_root() -> Path:
    """Return the folder of shipped configs: inside the installed package, or at the top of a source checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def find_config(
    kind: str, name_or_path: str | Path, suffixes: tuple[str, ...] = (".yaml",), near: Path = Path()
) -> Path:
    """Return the file that `name_or_path` means: a path that exists, else a shipped `configs/<kind>/<name><suffix>`.

    Raises InputError that names the shipped files, and the file or name that may have been meant, when there is
    neither; relative paths of files that may have been meant start from the folder `near`.
    """
    path, folder = Path(name_or_path), configs_root() / kind
    is_name = path.name == str(name_or_path)
    shipped = [folder / f"{path.name}{suffix}" for suffix in suffixes] if is_name else []
    try:
        is_folder = path.is_dir()
        for candidate in (path, *shipped):
            if candidate.is_file():
                return candidate
    except OSError as error:
        raise InputError(f"{name_or_path}: cannot be read ({error.strerror})") from None
    if is_folder:
        raise InputError(
            f"{name_or_path}: is a folder; expected a {'YAML ' if set(suffixes) <= {'.yaml', '.yml'} else ''}file"
        )
    names = sorted({p.stem for p in folder.iterdir() if p.suffix in suffixes}) if folder.is_dir() else []
    endings = (*suffixes, ".yml") if ".yaml" in suffixes else suffixes
    known = f"({nearest(name_or_path, names, endings, near)}available: {', '.join(names)})"
    raise InputError(f"{name_or_path}: no such file, and no shipped {kind} config of that name {known}")


def nearest(name_or_path: str | Path, names: Iterable[str], suffixes: Iterable[str], near: Path = Path()) -> str:
    """Return a hint such as `nearest: the file mine.yaml; ` for `mine`, or for a similar name of `names`; else empty.

    The files considered are beside `name_or_path`, relative to `near`, and end in one of `suffixes`.
    """
    path = Path(name_or_path)
    wanted = path.name.lower()
    try:
        files = sorted(p.name for p in (near / path.parent).iterdir() if p.suffix in suffixes and p.is_file())
    except (OSError, ValueError):
        files = []
    known = {name: name for name in names}
    for file in reversed(files):  # the first file of a name wins, with its ending or without
        stem = str(path.parent / file)
        known |= {file.removesuffix(Path(file).suffix): f"the file {stem}", file: f"the file {stem}"}
    by_lower = {name.lower(): meant for name, meant in known.items()}
    for called in (wanted, wanted.rpartition(".")[0]):
        if close := get_close_matches(called, by_lower, n=1, cutoff=0.81):
            return f"nearest: {by_lower[close[0]]}; "
    return ""
