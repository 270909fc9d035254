"""What --data, --split and CHECKPOINT mean."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from memsim.asr.data_names import DATA
from memsim.config.resources import ASSETS, nearest
from memsim.errors import InputError

if TYPE_CHECKING:
    from memsim.storage.checkpoint import Checkpoint

BUNDLED = {
    "demo-float": "demo-float.safetensors",  # in full precision
    "demo": "demo.safetensors",  # trained on from there, by the recipe `robust`, for 3-bit weights
}


def find_checkpoint(name: str | None) -> tuple[Path, str | None]:
    """The file that CHECKPOINT means, and a line that says so where it was not spelled out.

    A path that exists, else a bundled name. Without one: $MEMSIM_CHECKPOINT, else the newest `*.mapped.safetensors` in
    the folder, else the bundled `demo`.
    """
    if name is not None:
        path = Path(name)
        if not path.is_file() and name in BUNDLED:
            return ASSETS / "checkpoints" / BUNDLED[name], None
        if not path.exists():
            known = f"({nearest(name, BUNDLED, ['.safetensors'])}there are: {', '.join(BUNDLED)})"
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


def default_data(checkpoint: str | None) -> str:
    """What --data means where it is left out: the demo, of a bundled checkpoint. Raises InputError for others."""
    if find_checkpoint(checkpoint)[0].parent != ASSETS / "checkpoints":
        raise InputError(f"--data is missing: {DATA}")
    return "demo"


def open_network(
    name: str, option: str, architecture: str | None = None, architecture_config: str | None = None
) -> Checkpoint:
    """`open_checkpoint` of the unmapped network that `option` names. Raises InputError for files of another kind."""
    checkpoint, _ = open_checkpoint(name, architecture, architecture_config)
    if checkpoint.kind == "device":
        raise InputError(f"{option} {name}: a device model, not a recogniser; --cell takes such")
    if checkpoint.kind == "mapped":
        verb = "compare with" if option == "--reference" else "start from"
        raise InputError(f"{option} {name}: is mapped onto arrays; {verb} the checkpoint that was mapped")
    return checkpoint


def open_checkpoint(
    name: str | None, architecture: str | None = None, architecture_config: str | None = None
) -> tuple[Checkpoint, str | None]:
    """`find_checkpoint`, opened, as one of the architecture that the user names."""
    from memsim.storage.checkpoint import load_checkpoint

    path, said = find_checkpoint(name)
    checkpoint = load_checkpoint(path)
    if checkpoint.kind == "training":
        raise InputError(f"{path}: the state of a stopped training; name the checkpoint that lies beside it")
    if architecture is not None or architecture_config is not None:
        from memsim.asr.external import described

        checkpoint = described(checkpoint, architecture, architecture_config)
    return checkpoint, said
