"""Finding and opening a checkpoint by its name, by its path, or by default."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from memsim.asr.corpora import DATA
from memsim.config.resources import ASSETS, nearest
from memsim.errors import InputError

if TYPE_CHECKING:
    from memsim.storage.checkpoint import Checkpoint

BUNDLED = {
    "demo-float": "demo-float.safetensors",  # in full precision
    "demo": "demo.safetensors",  # continued from demo-float with the recipe `robust`, for 3-bit weights
}


def find_checkpoint(name: str | Path | None) -> tuple[Path, str | None]:
    """Find the file of a checkpoint by name, and a line for users who named none.

    A name is a path that exists, else a bundled name. Without one, it is $MEMSIM_CHECKPOINT, else the newest
    `*.mapped.safetensors` in the folder, else the bundled `demo`. Raises InputError where there is no such file.
    """
    if name is not None:
        path = Path(name)
        if not path.is_file() and str(name) in BUNDLED:
            return ASSETS / "checkpoints" / BUNDLED[str(name)], None
        if not path.exists():
            known = f"({nearest(str(name), BUNDLED, ['.safetensors'])}available: {', '.join(BUNDLED)})"
            raise InputError(f"{name}: no such file, and no bundled checkpoint of that name {known}")
        return path, None
    if from_environment := os.environ.get("MEMSIM_CHECKPOINT"):
        if not Path(from_environment).exists():
            raise InputError(f"$MEMSIM_CHECKPOINT is {from_environment}: no such file")
        return Path(from_environment), f"checkpoint: {from_environment} (from $MEMSIM_CHECKPOINT)"
    mapped = (path for path in Path().glob("*.mapped.safetensors") if path.is_file())
    newest = max(mapped, key=lambda path: path.stat().st_mtime, default=None)
    if newest is not None:
        return newest, f"checkpoint: {newest} (the newest mapped one in this folder)"
    return ASSETS / "checkpoints" / BUNDLED["demo"], "checkpoint: demo (bundled)"


def mapped_path(name: str | Path) -> Path:
    """Return where the mapped file of a checkpoint is written by default: beside it, as `NAME.mapped.safetensors`.

    The mapped file of a bundled checkpoint is written to the current folder.
    """
    path, _ = find_checkpoint(name)
    path = path if path.name.strip(".") else path.resolve()  # of the current folder
    folder = path.parent if Path(name).exists() else Path()
    stem = path.name.removesuffix(".index.json").removesuffix(".safetensors")
    return folder / f"{stem}.mapped.safetensors"


def default_data(checkpoint: str | None) -> str:
    """Return the default of --data: the demo for a bundled checkpoint.

    Raises InputError for other checkpoints.
    """
    if find_checkpoint(checkpoint)[0].parent != ASSETS / "checkpoints":
        raise InputError(f"--data is missing: {DATA}")
    return "demo"


def open_network(
    name: str,
    option: str,
    architecture: str | None = None,
    architecture_config: str | Path | None = None,
    *,
    may_be_mapped: bool = False,
) -> Checkpoint:
    """Open the network that `option` names, as `open_checkpoint` does: an unmapped one unless it `may_be_mapped`.

    Raises InputError for other kinds of files.
    """
    checkpoint, _ = open_checkpoint(name, architecture, architecture_config)
    if checkpoint.kind == "device":
        raise InputError(f"{option} {name}: a device model, not a recogniser; use it with --cell")
    if checkpoint.kind == "mapped" and not may_be_mapped:
        verb = {"--reference": "compare with", "--teacher": "learn from"}.get(option, "start from")
        raise InputError(f"{option} {name}: is mapped onto arrays; {verb} the checkpoint that was mapped")
    return checkpoint


def open_checkpoint(
    name: str | Path | Checkpoint | None,
    architecture: str | None = None,
    architecture_config: str | Path | None = None,
) -> tuple[Checkpoint, str | None]:
    """Open the checkpoint that `find_checkpoint` finds; the second value is its line for users.

    An open checkpoint is returned itself. `architecture` names the network of a file that does not name one. Raises
    InputError where the file cannot be read or does not fit.
    """
    from memsim.asr.hugging_face.folder import weights_in, with_recogniser_beside
    from memsim.storage.checkpoint import Checkpoint, load_checkpoint

    if isinstance(name, Checkpoint):
        checkpoint, said = name, None
    else:
        path, said = find_checkpoint(name)
        checkpoint = load_checkpoint(weights_in(path) if path.is_dir() else path)
        if architecture is None:
            checkpoint = with_recogniser_beside(checkpoint)
    if checkpoint.kind == "training":
        raise InputError(f"{checkpoint.path}: the state of a stopped training; name the checkpoint that lies beside it")
    if architecture is not None or architecture_config is not None:
        from memsim.asr.external import with_architecture

        checkpoint = with_architecture(checkpoint, architecture, architecture_config)
    return checkpoint, said
