"""Models that a mapped file carries with it, so that it does not need the files which they came from.

A shipped model needs its name only. A model of one's own goes by a name that contains the hash of its content, and the
mapped file holds that content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from memsim.config.resources import configs_root, find_config
from memsim.errors import InputError

Model = TypeVar("Model")


class CarriedModels(dict[str, Model]):
    """The models of one kind, shipped in configs/`kind`, that opened files carry, by the names of their content.

    `key` is the entry of a model's description that holds that name.
    """

    def __init__(self, kind: str, key: str, suffixes: tuple[str, ...] = (".yaml",)) -> None:
        super().__init__()
        self._kind, self._key, self._suffixes = kind, key, suffixes

    def find(self, name_or_path: str | Path) -> Path:
        """Return the file of a model. Raises InputError, which names the shipped models, where there is none."""
        return find_config(self._kind, name_or_path, suffixes=self._suffixes)

    def is_shipped(self, name: str) -> bool:
        """Whether `name` means a shipped model. Raises InputError where there is no such model."""
        return name not in self and self.find(name).parent == configs_root() / self._kind

    def described(self, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, str]]:
        """Return the name of the content of a model, and the description that `adopt` reads."""
        name = _content_name(metadata, tensors)
        return name, {self._key: name, **metadata}

    def adopt(
        self,
        description: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        make: Callable[[str, dict[str, str]], Model],
        damaged: InputError,
    ) -> None:
        """Keep the model that `make` makes of its name and metadata. Raises `damaged` where these are not as stored."""
        metadata = dict(description)
        name = metadata.pop(self._key, "")
        texts = [*metadata, *metadata.values()]
        is_text = "name" in metadata and all(isinstance(text, str) for text in texts)
        if not is_text or name != _content_name(metadata, tensors):
            raise damaged
        self[name] = make(name, metadata)


def _content_name(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(dict(sorted(metadata.items()))).encode())
    for key in sorted(tensors):
        digest.update(f"{key}{list(tensors[key].shape)}".encode())
        digest.update(tensors[key].contiguous().numpy().tobytes())
    return f"{metadata['name']}@{digest.hexdigest()[:16]}"
