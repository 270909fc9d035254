"""Files of devices of kind `levels`, and the form in which mapped checkpoints carry them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from memsim.config.bases import Bases
from memsim.config.json_input import parse_json_object
from memsim.config.schema import Schema
from memsim.config.yaml_file import Config
from memsim.device.levels.device import LevelsDevice
from memsim.device.levels.schema import LevelsFile
from memsim.errors import InputError

KIND = "levels"
_SCHEMA = Schema(LevelsFile)
_BASES = Bases("devices", _SCHEMA, lambda data, folder: None)


def read(path: Path) -> LevelsDevice:
    """Read a device file in YAML, which may start from a `base`.

    Raises InputError, which lists every problem with its line and key.
    """
    return _device(_BASES.read(path))


def device_of(mapping: Mapping[str, Any], source: str = "device") -> LevelsDevice:
    """Return the device that the keys of a file describe; `source` names them in errors. Raises InputError."""
    return _device(_BASES.resolve(Config.from_mapping(mapping, source)))


def from_stored(tensors: dict[str, Tensor], metadata: dict[str, str], where: str, default_name: str) -> LevelsDevice:
    """Return the device that `LevelsDevice.stored` gave. Raises InputError, which names `where`."""
    return device_of(parse_json_object(metadata.get("levels", ""), where), where)


def _device(config: Config) -> LevelsDevice:
    if "kind" not in config.data:
        raise InputError(f"{config.source}: kind is missing; a device file in YAML has kind: {KIND}")
    return LevelsDevice(_SCHEMA.validate(config))
