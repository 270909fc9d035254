"""Files that ship with memsim (configs, demo assets), found by name from any folder."""

from __future__ import annotations

from pathlib import Path

from memsim.errors import InputError

_PACKAGE = Path(__file__).parent
ASSETS = _PACKAGE / "assets"


def configs_root() -> Path:
    """The folder of shipped configs: inside the installed package, or at the top of a source checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def find_config(kind: str, name_or_path: str | Path, suffixes: tuple[str, ...] = (".yaml",)) -> Path:
    """The file that `name_or_path` means: a path that exists, else a shipped `configs/<kind>/<name><suffix>`.

    Raises InputError, naming what is shipped, when there is neither.
    """
    path = Path(name_or_path)
    try:
        is_folder = path.is_dir()
        if path.is_file():
            return path
    except OSError as error:
        raise InputError(f"{name_or_path}: cannot be read ({error.strerror})") from None
    folder = configs_root() / kind
    if path.name == str(name_or_path):
        for suffix in suffixes:
            shipped = folder / f"{path.name}{suffix}"
            if shipped.is_file():
                return shipped
    if is_folder:
        raise InputError(f"{name_or_path}: is a folder; expected a file")
    names = sorted({p.stem for p in folder.iterdir() if p.suffix in suffixes}) if folder.is_dir() else []
    known = f"(there are: {', '.join(names)})"
    raise InputError(f"{name_or_path}: no such file, and no shipped {kind} config of that name {known}")
