"""Files of devices, and the kinds of device that there are, each a folder beside this file.

The ending of a file is that of its kind. A mapped checkpoint carries the device model of its cells, and those whose
laws of relaxation hold for them, unless they are shipped ones, under names that contain the hash of the content.
`embedded` packs a model, and `adopt` makes `load_device` find it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor

from memsim.config.json_input import parse_json_object
from memsim.device.cycles import file as cycles_file
from memsim.device.interface import Device
from memsim.device.levels import file as levels_file
from memsim.errors import InputError
from memsim.storage.carried import CarriedModels
from memsim.storage.checkpoint import Checkpoint

KINDS = {".safetensors": cycles_file, ".yaml": levels_file, ".yml": levels_file}
"""The module that reads the files of a kind, by their ending."""

EMBEDDED = "device/"
"""Prefix of the tensors of an embedded device model; its metadata is JSON under `embedded_device`."""

LAWS = "embedded_laws"
"""The key of the metadata, a list in JSON, of device models that give laws of relaxation alone, without tensors."""


def load_device(name_or_path: str | Path) -> Device:
    """Load the device in a file, or the shipped one of that name; tensors are float64.

    >>> load_device("synaptogen").reference_volts
    0.2

    Raises InputError, in one line, for a file that is missing, damaged, of another kind or physically impossible.
    """
    if (name := str(name_or_path)) in _adopted:
        return _adopted[name]
    path = find_device(name_or_path)
    device: Device = KINDS.get(path.suffix, cycles_file).read(path)
    return device


def load_device_on(name: str, device: torch.device) -> Device:
    """Load the device model `name` as `load_device` does, with its tensors on `device`.

    It is loaded once, and again where its file has changed since. A file that is gone is taken as it was.
    """
    return _loaded(name, device, _stamp_of(name))


@lru_cache(maxsize=16)
def _loaded(name: str, device: torch.device, stamp: tuple[int, ...]) -> Device:
    return load_device(name).to(device)


def _stamp_of(name: str) -> tuple[int, ...]:
    """Return what changes with the file of a device model; nothing for one that a checkpoint carries."""
    if name in _adopted:
        return ()
    try:
        found = find_device(name).stat()
    except InputError:
        if name not in _stamps:
            raise
    else:
        _stamps[name] = found.st_mtime_ns, found.st_size, found.st_ino
    return _stamps[name]


_stamps: dict[str, tuple[int, ...]] = {}  # of the files when they were last looked at


def require_device(name_or_path: str | Path) -> None:
    """Raise InputError where there is no device model of that name and no such file."""
    if str(name_or_path) not in _adopted:
        find_device(name_or_path)


def find_device(name_or_path: str | Path) -> Path:
    """Return the file of a device model. Raises InputError, which names the shipped models, where there is none."""
    return _adopted.find(name_or_path)


_adopted: CarriedModels[Device] = CarriedModels("devices", "cell", tuple(KINDS))


def embedded(name_or_path: str | Path) -> tuple[str, dict[str, Tensor], dict[str, str]]:
    """Return the name, tensors and metadata that embed a device model in a file; a shipped one needs its name only."""
    name = str(name_or_path)
    if _adopted.is_shipped(name):
        return name, {}, {}
    tensors, metadata = load_device(name).stored()
    own_name, description = _adopted.described(metadata, tensors)
    packed = {f"{EMBEDDED}{key}": tensor for key, tensor in tensors.items()}
    return own_name, packed, {"embedded_device": json.dumps(description)}


def embedded_laws(names: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the new name of each device model that gives a law of relaxation, and the metadata that embed them."""
    new_names: dict[str, str] = {}
    packed: list[dict[str, str]] = []
    for name in dict.fromkeys(names):
        new_names[name], _, described = embedded(name)
        packed += [json.loads(text) for text in described.values()]
    return new_names, {LAWS: json.dumps(packed)} if packed else {}


def adopt(checkpoint: Checkpoint) -> None:
    """Make the device models that `checkpoint` carries, if any, available to `load_device`.

    Raises InputError where one is damaged.
    """
    where = f"{checkpoint.path}: its device model"
    damaged = InputError(f"{where} is damaged; map the checkpoint again")
    if "embedded_device" in checkpoint.metadata:
        tensors = checkpoint.tensors(name for name in checkpoint.names if name.startswith(EMBEDDED))
        tensors = {key.removeprefix(EMBEDDED): tensor for key, tensor in tensors.items()}
        try:
            description = parse_json_object(checkpoint.metadata["embedded_device"], where)
        except InputError:
            raise damaged from None
        _adopted.adopt(description, tensors, partial(_made, tensors, where), damaged)
    try:
        laws = json.loads(checkpoint.metadata.get(LAWS, "[]"))
    except ValueError:
        raise damaged from None
    for law in laws if isinstance(laws, list) else [None]:
        if not isinstance(law, dict):
            raise damaged
        _adopted.adopt(law, {}, partial(_made, {}, where), damaged)


def _made(tensors: Mapping[str, Tensor], where: str, name: str, metadata: dict[str, str]) -> Device:
    kind = levels_file if metadata.get("kind") == levels_file.KIND else cycles_file
    device: Device = kind.from_stored(tensors, metadata, where, default_name=name)
    return device
