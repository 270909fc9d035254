"""Configs that change keys of another config, which they name as their `base`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memsim.config.resources import find_config
from memsim.config.schema import Schema
from memsim.config.yaml_file import Config, read_config
from memsim.errors import InputError
from memsim.storage.files import is_file


def seen_from(folder: Path, section: dict[str, Any], key: str) -> None:
    """Replace the value of `key` by the path of the file that it names in `folder`, if there is one."""
    name = section.get(key)
    if isinstance(name, str) and is_file(folder / name):
        section[key] = str(folder / name)


@dataclass(frozen=True)
class Bases:
    """A reader of configs of one kind, which are shipped in configs/<kind>, and of their bases."""

    kind: str
    schema: Schema[Any]
    prepare: Callable[[dict[str, Any], Path], None]
    """A function of the keys of a file and its folder that completes the keys before they are merged."""

    def read(self, source: str | Path) -> Config:
        """Read the config that a name or path means, merged over its bases.

        A config without a `name` takes that of its file. Raises InputError when the file cannot be read; problems with
        its bases are in the config's `problems`.
        """
        return self._read(source, Path(), ())

    def resolve(self, config: Config) -> Config:
        """Return `config` merged over its bases, whose relative paths start from the current folder."""
        return self._merged(config, Path(), ())

    def _read(self, source: str | Path, folder: Path, seen: tuple[Path, ...]) -> Config:
        """Read a config whose relative path starts from `folder`; `seen` are the configs that lead to it."""
        path = folder / source if is_file(folder / source) else find_config(self.kind, source, near=folder)
        place = path.absolute()
        if place in seen:
            chain = " -> ".join(step.name for step in (*seen[seen.index(place) :], place))
            raise InputError(f"the bases refer to each other in a circle: {chain}")
        config = read_config(path)
        config.data.setdefault("name", path.stem)
        self.prepare(config.data, path.parent)
        return self._merged(config, path.parent, (*seen, place))

    def _merged(self, config: Config, folder: Path, seen: tuple[Path, ...]) -> Config:
        base = config.data.pop("base", None)
        if base is None:
            return config
        mark = config.mark(("base",))
        try:
            if not isinstance(base, str):
                raise InputError("expected the name or file of another one")
            below = self._read(base, folder, seen)
        except InputError as error:  # reported together with all other problems
            return replace(config, problems=(f"{mark}: {error}", *config.problems), incomplete=True)
        if below.incomplete:  # its first problem says why
            why, *others = below.problems
            below = replace(below, problems=(f"{mark}: {why}", *others))
        return replace(self.schema.merge(below, config), base=below)
